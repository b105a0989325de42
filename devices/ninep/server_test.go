package ninep

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNewServerErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, "x", dir, "file")
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file or directory",
		filepath.Join(dir, "file"): "not a directory",
		"/proc":                    "it is /proc",
	} {
		if _, err := NewServer(path, false); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("NewServer(%s): %v, want %q", path, err, want)
		}
	}
}

func TestVersion(t *testing.T) {
	c := newServer(t, t.TempDir(), false)
	d := c.ok(tVersion, 1<<30, "9P2000.L")
	if msize := d.u32(); msize != maxMsize {
		t.Errorf("msize %d", msize)
	}
	c.fails(unix.EBADF, tGetattr, 0, uint64(0)) // the old session's fid
	d = c.ok(tVersion, 8192, "9P2000.u")
	if d.u32() != 8192 || d.str(99) != "9P2000.u" {
		t.Error("9P2000.u refused")
	}
	d = c.ok(tVersion, 8192, "9P2000")
	if d.u32(); d.str(99) != "unknown" {
		t.Error("plain 9P2000 accepted")
	}
	c.fails(unix.EPROTO, tAttach, 0, uint32(noID), "", "", 0)
	c.fails(unix.EMSGSIZE, tVersion, 4095, "9P2000.L")
	c.begin("9P2000.L")
	c.fails(unix.EOPNOTSUPP, tAuth, 1, "", "", 0)
	c.fails(unix.EBADF, tAttach, 1, 5, "", "", 0)
	c.fails(unix.EINVAL, tAttach, 0, uint32(noID), "", "", 0)
	c.ok(tFlush, uint16(7))
}

func TestMalformed(t *testing.T) {
	dir := t.TempDir()
	write(t, "data", dir, "f")
	c := newServer(t, dir, false)
	c.open(1, 2, "f")
	// Every message, cut off at every length, must be refused or be complete.
	for typ := 0; typ < 256; typ++ {
		msg := message(uint8(typ), 77, 77, 77)
		for n := headerSize; n <= len(msg); n++ {
			m := bytes.Clone(msg[:n])
			m[0] = byte(n)
			c.raw(m)
		}
	}
	c.begin("9P2000.L") // one of them was Tversion
	c.open(1, 2, "f")
	size := func(n uint32, m []byte) []byte {
		m[0], m[1], m[2], m[3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
		return m
	}
	for name, msg := range map[string][]byte{
		"empty":             {},
		"short header":      {7, 0, 0, 0, tClunk},
		"size below header": size(6, message(tClunk, 1)),
		"size above bytes":  size(100, message(tClunk, 1)),
		"size 4G":           size(math.MaxUint32, message(tClunk, 1)),
		"fid cut off":       size(9, message(tClunk, 1)),
		"write count":       message(tWrite, 1, uint64(0), 1000, []byte("abc")),
		"write count 4G":    message(tWrite, 1, uint64(0), uint32(math.MaxUint32), []byte("abc")),
		"string length":     message(tMkdir, 0, uint16(500), []byte("abc")),
		"unknown type":      message(200, 1),
		"17 names":          message(tWalk, walkFields(0, 9, make([]string, 17))...),
	} {
		typ, body := c.raw(msg)
		want := []byte{byte(unix.EINVAL), 0, 0, 0}
		if name == "unknown type" {
			want[0] = byte(unix.EOPNOTSUPP)
		}
		if typ != rLerror || !bytes.Equal(body, want) {
			t.Errorf("%s: reply %d %v", name, typ, body)
		}
	}
	c.fails(unix.EMSGSIZE, tSymlink, 0, "l", strings.Repeat("x", 10000), 0)
	c.fails(unix.EMSGSIZE, tWrite, 1, uint64(0), maxMsize, make([]byte, maxMsize))
	if got := content(t, dir, "f"); got != "data" {
		t.Errorf("the file changed: %q", got)
	}
	// Replies that do not fit.
	for room := range 200 {
		c.room = room
		typ, _ := c.raw(message(tGetattr, 1, uint64(0)))
		switch {
		case room < 11 && typ != 0, room >= 11 && room < 160 && typ != rLerror, room >= 160 && typ != tGetattr+1:
			t.Fatalf("%d bytes for the reply: type %d", room, typ)
		}
		c.raw(message(tRead, 1, uint64(0), 100))
		c.raw(message(tReaddir, 1, uint64(0), 100))
	}
}

func TestWalk(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a", "b", "c")
	write(t, "x", dir, "a", "b", "f")
	c := newServer(t, dir, false)
	c.walk(0, 1, "a", "b", "c")
	c.walk(1, 2, "..", "f")
	if a := c.getattr(2); a.size != 1 || a.mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("a/b/f: %+v", a)
	}
	root := c.getattr(0)
	c.walk(0, 3, "..", "..", "a", "..", "..", ".", "..")
	if a := c.getattr(3); a.qid != root.qid {
		t.Errorf("dots from the root lead to %+v, root is %+v", a.qid, root.qid)
	}
	c.walk(1, 4) // clone
	if c.getattr(4).qid != c.getattr(1).qid {
		t.Error("a clone is another object")
	}
	c.walk(4, 4, "..") // in place
	c.walk(4, 5, "f")

	c.fails(unix.ENOENT, tWalk, walkFields(0, 9, []string{"none", "b"})...)
	d := c.ok(tWalk, walkFields(0, 9, []string{"a", "none", "b"})...)
	if n := d.u16(); n != 1 || len(d.b) != qidSize {
		t.Errorf("a partial walk: %d names, %d bytes", n, len(d.b))
	}
	c.fails(unix.EBADF, tClunk, 9)
	c.fails(unix.ENOENT, tWalk, walkFields(0, 9, []string{"a/b"})...)
	c.fails(unix.ENOENT, tWalk, walkFields(0, 9, []string{"/etc"})...)
	c.fails(unix.ENOENT, tWalk, walkFields(0, 9, []string{""})...)
	c.fails(unix.EINVAL, tWalk, walkFields(0, 9, []string{"a\x00b"})...)
	c.fails(unix.ENAMETOOLONG, tWalk, walkFields(0, 9, []string{strings.Repeat("n", 256)})...)
	c.fails(unix.ENOTDIR, tWalk, walkFields(2, 9, []string{".."})...)
	c.fails(unix.ENOTDIR, tWalk, walkFields(2, 9, []string{"x"})...)
	c.fails(unix.EINVAL, tWalk, walkFields(0, 1, nil)...) // in use
	c.fails(unix.EBADF, tWalk, walkFields(99, 9, nil)...)
}

func TestFileIO(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	c.walk(0, 1)
	d := c.ok(tLcreate, 1, "new", 0o102, 0o640, os.Getgid())
	takeQid(d)
	if unit := d.u32(); unit == 0 || unit > maxMsize-ioOverhead || unit%4096 != 0 {
		t.Errorf("iounit %d", unit)
	}
	c.put(1, 0, "hello")
	c.put(1, 10, "world")
	if got := c.readAll(1, 0, 100); string(got) != "hello\x00\x00\x00\x00\x00world" {
		t.Errorf("read %q", got)
	}
	if got := c.readAll(1, 100, 10); len(got) != 0 {
		t.Errorf("read %d bytes behind the end", len(got))
	}
	if a := c.getattr(1); a.mode != unix.S_IFREG|0o640 || a.size != 15 {
		t.Errorf("attributes %+v", a)
	}
	c.ok(tFsync, 1, 0)
	c.ok(tFsync, 1, 1)
	c.fails(unix.EINVAL, tRead, 1, uint64(math.MaxUint64), 10)
	c.fails(unix.EFBIG, tWrite, 1, uint64(1<<63), 1, []byte("x"))
	c.fails(unix.EBUSY, tLopen, 1, 0)
	c.fails(unix.EEXIST, tLcreate, 0, "new", 0o302, 0o640, 0)

	// Without O_EXCL an existing file is opened, and truncated if asked to.
	c.walk(0, 2)
	c.ok(tLcreate, 2, "new", 0o2, 0o777, 0)
	if got := c.readAll(2, 10, 5); string(got) != "world" {
		t.Errorf("read %q", got)
	}
	c.walk(0, 3)
	c.ok(tLcreate, 3, "new", 0o1001, 0o777, 0)
	if a := c.getattr(2); a.size != 0 || a.mode&0o777 != 0o640 {
		t.Errorf("after O_TRUNC: %+v", a)
	}
	c.fails(unix.EBADF, tRead, 3, uint64(0), 10) // write-only

	c.open(4, 0o2001, "new") // O_APPEND
	c.put(4, 0, "one")
	c.put(4, 0, "two")
	if got := content(t, dir, "new"); got != "onetwo" {
		t.Errorf("appended %q", got)
	}
	c.open(5, 0, "new")
	c.fails(unix.EBADF, tWrite, 5, uint64(0), 1, []byte("x"))
	c.walk(0, 6, "new")
	c.fails(unix.EBADF, tRead, 6, uint64(0), 1)
	c.fails(unix.EBADF, tWrite, 6, uint64(0), 1, []byte("x"))
	c.fails(unix.EBADF, tFsync, 6, 0)
	c.fails(unix.EINVAL, tLopen, 6, 3)
	c.fails(unix.ENOTDIR, tLopen, 6, oDirectory)
	c.fails(unix.ENOTDIR, tLcreate, 6, "x", 2, 0o644, 0)
	c.walk(0, 7)
	c.fails(unix.EISDIR, tLopen, 7, 1)
	c.ok(tLopen, 7, oDirectory)
	c.fails(unix.EISDIR, tRead, 7, uint64(0), 1)
	c.fails(unix.EBUSY, tLcreate, 7, "x", 2, 0o644, 0)
}

func TestBigIO(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	c.walk(0, 1)
	c.ok(tLcreate, 1, "big", 0o102, 0o644, 0)
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7 / 3)
	}
	const most = maxMsize - writeHeader
	for off := 0; off < len(data); off += most {
		c.put(1, uint64(off), string(data[off:min(off+most, len(data))]))
	}
	if content(t, dir, "big") != string(data) {
		t.Error("the file is not what was written")
	}
	var got []byte
	for len(got) < len(data) {
		p := c.readAll(1, uint64(len(got)), 1<<20)
		if len(p) == 0 {
			t.Fatalf("read ends after %d bytes", len(got))
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, data) {
		t.Error("read something else")
	}
	// As many slices as a queue may have: one page each.
	resp := make([][]byte, 127)
	for i := range resp {
		resp[i] = make([]byte, 4096)
	}
	n := c.s.Serve([][]byte{message(tRead, 1, uint64(4096), 126*4096)}, resp)
	if n != readHeader+126*4096 || !bytes.Equal(bytes.Join(resp, nil)[readHeader:n], data[4096:127*4096]) {
		t.Errorf("a reply of %d bytes in 127 slices is wrong", n)
	}
}

func TestReaddir(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "sub")
	want := map[string]uint8{".": unix.DT_DIR, "..": unix.DT_DIR, "sub": unix.DT_DIR, "link": unix.DT_LNK}
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		name := fmt.Sprintf("file-%04d", i)
		want[name] = unix.DT_REG
		write(t, "", dir, name)
	}
	c := newServer(t, dir, false)
	c.walk(0, 1)
	c.fails(unix.EBADF, tReaddir, 1, uint64(0), 100)
	c.ok(tLopen, 1, 0)
	c.fails(unix.EINVAL, tReaddir, 1, uint64(0), 20) // no room for one entry
	root := c.getattr(0).qid.path
	for _, count := range []int{64, 1000, 1 << 20} {
		got := make(map[string]uint8)
		for off := uint64(0); ; {
			d := c.ok(tReaddir, 1, off, count)
			n := int(d.u32())
			if n > count || n != len(d.b) {
				t.Fatalf("Rreaddir: %d bytes, %d asked for, %d there", n, count, len(d.b))
			}
			if n == 0 {
				break
			}
			for len(d.b) > 0 {
				q, next, typ, name := takeQid(d), d.u64(), d.u8(), d.str(maxName)
				if _, twice := got[name]; twice {
					t.Fatalf("%q comes twice", name)
				}
				if (name == "." || name == "..") && q.path != root {
					t.Errorf("%s of the root is %#x, not %#x", name, q.path, root)
				}
				got[name], off = typ, next
			}
		}
		if len(got) != len(want) {
			t.Errorf("count %d: %d entries, want %d", count, len(got), len(want))
		}
		for name, typ := range want {
			if got[name] != typ {
				t.Errorf("count %d: %q has type %d, want %d", count, name, got[name], typ)
			}
		}
	}
	c.open(2, 0, "file-0001")
	c.fails(unix.ENOTDIR, tReaddir, 2, uint64(0), 100)
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	if q := takeQid(c.ok(tMkdir, 0, "d", 0o2750, os.Getgid())); q.typ != qtDir {
		t.Errorf("Rmkdir %+v", q)
	}
	c.walk(0, 1, "d")
	if a := c.getattr(1); a.mode != unix.S_IFDIR|0o2750 {
		t.Errorf("mkdir mode %#o", a.mode)
	}
	if q := takeQid(c.ok(tSymlink, 1, "s", "../../../etc/passwd", 0)); q.typ != qtSymlink {
		t.Errorf("Rsymlink %+v", q)
	}
	c.walk(1, 2, "s")
	if got := c.ok(tReadlink, 2).str(4096); got != "../../../etc/passwd" {
		t.Errorf("readlink %q", got)
	}
	c.fails(unix.EINVAL, tReadlink, 1)
	c.ok(tMknod, 1, "fifo", unix.S_IFIFO|0o600, 0, 0, 0)
	c.ok(tMknod, 1, "reg", unix.S_IFREG|0o604, 0, 0, 0)
	c.fails(unix.EINVAL, tMknod, 1, "dir", unix.S_IFDIR|0o604, 0, 0, 0)
	c.walk(1, 3, "reg")
	c.ok(tLink, 0, 3, "hard")
	if a := c.getattr(3); a.nlink != 2 || a.mode != unix.S_IFREG|0o604 {
		t.Errorf("linked file: %+v", a)
	}
	c.walk(0, 4, "hard")
	if c.getattr(3).qid != c.getattr(4).qid {
		t.Error("two names of one file have different qids")
	}
	c.ok(tLink, 0, 2, "hardlink-to-symlink")
	if got, _ := os.Readlink(filepath.Join(dir, "hardlink-to-symlink")); got != "../../../etc/passwd" {
		t.Errorf("a link to a symbolic link is %q", got)
	}

	c.ok(tRenameat, 0, "hard", 1, "moved")
	c.fails(unix.ENOENT, tRenameat, 0, "hard", 1, "moved")
	c.ok(tRename, 4, 0, "back") // fid 4 followed the rename
	if _, err := os.Stat(filepath.Join(dir, "back")); err != nil {
		t.Error(err)
	}
	c.fails(unix.EBUSY, tRename, 0, 1, "root")

	c.fails(unix.ENOTDIR, tUnlinkat, 0, "back", unlinkRemoveDir)
	c.fails(unix.EISDIR, tUnlinkat, 0, "d", 0)
	c.fails(unix.ENOTEMPTY, tUnlinkat, 0, "d", unlinkRemoveDir)
	c.fails(unix.EINVAL, tUnlinkat, 0, "back", 1)
	c.ok(tRemove, 4)
	c.fails(unix.EBADF, tClunk, 4)
	for _, name := range []string{"s", "fifo", "reg"} {
		c.ok(tUnlinkat, 1, name, 0)
	}
	c.ok(tRemove, 1)
	c.fails(unix.EBUSY, tRemove, 0)
	left, _ := os.ReadDir(dir)
	if len(left) != 1 || left[0].Name() != "hardlink-to-symlink" {
		t.Errorf("left over: %v", left)
	}

	c.begin("9P2000.L")
	for _, name := range []string{"", ".", "..", "a/b", "/", "a\x00"} {
		c.fails(unix.EINVAL, tMkdir, 0, name, 0o755, 0)
		c.fails(unix.EINVAL, tLcreate, 0, name, 0o102, 0o644, 0)
		c.fails(unix.EINVAL, tSymlink, 0, name, "x", 0)
		c.fails(unix.EINVAL, tMknod, 0, name, unix.S_IFREG, 0, 0, 0)
		c.fails(unix.EINVAL, tUnlinkat, 0, name, unlinkRemoveDir)
		c.fails(unix.EINVAL, tRenameat, 0, name, 0, "x")
		c.fails(unix.EINVAL, tRenameat, 0, "x", 0, name)
		c.fails(unix.EINVAL, tLink, 0, 0, name)
		c.fails(unix.EINVAL, tCreate, 0, name, uint32(dmDir|0o755), uint8(0), "")
	}
}

func TestSetattr(t *testing.T) {
	dir := t.TempDir()
	write(t, "0123456789", dir, "f")
	c := newServer(t, dir, false)
	set := func(fid int, valid int, mode, size, atime, mtime int) []any {
		return []any{fid, valid, mode, os.Getuid(), os.Getgid(), uint64(size), uint64(atime), uint64(1), uint64(mtime), uint64(2)}
	}
	c.walk(0, 1, "f")
	c.ok(tSetattr, set(1, setMode|setSize|setAtime|setMtime|setAtimeVal|setMtimeVal|setUID|setGID, 0o4711, 3, 1000, 2000)...)
	if a := c.getattr(1); a.mode != unix.S_IFREG|0o4711 || a.size != 3 || a.mtime != 2000 {
		t.Errorf("attributes %+v", a)
	}
	c.ok(tSetattr, set(1, setMtime, 0, 0, 0, 0)...)
	if a := c.getattr(1); a.mtime < 1_700_000_000 || a.size != 3 {
		t.Errorf("touched: %+v", a)
	}
	c.ok(tSetattr, set(1, 1<<6, 0, 0, 0, 0)...)
	// A file that is open for writing can be cut although it could not be opened.
	c.walk(0, 2)
	c.ok(tLcreate, 2, "ro", 0o102, 0o400, 0)
	c.put(2, 0, "12345")
	c.ok(tSetattr, set(2, setSize, 0, 2, 0, 0)...)
	if got := content(t, dir, "ro"); got != "12" {
		t.Errorf("cut: %q", got)
	}
	c.fails(unix.EISDIR, tSetattr, set(0, setSize, 0, 2, 0, 0)...)
	c.fails(unix.EINVAL, tSetattr, set(1, setSize, 0, -1, 0, 0)...)
	c.ok(tSymlink, 0, "l", "f", 0)
	c.walk(0, 3, "l")
	c.fails(unix.EOPNOTSUPP, tSetattr, set(3, setMode, 0o777, 0, 0, 0)...)
	c.fails(unix.ELOOP, tSetattr, set(3, setSize, 0, 0, 0, 0)...)
	c.ok(tSetattr, set(3, setMtime|setMtimeVal, 0, 0, 0, 77)...) // the link's own time
	if a := c.getattr(3); a.mtime != 77 {
		t.Errorf("link's time %d", a.mtime)
	}
	if a := c.getattr(1); a.mtime == 77 || a.mode != unix.S_IFREG|0o4711 {
		t.Errorf("the link's target was changed: %+v", a)
	}
}

func TestOwner(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	c.ok(tAttach, 1, uint32(noID), "user", "", 1234) // n_uname
	c.ok(tMkdir, 1, "d", 0o755, 5678)
	c.walk(1, 2)
	c.ok(tLcreate, 2, "f", 0o102, 0o644, 5678)
	uid, gid := uint32(1234), uint32(5678)
	if os.Geteuid() != 0 {
		uid, gid = uint32(os.Getuid()), uint32(os.Getgid())
		c.fails(unix.EPERM, tSetattr, 2, setUID, 0, 0, 0, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
	}
	c.walk(1, 3, "d")
	for _, fid := range []int{2, 3} {
		if a := c.getattr(fid); a.uid != uid || a.gid != gid {
			t.Errorf("fid %d belongs to %d:%d, want %d:%d", fid, a.uid, a.gid, uid, gid)
		}
	}
}

func TestStatfs(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	var want unix.Statfs_t
	if err := unix.Statfs(dir, &want); err != nil {
		t.Fatal(err)
	}
	d := c.ok(tStatfs, 0)
	typ, bsize, blocks := d.u32(), d.u32(), d.u64()
	d.take(5 * 8)
	if namelen := d.u32(); d.err != 0 || len(d.b) != 0 || namelen != uint32(want.Namelen) ||
		typ != uint32(want.Type) || bsize != uint32(want.Bsize) || blocks != want.Blocks {
		t.Errorf("type %#x, blocks %d of %d, names %d", typ, blocks, bsize, namelen)
	}
}

func TestOpenFilesSurvive(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "d")
	write(t, "unlinked", dir, "u")
	write(t, "renamed", dir, "d", "r")
	c := newServer(t, dir, false)
	c.open(1, 2, "u")
	c.open(2, 2, "d", "r")
	c.walk(0, 3, "u") // not open
	c.ok(tUnlinkat, 0, "u", 0)
	c.ok(tRenameat, 0, "d", 0, "e")
	c.ok(tRenameat, 0, "e", 0, "f")
	c.put(1, 8, "!")
	c.put(2, 7, "!")
	if got := c.readAll(1, 0, 99); string(got) != "unlinked!" {
		t.Errorf("read %q", got)
	}
	if a := c.getattr(3); a.nlink != 0 || a.size != 9 {
		t.Errorf("unlinked file: %+v", a)
	}
	c.ok(tLopen, 3, 0)
	if got := content(t, dir, "f", "r"); got != "renamed!" {
		t.Errorf("read %q", got)
	}
	// Removing by fid looks at what is there now.
	c.walk(0, 4, "f", "r")
	if err := os.Rename(filepath.Join(dir, "f", "r"), filepath.Join(dir, "f", "s")); err != nil {
		t.Fatal(err)
	}
	write(t, "other", dir, "f", "r")
	c.fails(unix.ENOENT, tRemove, 4)
	if got := content(t, dir, "f", "r"); got != "other" {
		t.Errorf("the wrong file is gone: %q", got)
	}
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, "data", dir, "f")
	mkdir(t, dir, "d")
	c := newServer(t, dir, true)
	c.open(1, 0, "f")
	if got := c.readAll(1, 0, 99); string(got) != "data" {
		t.Errorf("read %q", got)
	}
	c.walk(0, 2, "f")
	for _, flags := range []int{1, 2, 0o1000} {
		c.fails(unix.EROFS, tLopen, 2, flags)
	}
	c.fails(unix.EROFS, tOpen, 2, uint8(1))
	for typ, fields := range map[uint8][]any{
		tLcreate:     {0, "x", 0o102, 0o644, 0},
		tCreate:      {0, "x", uint32(dmDir | 0o755), uint8(0), ""},
		tSymlink:     {0, "x", "y", 0},
		tMknod:       {0, "x", unix.S_IFREG, 0, 0, 0},
		tMkdir:       {0, "x", 0o755, 0},
		tLink:        {0, 2, "x"},
		tRename:      {2, 0, "x"},
		tRenameat:    {0, "f", 0, "x"},
		tUnlinkat:    {0, "f", 0},
		tSetattr:     {2, setMode, 0, 0, 0, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0)},
		tXattrcreate: {2, "user.x", uint64(1), 0},
		tWrite:       {1, uint64(0), 1, []byte("x")},
		tRemove:      {2},
	} {
		c.fails(unix.EROFS, typ, fields...)
	}
	c.fails(unix.EBADF, tClunk, 2) // Tremove ends the fid all the same
	left, _ := os.ReadDir(dir)
	if len(left) != 2 || content(t, dir, "f") != "data" {
		t.Errorf("the directory changed: %v", left)
	}
}

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		write(t, "", dir, fmt.Sprint(i))
	}
	before := openFDs(t)
	c := newServer(t, dir, false)
	c.s.maxFDs = 50
	i := 0
	for ; i < 100; i++ {
		if _, err := c.call(tWalk, walkFields(0, i+1, []string{fmt.Sprint(i)})...); err == unix.EMFILE {
			break
		} else if err != 0 {
			t.Fatal(err)
		}
	}
	if i != 49 {
		t.Errorf("%d files walked to with 50 descriptors", i)
	}
	c.fails(unix.EMFILE, tLopen, 1, 0)
	c.ok(tClunk, 1)
	c.ok(tLopen, 2, 0)
	c.walk(0, 1)
	c.fails(unix.EMFILE, tLcreate, 1, "new", 0o102, 0o644, 0)
	if _, err := os.Lstat(filepath.Join(dir, "new")); err == nil {
		t.Error("a file that could not be opened was created")
	}
	for i := 1000; ; i++ { // clones cost no descriptor but count as fids
		if _, err := c.call(tWalk, walkFields(0, i, nil)...); err == unix.ENFILE {
			break
		} else if err != 0 || i > 2*maxFids {
			t.Fatalf("fid %d: %v", i, err)
		}
	}
	if len(c.s.fids) != maxFids {
		t.Errorf("%d fids", len(c.s.fids))
	}
	c.begin("9P2000.L")
	if len(c.s.fids) != 1 || c.s.fds != 1 || len(c.s.nodes) != 1 {
		t.Errorf("after Tversion: %d fids, %d descriptors, %d nodes", len(c.s.fids), c.s.fds, len(c.s.nodes))
	}
	if err := c.s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := openFDs(t); got != before || c.s.fds != 0 {
		t.Errorf("%d descriptors open after Close, %d before; %d counted", got, before, c.s.fds)
	}
	c.fails(unix.EIO, tVersion, maxMsize, "9P2000.L")
	c.fails(unix.EIO, tGetattr, 0, uint64(0))
}

func TestXattr(t *testing.T) {
	dir := t.TempDir()
	write(t, "x", dir, "f")
	if err := unix.Setxattr(filepath.Join(dir, "f"), "user.test", []byte("v"), 0); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("SKIPPED: no extended attributes in the temporary directory")
	}
	c := newServer(t, dir, false)
	c.walk(0, 1, "f")
	store := func(name, value string, size, flags int) unix.Errno {
		c.walk(1, 2)
		if _, err := c.call(tXattrcreate, 2, name, uint64(size), flags); err != 0 {
			c.ok(tClunk, 2)
			return err
		}
		if value != "" {
			half := len(value) / 2
			c.put(2, 0, value[:half])
			c.put(2, uint64(half), value[half:])
		}
		_, err := c.call(tClunk, 2)
		return err
	}
	long := strings.Repeat("value", 100)
	if err := store("user.long", long, len(long), unix.XATTR_CREATE); err != 0 {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		name, value string
		size, flags int
		want        unix.Errno
	}{
		{"user.long", "x", 1, unix.XATTR_CREATE, unix.EEXIST},
		{"user.none", "x", 1, unix.XATTR_REPLACE, unix.ENODATA},
		{"user.part", "xx", 5, 0, unix.EINVAL},
		{"user.huge", "", maxXattr + 1, 0, unix.E2BIG},
		{"user.flags", "x", 1, 4, unix.EINVAL},
		{"", "x", 1, 0, unix.EINVAL},
	} {
		if err := store(bad.name, bad.value, bad.size, bad.flags); err != bad.want {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	load := func(name string) string {
		t.Helper()
		size := c.ok(tXattrwalk, 1, 3, name).u64()
		got := c.readAll(3, 0, 10)
		got = append(bytes.Clone(got), c.readAll(3, uint64(len(got)), 100000)...)
		if int(size) != len(got) {
			t.Errorf("%q: size %d, %d bytes", name, size, len(got))
		}
		c.fails(unix.EINVAL, tGetattr, 3, uint64(0)) // not a file
		c.fails(unix.EINVAL, tWrite, 3, uint64(0), 1, []byte("x"))
		c.ok(tClunk, 3)
		return string(got)
	}
	if got := load("user.long"); got != long {
		t.Errorf("value %q", got)
	}
	if got := load(""); !strings.Contains("\x00"+got, "\x00user.long\x00") || !strings.Contains("\x00"+got, "\x00user.test\x00") {
		t.Errorf("list %q", got)
	}
	if err := store("user.test", "", 0, 0); err != 0 { // size 0 removes
		t.Error(err)
	}
	c.fails(unix.ENODATA, tXattrwalk, 1, 3, "user.test")
	// Buffers are bounded in sum and given back.
	n := 0
	for ; ; n++ {
		c.walk(1, 100+n)
		if _, err := c.call(tXattrcreate, 100+n, "user.x", uint64(maxXattr), 0); err == unix.ENOSPC {
			break
		} else if err != 0 || n > 1000 {
			t.Fatal(n, err)
		}
	}
	if n != maxXattrBytes/maxXattr {
		t.Errorf("%d buffers", n)
	}
	c.begin("9P2000.L")
	if c.s.xattrBytes != 0 {
		t.Errorf("%d bytes still accounted for", c.s.xattrBytes)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	write(t, "0123456789", dir, "f")
	c := newServer(t, dir, false)
	c.open(1, 2, "f")
	c.open(2, 2, "f")
	lock := func(fid int, typ uint8, start, size, proc int) uint8 {
		t.Helper()
		return c.ok(tLock, fid, typ, 0, uint64(start), uint64(size), proc, "guest").u8()
	}
	const read, write, unlock = unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK
	for i, step := range []struct {
		fid         int
		typ         uint8
		start, size int
		proc        int
		want        uint8
	}{
		{1, write, 0, 4, 100, lockSuccess},
		{2, write, 2, 4, 200, lockBlocked}, // another process
		{2, write, 4, 4, 200, lockSuccess},
		{2, write, 0, 2, 100, lockSuccess}, // the same process through another fid
		{2, unlock, 0, 4, 100, lockSuccess},
		{1, read, 0, 4, 200, lockSuccess},
		{1, read, 0, 4, 100, lockSuccess},
		{1, write, 0, 4, 100, lockBlocked},
		{1, unlock, 0, 0, 200, lockSuccess},
		{1, write, 0, 0, 100, lockSuccess},
		{1, unlock, 5, 1, 300, lockSuccess}, // nothing to unlock
	} {
		if got := lock(step.fid, step.typ, step.start, step.size, step.proc); got != step.want {
			t.Fatalf("step %d %+v: status %d", i, step, got)
		}
	}
	get := func(typ uint8, proc int) (uint8, uint64, uint64) {
		d := c.ok(tGetlock, 2, typ, uint64(3), uint64(1), proc, "guest")
		return d.u8(), d.u64(), d.u64()
	}
	for _, asked := range []uint8{read, write, unlock} { // Linux's client asks with "unlock"
		if typ, start, size := get(asked, 200); typ != write || start != 0 || size != 0 {
			t.Errorf("getlock: type %d at %d+%d", typ, start, size)
		}
		if typ, _, _ := get(asked, 100); typ != unlock {
			t.Errorf("getlock finds the owner's own lock: %d", typ)
		}
	}
	// The host's programs see it.
	host, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	try := func() error {
		l := unix.Flock_t{Type: unix.F_WRLCK}
		return unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, &l)
	}
	if err := try(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the host got the lock too: %v", err)
	}
	c.ok(tClunk, 1)
	if err := try(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a clunk of one of two fids gave up the lock: %v", err)
	}
	c.ok(tClunk, 2)
	if err := try(); err != nil {
		t.Errorf("the last clunk kept the lock: %v", err)
	}
	c.fails(unix.EBADF, tLock, 0, uint8(read), 0, uint64(0), uint64(0), 1, "g")
	c.open(1, 0, "f")
	c.fails(unix.EINVAL, tLock, 1, uint8(3), 0, uint64(0), uint64(0), 1, "g")
	c.fails(unix.EINVAL, tLock, 1, uint8(0), 0, uint64(1<<63), uint64(0), 1, "g")
	c.fails(unix.EINVAL, tLock, 1, uint8(0), 0, uint64(1<<62), uint64(1<<62), 1, "g")
	c.fails(unix.EINVAL, tGetlock, 1, uint8(3), uint64(0), uint64(0), 1, "g")
	if len(c.s.locks) != 0 {
		t.Errorf("%d locks left", len(c.s.locks))
	}
}

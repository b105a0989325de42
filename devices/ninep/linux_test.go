package ninep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountLinux mounts dir through the kernel's own 9P client (v9fs), which talks
// to a server over a pair of sockets. It skips the test where that cannot be.
func mountLinux(t *testing.T, dir string, readOnly bool, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	if list, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(list), "\t9p\n") {
		t.Skip("SKIPPED: this kernel has no 9p file system: Linux's client is not tested here")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(fds[0]), "9p server")
	s, err := NewServer(dir, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { serveStream(t, s, conn) })
	t.Cleanup(func() {
		_ = unix.Close(fds[1])
		_ = conn.Close()
		wg.Wait()
		_ = s.Close()
	})
	at := t.TempDir()
	options = fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%d,version=9p2000.L,msize=262144,%s", fds[1], fds[1], options)
	if err := unix.Mount("share", at, "9p", 0, options); err != nil {
		t.Fatalf("mount -t 9p -o %s: %v", options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// serveStream serves messages that follow each other on a stream.
func serveStream(t *testing.T, s *Server, conn io.ReadWriter) {
	resp := make([]byte, maxMsize)
	for {
		msg := make([]byte, headerSize)
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		n := binary.LittleEndian.Uint32(msg)
		if n < headerSize || n > maxMsize {
			t.Errorf("Linux sends a message of %d bytes", n)
			return
		}
		msg = append(msg, make([]byte, n-headerSize)...)
		if _, err := io.ReadFull(conn, msg[headerSize:]); err != nil {
			return
		}
		if _, err := conn.Write(resp[:s.Serve([][]byte{msg}, [][]byte{resp})]); err != nil {
			return
		}
	}
}

func TestLinuxClient(t *testing.T) {
	for _, cache := range []string{"none", "loose", "mmap"} {
		t.Run("cache="+cache, func(t *testing.T) {
			dir := t.TempDir()
			linuxClient(t, dir, mountLinux(t, dir, false, "cache="+cache))
		})
	}
}

// linuxClient works on the mounted share at and looks at dir behind it.
func linuxClient(t *testing.T, dir, at string) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 3<<20+17)
	for i := range data {
		data[i] = byte(i >> 8 * i)
	}
	check(os.WriteFile(filepath.Join(at, "big"), data, 0o640))
	if got := content(t, at, "big"); got != string(data) {
		t.Error("big: read something else")
	}
	f, err := os.OpenFile(filepath.Join(at, "big"), os.O_WRONLY|os.O_APPEND, 0)
	check(err)
	_, err = f.Write([]byte("end"))
	check(err)
	check(f.Sync())
	check(f.Close())
	if got := content(t, dir, "big"); got != string(data)+"end" {
		t.Error("big: the host sees something else")
	}
	check(os.Truncate(filepath.Join(at, "big"), 5))
	check(os.Chown(filepath.Join(at, "big"), 12, 34))
	check(unix.Chmod(filepath.Join(at, "big"), 0o4751))
	check(os.Chtimes(filepath.Join(at, "big"), time.Unix(1000, 0), time.Unix(2000, 0)))
	var st unix.Stat_t
	check(unix.Stat(filepath.Join(dir, "big"), &st))
	if st.Size != 5 || st.Uid != 12 || st.Gid != 34 || st.Mode != unix.S_IFREG|0o4751 ||
		st.Mtim.Sec != 2000 || st.Atim.Sec != 1000 {
		t.Errorf("attributes on the host: %+v", st)
	}

	check(os.MkdirAll(filepath.Join(at, "d/e/f"), 0o755))
	check(os.WriteFile(filepath.Join(at, "d/e/f/file"), []byte("text"), 0o644))
	open, err := os.OpenFile(filepath.Join(at, "d/e/f/file"), os.O_RDWR, 0)
	check(err)
	check(os.Rename(filepath.Join(at, "d/e"), filepath.Join(at, "moved")))
	check(os.Rename(filepath.Join(at, "moved/f/file"), filepath.Join(at, "file")))
	check(os.Link(filepath.Join(at, "file"), filepath.Join(at, "hard")))
	check(os.Remove(filepath.Join(at, "file")))
	check(os.Remove(filepath.Join(at, "hard")))
	_, err = open.WriteAt([]byte("TE"), 0)
	check(err)
	got, err := io.ReadAll(open)
	check(err)
	if string(got) != "TExt" {
		t.Errorf("an unlinked file holds %q", got)
	}
	_, err = open.Stat()
	check(err)
	check(open.Truncate(1))
	check(open.Close())
	check(os.RemoveAll(filepath.Join(at, "moved")))

	check(os.Symlink("../outside", filepath.Join(at, "link")))
	if to, err := os.Readlink(filepath.Join(at, "link")); err != nil || to != "../outside" {
		t.Errorf("readlink: %q %v", to, err)
	}
	check(unix.Mkfifo(filepath.Join(at, "fifo"), 0o600))
	fifo, err := os.OpenFile(filepath.Join(at, "fifo"), os.O_RDWR, 0) // the client's kernel serves it
	check(err)
	_, err = fifo.WriteString("through")
	check(err)
	check(fifo.Close())
	check(unix.Mknod(filepath.Join(at, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	check(os.WriteFile(filepath.Join(at, "null"), []byte("x"), 0))
	for _, name := range []string{"link", "fifo", "null"} {
		check(os.Remove(filepath.Join(at, name)))
	}

	check(os.Mkdir(filepath.Join(at, "many"), 0o755))
	var want []string
	for i := range 700 {
		want = append(want, fmt.Sprintf("entry-%04d-%s", i, strings.Repeat("x", i%200)))
		check(os.WriteFile(filepath.Join(at, "many", want[i]), nil, 0o644))
	}
	list, err := os.ReadDir(filepath.Join(at, "many"))
	check(err)
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	if sort.Strings(want); fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("%d entries listed of %d", len(names), len(want))
	}
	check(os.RemoveAll(filepath.Join(at, "many")))

	linuxXattr(t, dir, at)
	linuxLock(t, dir, at)
	linuxParallel(t, at)

	var fs, host unix.Statfs_t
	check(unix.Statfs(at, &fs))
	check(unix.Statfs(dir, &host))
	if fs.Blocks != host.Blocks || fs.Bsize != host.Bsize {
		t.Errorf("statfs: %d blocks of %d, host %d of %d", fs.Blocks, fs.Bsize, host.Blocks, host.Bsize)
	}
}

func linuxXattr(t *testing.T, dir, at string) {
	name := "user.test"
	if err := unix.Setxattr(filepath.Join(dir, "big"), name, []byte("v"), 0); err != nil {
		name = "trusted.test" // tmpfs before Linux 6.6
	}
	path := filepath.Join(at, "big")
	value := bytes.Repeat([]byte("value"), 200)
	if err := unix.Setxattr(path, name, value, 0); err != nil {
		t.Fatalf("setxattr %s: %v", name, err)
	}
	buf := make([]byte, 4096)
	if n, err := unix.Getxattr(path, name, buf); err != nil || !bytes.Equal(buf[:n], value) {
		t.Errorf("getxattr: %d bytes, %v", n, err)
	}
	if n, err := unix.Listxattr(path, buf); err != nil || !bytes.Contains(buf[:n], []byte(name)) {
		t.Errorf("listxattr: %q, %v", buf[:max(n, 0)], err)
	}
	if err := unix.Setxattr(path, name, []byte("x"), unix.XATTR_CREATE); !errors.Is(err, unix.EEXIST) {
		t.Errorf("setxattr(XATTR_CREATE): %v", err)
	}
	if err := unix.Removexattr(path, name); err != nil {
		t.Errorf("removexattr: %v", err)
	}
	if _, err := unix.Getxattr(path, name, buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("getxattr of a removed one: %v", err)
	}
}

func linuxLock(t *testing.T, dir, at string) {
	open := func(path string) *os.File {
		f, err := os.OpenFile(filepath.Join(path, "big"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	guest, host := open(at), open(dir)
	set := func(f *os.File, cmd int, typ int16) error {
		return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: typ, Start: 1, Len: 1})
	}
	if err := set(guest, unix.F_SETLK, unix.F_WRLCK); err != nil {
		t.Fatalf("lock: %v", err)
	}
	if err := set(host, unix.F_OFD_SETLK, unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the host locks what the client has locked: %v", err)
	}
	if err := set(guest, unix.F_SETLK, unix.F_UNLCK); err != nil {
		t.Errorf("unlock: %v", err)
	}
	if err := set(host, unix.F_OFD_SETLK, unix.F_WRLCK); err != nil {
		t.Errorf("the host cannot lock: %v", err)
	}
	if err := set(guest, unix.F_SETLK, unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the client locks what the host has locked: %v", err)
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
	if err := unix.FcntlFlock(guest.Fd(), unix.F_GETLK, &l); err != nil || l.Type != unix.F_WRLCK || l.Start != 1 || l.Len != 1 {
		t.Errorf("getlk: %+v %v", l, err)
	}
	if err := set(host, unix.F_OFD_SETLK, unix.F_UNLCK); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(guest.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("flock: %v", err)
	}
}

func linuxParallel(t *testing.T, at string) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				path := filepath.Join(at, fmt.Sprintf("p%d-%d", i, j))
				text := strings.Repeat(path, 50)
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Error(err)
					return
				}
				if got, err := os.ReadFile(path); err != nil || string(got) != text {
					t.Errorf("%s: %d bytes, %v", path, len(got), err)
				}
				if err := os.Rename(path, path+"x"); err != nil {
					t.Error(err)
				}
				if err := os.Remove(path + "x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestLinuxClientReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, "data", dir, "f")
	at := mountLinux(t, dir, true, "cache=none")
	if got := content(t, at, "f"); got != "data" {
		t.Errorf("read %q", got)
	}
	if err := os.WriteFile(filepath.Join(at, "f"), nil, 0o644); err == nil || !strings.Contains(err.Error(), unix.EROFS.Error()) {
		t.Errorf("write: %v", err)
	}
	if err := os.Mkdir(filepath.Join(at, "d"), 0o755); err == nil || !strings.Contains(err.Error(), unix.EROFS.Error()) {
		t.Errorf("mkdir: %v", err)
	}
}

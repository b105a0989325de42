package ninep

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type ustat struct {
	qid          qid
	mode, mtime  uint32
	length       uint64
	name, target string
	uid          uint32
}

func takeStat(t *testing.T, d *decoder) ustat {
	t.Helper()
	size := int(d.u16())
	rest := len(d.b)
	d.take(6)
	st := ustat{qid: takeQid(d), mode: d.u32()}
	d.u32()
	st.mtime, st.length, st.name = d.u32(), d.u64(), d.str(maxName)
	d.str(0)
	d.str(0)
	d.str(0)
	st.target, st.uid = d.str(unix.PathMax), d.u32()
	d.take(8)
	if d.err != 0 || rest-len(d.b) != size {
		t.Fatalf("stat of %d bytes says %d (%v)", rest-len(d.b), size, d.err)
	}
	return st
}

// TestDotU does what Unikraft does where 9P2000.u is its default (up to 0.13).
func TestDotU(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	c.begin("9P2000.u")
	c.fails(unix.ENOENT, tWalk, walkFields(0, 1, []string{"none"})...)

	c.walk(0, 1) // create: clone, Tcreate, clunk
	c.ok(tCreate, 1, "file", 0o640, uint8(uTrunc|1), "")
	c.put(1, 0, "hello")
	c.ok(tClunk, 1)
	c.walk(0, 1, "file")
	d := c.ok(tStat, 1)
	if n := int(d.u16()); n != len(d.b) {
		t.Errorf("Rstat of %d bytes says %d", len(d.b), n)
	}
	if st := takeStat(t, d); st.mode != 0o640 || st.length != 5 || st.name != "file" || st.uid != uint32(os.Getuid()) {
		t.Errorf("stat %+v", st)
	}
	c.walk(1, 2)
	c.ok(tOpen, 2, uint8(2))
	if got := c.readAll(2, 1, 99); string(got) != "ello" {
		t.Errorf("read %q", got)
	}
	c.walk(0, 3)
	c.ok(tCreate, 3, "dir", uint32(dmDir|0o755), uint8(uTrunc|1), "")
	if st, err := os.Stat(filepath.Join(dir, "dir")); err != nil || !st.IsDir() {
		t.Error(err)
	}
	c.walk(0, 4)
	c.ok(tCreate, 4, "link", uint32(dmSymlink|0o777), uint8(0), "../target")
	d = c.ok(tStat, 4)
	d.u16()
	if st := takeStat(t, d); st.mode&dmSymlink == 0 || st.target != "../target" {
		t.Errorf("stat %+v", st)
	}
	c.walk(0, 5)
	c.fails(unix.EOPNOTSUPP, tCreate, 5, "dev", uint32(dmDevice|0o755), uint8(0), "c 5 0")

	// wstat
	touch := func(mode uint32, mtime uint32, length uint64, name string) []any {
		body := encoder{}
		body.u16(0)
		body.u32(math.MaxUint32)
		body.b = append(body.b, strings.Repeat("\xff", qidSize)...)
		body.u32(mode)
		body.u32(math.MaxUint32)
		body.u32(mtime)
		body.u64(length)
		body.str(name)
		for range 4 {
			body.str("")
		}
		for range 3 {
			body.u32(math.MaxUint32)
		}
		return []any{1, uint16(len(body.b) + 2), uint16(len(body.b)), body.b}
	}
	const none, none64 = math.MaxUint32, math.MaxUint64
	c.ok(tWstat, touch(none, none, none64, "")...) // fsync
	c.ok(tWstat, touch(0o600|dmSetuid, 1234, 2, "renamed")...)
	if st, err := os.Stat(filepath.Join(dir, "renamed")); err != nil || st.Size() != 2 || st.ModTime().Unix() != 1234 ||
		st.Mode() != 0o600|os.ModeSetuid {
		t.Errorf("after wstat: %+v %v", st, err)
	}
	c.fails(unix.EINVAL, tWstat, touch(none, none, none64, "a/b")...)
	c.ok(tRemove, 1)

	// Directories are read as stats.
	long := strings.Repeat("n", 200)
	for i := range 50 {
		write(t, "", dir, long+string(rune('a'+i)))
	}
	c.walk(0, 6)
	c.ok(tOpen, 6, uint8(0))
	for range 2 { // from the start again
		seen := make(map[string]bool)
		for off := uint64(0); ; {
			p := c.readAll(6, off, 1000)
			if len(p) == 0 {
				break
			}
			off += uint64(len(p))
			for d := (&decoder{b: p}); len(d.b) > 0; {
				st := takeStat(t, d)
				if seen[st.name] {
					t.Fatalf("%q comes twice", st.name)
				}
				seen[st.name] = true
				if st.name == "link" && st.target != "../target" {
					t.Errorf("link: %+v", st)
				}
				if (st.name == "dir") != (st.mode&dmDir != 0 && st.qid.typ == qtDir) {
					t.Errorf("%q: %+v", st.name, st)
				}
			}
		}
		if len(seen) != 52 {
			t.Errorf("%d entries", len(seen))
		}
	}
	c.fails(unix.EINVAL, tRead, 6, uint64(5), 1000)
	c.readAll(6, 0, 1000)
	c.fails(unix.EINVAL, tRead, 6, uint64(0), 50) // no room for one
}

// TestUnikraftDotL does what today's Unikraft does in a 9P2000.L session.
func TestUnikraftDotL(t *testing.T) {
	dir := t.TempDir()
	c := newServer(t, dir, false)
	c.walk(0, 1) // mkdir goes by Tcreate, with a write mode
	c.ok(tCreate, 1, "d", uint32(dmDir|0o755), uint8(uTrunc|1), "")
	c.ok(tClunk, 1)
	c.walk(0, 1, "d") // vop_create never clunks this fid
	c.walk(1, 2)
	c.ok(tLcreate, 2, "f", oAppend|1, unix.S_IFREG|0o644, 0)
	c.walk(1, 3, "f")
	c.walk(3, 4) // every write: clone, open, write, clunk
	c.ok(tLopen, 4, 1)
	c.put(4, 0, "text")
	c.ok(tClunk, 4)
	c.walk(3, 4)
	c.ok(tLopen, 4, 0o100000) // O_LARGEFILE
	if got := c.readAll(4, 0, 99); string(got) != "text" {
		t.Errorf("read %q", got)
	}
	c.ok(tClunk, 4)
	// A read's reply header has exactly 11 bytes, and an error fits them.
	resp := [][]byte{make([]byte, readHeader), make([]byte, 4096)}
	if n := c.s.Serve([][]byte{message(tRead, 99, uint64(0), 4096)}, resp); n != readHeader || resp[0][4] != rLerror {
		t.Errorf("error of %d bytes", n)
	}
	c.ok(tRemove, 3)
	c.ok(tRemove, 1)
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left over: %v", list)
	}
}

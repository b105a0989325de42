package ninep

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// layouts gives the fields of each message: f fid, n name, s string, b byte,
// h 16 bits, u 32 bits, q 64 bits, w names of a walk, d counted data, m stat.
var layouts = []struct {
	typ    uint8
	fields string
}{
	{tStatfs, "f"}, {tLopen, "fu"}, {tLcreate, "fnuuu"}, {tSymlink, "fnsu"}, {tMknod, "fnuuuu"}, {tRename, "ffn"},
	{tReadlink, "f"}, {tGetattr, "fq"}, {tSetattr, "fuuuuqqqqq"}, {tXattrwalk, "ffs"}, {tXattrcreate, "fsqu"},
	{tReaddir, "fqu"}, {tFsync, "fu"}, {tLock, "fbuqqus"}, {tGetlock, "fbqqus"}, {tLink, "ffn"}, {tMkdir, "fnuu"},
	{tRenameat, "fnfn"}, {tUnlinkat, "fnu"}, {tVersion, "us"}, {tAuth, "fssu"}, {tAttach, "ffssu"}, {tFlush, "h"},
	{tWalk, "ffw"}, {tOpen, "fb"}, {tCreate, "fnubs"}, {tRead, "fqu"}, {tWrite, "fqd"}, {tClunk, "f"}, {tRemove, "f"},
	{tStat, "f"}, {tWstat, "fhm"}, {tWalk, "ffw"}, {tWalk, "ffw"}, {tLopen, "fu"}, {tLcreate, "fnuuu"},
}

var (
	fuzzNames = []string{"a", "b", "dir", "file", "out", "secret", "..", ".", "", "a/b", "../secret", "x\x00y",
		"user.x", "9P2000.L", "9P2000.u", strings.Repeat("n", 255), strings.Repeat("n", 256), "share", "../../secret", "/"}
	fuzzNumbers = []uint64{0, 1, 2, 3, 4, 10, 0o100, 0o644, 0o102, 0o1102, 0o2001, 0x200, unix.S_IFREG | 0o600, unix.S_IFIFO | 0o600,
		4096, 8192, 65536, 1 << 20, 1 << 31, 1<<32 - 1, dmDir | 0o755, dmSymlink, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1 << 40, 0x1ff, setSize, 13, 500}
)

// program makes messages of fuzz input.
type program struct{ in []byte }

func (p *program) next() byte {
	if len(p.in) == 0 {
		return 0
	}
	b := p.in[0]
	p.in = p.in[1:]
	return b
}

func (p *program) name() string   { return fuzzNames[int(p.next())%len(fuzzNames)] }
func (p *program) number() uint64 { return fuzzNumbers[int(p.next())%len(fuzzNumbers)] }

func (p *program) message() []byte {
	op := p.next()
	l := layouts[int(op)%len(layouts)]
	var fields []any
	for _, kind := range l.fields {
		switch kind {
		case 'f':
			fid := uint32(p.next() % 8)
			if fid == 7 {
				fid = noID
			}
			fields = append(fields, fid)
		case 'n', 's':
			fields = append(fields, p.name())
		case 'b':
			fields = append(fields, p.next())
		case 'h':
			fields = append(fields, uint16(p.next()))
		case 'u':
			fields = append(fields, uint32(p.number()))
		case 'q':
			fields = append(fields, p.number())
		case 'w':
			n := p.next() % 8
			fields = append(fields, uint16(n))
			for range n {
				fields = append(fields, p.name())
			}
		case 'd':
			n := int(p.next()) * 8
			fields = append(fields, n, make([]byte, n))
		case 'm':
			fields = append(fields, make([]byte, 2+2+4+qidSize), uint32(p.number()), uint32(p.number()), uint32(p.number()), p.number(),
				p.name(), "", "", "", "", uint32(p.number()), uint32(p.number()), uint32(0))
		}
	}
	msg := message(l.typ, fields...)
	switch p.next() {
	case 1: // a byte off
		msg[int(p.next())%len(msg)] = p.next()
	case 2: // cut off
		msg = msg[:int(p.next())%(len(msg)+1)]
	case 3: // cut off, with the right length
		msg = msg[:max(headerSize, int(p.next())%(len(msg)+1))]
		binary.LittleEndian.PutUint32(msg, uint32(len(msg)))
	}
	return msg
}

// fuzzDir is t.TempDir for trees whose directories the guest has locked.
func fuzzDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "ninep-fuzz-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if os.RemoveAll(dir) == nil {
			return
		}
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(path, 0o700)
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// FuzzServe runs message sequences: nothing panics, nothing outside the share
// changes or is read, and afterwards no descriptor and no buffer is left.
func FuzzServe(f *testing.F) {
	f.Add([]byte{})
	for i := range layouts {
		f.Add([]byte{byte(i), 0, 1, 2, 3, 4, 5, 6, 7, 0})
		f.Add([]byte{23, 0, 1, 1, 3, 0, 33, 1, 2, 0, byte(i), 1, 2, 3, 0, 1, 0, 1, 0, 0})
		f.Add([]byte{23, 0, 1, 1, 2, 0, 35, 1, 0, 8, 7, 0, 0, byte(i), 1, 1, 4, 1, 1, 1, 1, 1, 0})
	}
	f.Add([]byte{23, 0, 1, 3, 4, 5, 5, 0, 23, 0, 2, 2, 6, 5, 0, 33, 2, 0, 0, 26, 2, 0, 16, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		outside := fuzzDir(t)
		share := filepath.Join(outside, "share")
		mkdir(t, share, "dir")
		write(t, "secret", outside, "secret")
		write(t, "inside", share, "file")
		write(t, "inside", share, "dir", "secret")
		if err := os.Symlink(outside, filepath.Join(share, "out")); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(outside)
		if err != nil {
			t.Fatal(err)
		}
		c := newServer(t, share, len(in) > 0 && in[0] == 0xff)
		c.room = 64 << 10
		p := program{in[:min(len(in), 2000)]}
		for len(p.in) > 0 {
			typ, body := c.raw(p.message())
			if typ == tRead+1 && strings.Contains(string(body), "secret") && !c.s.dotu {
				t.Fatalf("read from outside the share: %q", body)
			}
		}
		if err := c.s.Close(); err != nil {
			t.Fatal(err)
		}
		if s := c.s; s.fds != 0 || len(s.fids) != 0 || len(s.nodes) != 0 || len(s.locks) != 0 || s.xattrBytes != 0 {
			t.Fatalf("left after Close: %d descriptors, %d fids, %d nodes, %d locks, %d bytes", s.fds, len(s.fids), len(s.nodes), len(s.locks), s.xattrBytes)
		}
		unchanged(t, outside)
		after, err := os.Stat(outside)
		if err != nil {
			t.Fatal(err)
		}
		if !after.ModTime().Equal(before.ModTime()) || after.Mode() != before.Mode() {
			t.Fatal("the directory around the share changed")
		}
	})
}

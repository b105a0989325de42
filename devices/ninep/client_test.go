package ninep

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// client speaks 9P to a server, one request at a time. Messages go in and out
// in oddly split slices.
type client struct {
	t    testing.TB
	s    *Server
	room int // writable bytes of a request
	resp []byte
}

// message builds a T-message of type typ from its fields: integers, strings,
// and []byte taken as it is.
func message(typ uint8, fields ...any) []byte {
	e := encoder{b: make([]byte, headerSize)}
	for _, f := range fields {
		switch v := f.(type) {
		case uint8:
			e.u8(v)
		case uint16:
			e.u16(v)
		case uint32:
			e.u32(v)
		case uint64:
			e.u64(v)
		case int: // fids and most other fields
			e.u32(uint32(v))
		case string:
			e.str(v)
		case []byte:
			e.b = append(e.b, v...)
		default:
			panic(fmt.Sprintf("field of type %T", f))
		}
	}
	binary.LittleEndian.PutUint32(e.b, uint32(len(e.b)))
	e.b[4] = typ
	e.b[5], e.b[6] = 0x34, 0x12
	return e.b
}

// split cuts b at odd places.
func split(b []byte) [][]byte {
	var parts [][]byte
	for _, n := range []int{3, 1, 13, 0, 2, 300} {
		n = min(n, len(b))
		parts = append(parts, b[:n:n])
		b = b[n:]
	}
	return append(parts, b)
}

// raw sends a message as it is and returns the reply's type and its body, which
// is valid until the next one.
func (c *client) raw(msg []byte) (uint8, []byte) {
	c.t.Helper()
	if cap(c.resp) < c.room {
		c.resp = make([]byte, c.room)
	}
	resp := c.resp[:c.room]
	n := c.s.Serve(split(msg), split(resp))
	if n == 0 {
		return 0, nil
	}
	if n < headerSize || n > len(resp) || int(binary.LittleEndian.Uint32(resp)) != n {
		c.t.Fatalf("reply of %d bytes says size %d", n, binary.LittleEndian.Uint32(resp))
	}
	if len(msg) >= headerSize && !bytes.Equal(resp[5:7], msg[5:7]) {
		c.t.Fatalf("reply with tag %x to %x", resp[5:7], msg[5:7])
	}
	return resp[4], resp[headerSize:n]
}

// call returns the fields of the reply or the errno in it.
func (c *client) call(typ uint8, fields ...any) (*decoder, unix.Errno) {
	c.t.Helper()
	rtyp, body := c.raw(message(typ, fields...))
	d := &decoder{b: body}
	switch rtyp {
	case rLerror:
		return nil, unix.Errno(d.u32())
	case rError:
		text, err := d.str(maxName), unix.Errno(d.u32())
		if text != err.Error() {
			c.t.Fatalf("Rerror %q for errno %d", text, err)
		}
		return nil, err
	case typ + 1:
		return d, 0
	}
	c.t.Fatalf("reply of type %d to a request of type %d", rtyp, typ)
	return nil, 0
}

// ok is call for what must succeed.
func (c *client) ok(typ uint8, fields ...any) *decoder {
	c.t.Helper()
	d, err := c.call(typ, fields...)
	if err != 0 {
		c.t.Fatalf("request %d %v: %v", typ, fields, err)
	}
	return d
}

// fails is call for what must fail with one of the given errors.
func (c *client) fails(want unix.Errno, typ uint8, fields ...any) {
	c.t.Helper()
	if _, err := c.call(typ, fields...); err != want {
		c.t.Fatalf("request %d %v: %v (%d), want %v", typ, fields, err, err, want)
	}
}

// walk makes newfid from fid.
func (c *client) walk(fid, newfid int, names ...string) {
	c.t.Helper()
	d := c.ok(tWalk, walkFields(fid, newfid, names)...)
	if n := int(d.u16()); n != len(names) {
		c.t.Fatalf("walk %q stopped after %d names", names, n)
	}
}

func walkFields(fid, newfid int, names []string) []any {
	f := []any{fid, newfid, uint16(len(names))}
	for _, n := range names {
		f = append(f, n)
	}
	return f
}

// open walks to a file and opens it.
func (c *client) open(fid int, flags int, names ...string) {
	c.t.Helper()
	c.walk(0, fid, names...)
	c.ok(tLopen, fid, flags)
}

func (c *client) readAll(fid int, off uint64, n int) []byte {
	c.t.Helper()
	d := c.ok(tRead, fid, off, n)
	if count := int(d.u32()); count != len(d.b) {
		c.t.Fatalf("Rread count %d with %d bytes", count, len(d.b))
	}
	return d.b
}

func (c *client) put(fid int, off uint64, data string) {
	c.t.Helper()
	if n := c.ok(tWrite, fid, off, len(data), []byte(data)).u32(); int(n) != len(data) {
		c.t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

// attr is the part of Rgetattr that tests look at.
type attr struct {
	qid            qid
	mode, uid, gid uint32
	nlink, size    uint64
	mtime          uint64
}

func (c *client) getattr(fid int) attr {
	c.t.Helper()
	d := c.ok(tGetattr, fid, uint64(gotBasic))
	if v := d.u64(); v&gotBasic != gotBasic {
		c.t.Fatalf("Rgetattr valid %#x", v)
	}
	a := attr{qid: takeQid(d), mode: d.u32(), uid: d.u32(), gid: d.u32(), nlink: d.u64()}
	d.u64()
	a.size = d.u64()
	d.take(8 + 8 + 16)
	a.mtime = d.u64()
	d.take(8 + 32 + 16)
	if d.err != 0 || len(d.b) != 0 {
		c.t.Fatalf("Rgetattr has the wrong length")
	}
	return a
}

func takeQid(d *decoder) qid { return qid{d.u8(), d.u32(), d.u64()} }

// newServer serves dir, with the session begun and fid 0 at the root.
func newServer(t testing.TB, dir string, readOnly bool) *client {
	t.Helper()
	s, err := NewServer(dir, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := &client{t: t, s: s, room: 1 << 20}
	c.begin("9P2000.L")
	return c
}

func (c *client) begin(version string) {
	c.t.Helper()
	d := c.ok(tVersion, maxMsize, version)
	if msize, v := d.u32(), d.str(maxName); msize != maxMsize || v != version {
		c.t.Fatalf("Rversion %d %q", msize, v)
	}
	d = c.ok(tAttach, 0, uint32(noID), "root", "", uint32(noID))
	if q := takeQid(d); q.typ != qtDir || q.path == 0 {
		c.t.Fatalf("Rattach %+v", q)
	}
}

func write(t testing.TB, data string, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path...), 0o755); err != nil {
		t.Fatal(err)
	}
}

func content(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// openFDs counts the process's descriptors.
func openFDs(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newImage(t testing.TB, size int) string {
	path := filepath.Join(t.TempDir(), "disk")
	content := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openRaw(t testing.TB, path string, readOnly, direct bool) *Raw {
	d, err := OpenRaw(path, readOnly, direct)
	if errors.Is(err, unix.EINVAL) && direct {
		t.Skip("no direct I/O on the file system of the temporary folder")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newBlk(t testing.TB, disk Disk) *Blk {
	b, err := NewBlk(disk, "serial-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// blkClient makes requests as a driver does and waits for each.
type blkClient struct {
	t testing.TB
	m *fakeMachine
	d *driver
	r *guestRing
}

const blkStatusAt, blkHeaderAt = 0x90000, 0x91000

func newBlkClient(t testing.TB, m *fakeMachine, d *driver, features uint64) *blkClient {
	c := &blkClient{t, m, d, newGuestRing(t, m.mem, ringAt, blkQueueSize)}
	d.probe(features, c.r)
	return c
}

// do runs a request whose data lies in the given guest buffers. It returns
// the status byte and the used length.
func (c *blkClient) do(kind uint32, at uint64, data ...guestBuffer) (status byte, written uint32) {
	var h [16]byte
	binary.LittleEndian.PutUint32(h[:], kind)
	binary.LittleEndian.PutUint64(h[8:], at)
	c.r.put(blkHeaderAt, h[:])
	b := append([]guestBuffer{{blkHeaderAt, 16, false}}, data...)
	return c.raw(append(b, guestBuffer{blkStatusAt, 1, true})...)
}

// raw runs a request made of any descriptors; its status byte, if it has one,
// is at blkStatusAt.
func (c *blkClient) raw(b ...guestBuffer) (status byte, written uint32) {
	c.r.put(blkStatusAt, []byte{0xaa})
	c.r.add(b...)
	c.d.kick(0)
	c.m.await(c.t, "block request", func() (ok bool) { _, written, ok = c.r.take(); return ok })
	c.d.ack()
	return c.r.get(blkStatusAt, 1)[0], written
}

// TestBlkIntegrity writes and reads at random through every transport and
// compares with a model and, at the end, with the file.
func TestBlkIntegrity(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		const size = 256 << 10
		path := newImage(t, size)
		model, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d := attach(newBlk(t, openRaw(t, path, false, false)), func(err error) { t.Error(err) })
		c := newBlkClient(t, m, d, ^uint64(0))
		if d.config(0, 4) != size/512 || d.config(4, 4) != 0 || d.config(12, 4) != 254 || d.config(20, 4) != 512 || d.config(21, 1) != 2 {
			t.Error("configuration space")
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 150 {
			n := 1 + rng.IntN(16)
			at := rng.IntN(size/512 - n + 1)
			if rng.IntN(8) == 0 { // zero one range and forget nothing of it
				r := binary.LittleEndian.AppendUint64(nil, uint64(at))
				r = binary.LittleEndian.AppendUint64(r, uint64(n)|uint64(rng.IntN(2))<<32)
				c.r.put(dataAt, append(r, r...))
				if status, _ := c.do(blkZero, 0, guestBuffer{dataAt, 2 * blkRangeBytes, false}); status != blkOK {
					t.Fatalf("zero %d at %d: status %d", n, at, status)
				}
				clear(model[at*512:][:n*512])
				continue
			}
			data := make([]byte, n*512)
			// Split the data over descriptors at odd places.
			var bufs []guestBuffer
			addr := uint64(dataAt + rng.IntN(64))
			for left := uint32(n * 512); left > 0; {
				part := min(left, 1+uint32(rng.IntN(3000)))
				bufs = append(bufs, guestBuffer{addr, part, false})
				addr += uint64(part) + uint64(rng.IntN(8))
				left -= part
			}
			if rng.IntN(2) == 0 {
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				copy(model[at*512:], data)
				for i, off := 0, 0; i < len(bufs); i++ {
					c.r.put(bufs[i].addr, data[off:off+int(bufs[i].len)])
					off += int(bufs[i].len)
				}
				if status, written := c.do(blkOut, uint64(at), bufs...); status != blkOK || written != 1 {
					t.Fatalf("write %d at %d: status %d, %d bytes", n, at, status, written)
				}
				continue
			}
			for i := range bufs {
				bufs[i].writable = true
			}
			if status, written := c.do(blkIn, uint64(at), bufs...); status != blkOK || written != uint32(n*512+1) {
				t.Fatalf("read %d at %d: status %d, %d bytes", n, at, status, written)
			}
			data = data[:0]
			for _, b := range bufs {
				data = append(data, c.r.get(b.addr, int(b.len))...)
			}
			if !bytes.Equal(data, model[at*512:][:n*512]) {
				t.Fatalf("read %d at %d: wrong data", n, at)
			}
		}
		if status, _ := c.do(blkSync, 0); status != blkOK {
			t.Errorf("flush: status %d", status)
		}
		file, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(file, model) {
			t.Errorf("the file differs from what was written (%v)", err)
		}
	})
}

// fakeDisk counts what reaches it.
type fakeDisk struct {
	mu                    sync.Mutex
	readOnly              bool
	err                   error
	reads, writes, syncs  int
	lastOff, lastLen, cap int64
}

func (d *fakeDisk) Discard(off, n uint64) error { return d.WriteZeroes(off, n) }
func (d *fakeDisk) WriteZeroes(off, n uint64) error {
	return d.WriteVec(Buffers{make([]byte, n)}, int64(off))
}
func (d *fakeDisk) BlockSize() uint32 { return 512 }
func (d *fakeDisk) ReadOnly() bool    { return d.readOnly }
func (d *fakeDisk) Size() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.cap)
}
func (d *fakeDisk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	return d.err
}
func (d *fakeDisk) ReadVec(b Buffers, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads, d.lastOff, d.lastLen = d.reads+1, off, int64(b.Len())
	return d.err
}
func (d *fakeDisk) WriteVec(b Buffers, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes, d.lastOff, d.lastLen = d.writes+1, off, int64(b.Len())
	return d.err
}

func TestBlkRequests(t *testing.T) {
	const capacity = 64 << 10
	data := func(n uint32, w bool) guestBuffer { return guestBuffer{dataAt, n, w} }
	const untouched = 0xaa
	for _, x := range []struct {
		name    string
		ro      bool
		err     error
		kind    uint32
		at      uint64
		data    []guestBuffer
		status  byte
		written uint32
		calls   int // that reach the disk
	}{
		{name: "last sector", kind: blkIn, at: 127, data: []guestBuffer{data(512, true)}, status: blkOK, written: 513, calls: 1},
		{name: "one sector too far", kind: blkIn, at: 128, data: []guestBuffer{data(512, true)}, status: blkIOError, written: 1},
		{name: "ends too far", kind: blkOut, at: 127, data: []guestBuffer{data(1024, false)}, status: blkIOError, written: 1},
		{name: "sector wraps", kind: blkIn, at: 1<<55 + 1, data: []guestBuffer{data(512, true)}, status: blkIOError, written: 1},
		{name: "highest sector", kind: blkOut, at: 1<<64 - 1, data: []guestBuffer{data(512, false)}, status: blkIOError, written: 1},
		{name: "part of a sector", kind: blkIn, data: []guestBuffer{data(511, true)}, status: blkIOError, written: 1},
		{name: "part of a sector to write", kind: blkOut, data: []guestBuffer{data(513, false)}, status: blkIOError, written: 1},
		{name: "read-only", ro: true, kind: blkOut, data: []guestBuffer{data(512, false)}, status: blkIOError, written: 1},
		{name: "read fails", err: errTest, kind: blkIn, data: []guestBuffer{data(512, true)}, status: blkIOError, written: 1, calls: 1},
		{name: "write fails", err: errTest, kind: blkOut, data: []guestBuffer{data(512, false)}, status: blkIOError, written: 1, calls: 1},
		{name: "flush fails", err: errTest, kind: blkSync, status: blkIOError, written: 1, calls: 1},
		{name: "flush", kind: blkSync, status: blkOK, written: 1, calls: 1},
		{name: "serial", kind: blkGetID, data: []guestBuffer{data(20, true)}, status: blkOK, written: 21},
		{name: "short serial", kind: blkGetID, data: []guestBuffer{data(3, true)}, status: blkOK, written: 4},
		{name: "serial in a large buffer", kind: blkGetID, data: []guestBuffer{data(100, true)}, status: blkOK, written: 21},
		// The data is 0xee all over: a sector, or a flag, that does not exist.
		{name: "zero too far", kind: blkZero, data: []guestBuffer{data(16, false)}, status: blkIOError, written: 1},
		{name: "zero nothing", kind: blkZero, status: blkIOError, written: 1},
		{name: "zero part of a range", kind: blkZero, data: []guestBuffer{data(15, false)}, status: blkIOError, written: 1},
		{name: "discard too much", kind: blkForget, data: []guestBuffer{data(17*16, false)}, status: blkIOError, written: 1},
		{name: "discard read-only", ro: true, kind: blkForget, data: []guestBuffer{data(16, false)}, status: blkIOError, written: 1},
		{name: "unknown", kind: 99, status: blkUnsupported, written: 1},
		{name: "SCSI", kind: 2, status: blkUnsupported, written: 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := newFakeMachine(t)
			disk := &fakeDisk{readOnly: x.ro, err: x.err, cap: capacity}
			d := newMMIODriver(t, m, newBlk(t, disk), nil)
			c := newBlkClient(t, m, d, ^uint64(0))
			c.r.put(dataAt, bytes.Repeat([]byte{0xee}, 128))
			status, written := c.do(x.kind, x.at, x.data...)
			disk.mu.Lock()
			defer disk.mu.Unlock()
			if calls := disk.reads + disk.writes + disk.syncs; status != x.status || written != x.written || calls != x.calls {
				t.Errorf("status %d, %d bytes, %d calls", status, written, calls)
			}
			if x.kind == blkGetID {
				want := append([]byte("serial-1\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0xee)
				if n := int(written - 1); !bytes.Equal(c.r.get(dataAt, n), want[:n]) || c.r.get(dataAt+uint64(n), 1)[0] != 0xee {
					t.Errorf("serial %q", c.r.get(dataAt, n+1))
				}
			}
		})
	}
	t.Run("layouts", func(t *testing.T) {
		m := newFakeMachine(t)
		disk := &fakeDisk{cap: capacity}
		last := func() (off, n int64) {
			disk.mu.Lock()
			defer disk.mu.Unlock()
			return disk.lastOff, disk.lastLen
		}
		c := newBlkClient(t, m, newMMIODriver(t, m, newBlk(t, disk), nil), 0)
		c.r.put(dataAt, []byte{blkOut, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0})
		// Header split and joined with data, status alone.
		if s, _ := c.raw(guestBuffer{dataAt, 5, false}, guestBuffer{dataAt + 5, 11 + 100, false},
			guestBuffer{dataAt + 116, 412, false}, guestBuffer{blkStatusAt, 1, true}); s != blkOK {
			t.Errorf("status %d", s)
		}
		if off, n := last(); off != 1024 || n != 512 {
			t.Errorf("wrote %d at %d", n, off)
		}
		if disk.mu.Lock(); disk.syncs != 1 {
			t.Error("a driver without FLUSH needs write-through")
		}
		disk.mu.Unlock()
		// Status at the end of the data's descriptor.
		c.r.put(dataAt, []byte{blkIn})
		if s, n := c.raw(guestBuffer{dataAt, 16, false}, guestBuffer{blkStatusAt - 512, 513, true}); s != blkOK || n != 513 {
			t.Errorf("status %d, %d bytes", s, n)
		}
		if s, n := c.raw(guestBuffer{dataAt, 15, false}, guestBuffer{blkStatusAt, 1, true}); s != blkIOError || n != 1 {
			t.Errorf("short header: status %d, %d bytes", s, n)
		}
		if s, n := c.raw(guestBuffer{blkStatusAt, 1, true}); s != blkIOError || n != 1 {
			t.Errorf("no header: status %d, %d bytes", s, n)
		}
		if s, n := c.raw(guestBuffer{dataAt, 16, false}); s != untouched || n != 0 {
			t.Errorf("no status: %d, %d bytes", s, n)
		}
		// More data than one request may move, all in the same guest page.
		disk.mu.Lock()
		disk.cap, disk.reads = 1<<40, 0
		disk.mu.Unlock()
		huge := []guestBuffer{{dataAt, 16, false}}
		for range 100 {
			huge = append(huge, guestBuffer{0x200000, 2 << 20, true})
		}
		if s, _ := c.raw(append(huge, guestBuffer{blkStatusAt, 1, true})...); s != blkIOError {
			t.Errorf("huge: status %d", s)
		}
		if disk.mu.Lock(); disk.reads != 0 {
			t.Error("huge request carried out")
		}
		disk.mu.Unlock()
	})
	if _, err := NewBlk(&fakeDisk{cap: 512}, strings.Repeat("x", 21), 1); err == nil {
		t.Error("a long serial number is cut off in silence")
	}
	if f := newBlk(t, &fakeDisk{readOnly: true}).Features(); f&blkReadOnly == 0 {
		t.Error("read-only is not offered")
	}
}

func TestRaw(t *testing.T) {
	path := newImage(t, 4096)
	fails := func(name, path string, ro bool, want string) {
		t.Helper()
		d, err := OpenRaw(path, ro, false)
		if err == nil {
			_ = d.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := openRaw(t, path, true, false)
	b := openRaw(t, path, true, false)
	fails("writer beside readers", path, false, "another process uses it")
	if a.Note() != "" || a.Size() != 4096 || !a.ReadOnly() {
		t.Errorf("note %q, size %d", a.Note(), a.Size())
	}
	_, _ = a.Close(), b.Close()
	w := openRaw(t, path, false, false)
	fails("reader beside a writer", path, true, "another process uses it")
	fails("two writers", path, false, "another process uses it")
	if err := w.WriteVec(Buffers{[]byte("ab"), []byte("cd")}, 1000); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4)
	if err := w.ReadVec(Buffers{got[:1], got[1:]}, 1000); err != nil || string(got) != "abcd" {
		t.Errorf("%q, %v", got, err)
	}
	// The file shrinks behind the monitor's back.
	if err := os.Truncate(path, 1002); err != nil {
		t.Fatal(err)
	}
	if err := w.ReadVec(Buffers{got}, 1000); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read behind the end: %v", err)
	}
	dir := t.TempDir()
	fails("folder", dir, true, "neither a regular file nor a block device")
	fails("missing", filepath.Join(dir, "nothing"), false, "no such file")
	fails("empty", newImage(t, 0), false, "0 bytes")
	fails("short", newImage(t, 511), false, "511 bytes")
	odd := openRaw(t, newImage(t, 1000), false, false)
	if odd.Size() != 512 || !strings.Contains(odd.Note(), "last 488 bytes") {
		t.Errorf("size %d, note %q", odd.Size(), odd.Note())
	}
}

// TestRawDirect moves data between a disk opened with O_DIRECT and memory that
// direct I/O cannot address.
func TestRawDirect(t *testing.T) {
	path := newImage(t, 1<<20)
	model, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := openRaw(t, path, false, true)
	mem := make([]byte, 800<<10)
	for i := range mem {
		mem[i] = byte(i * 7)
	}
	n := 600 << 10
	b := Buffers{mem[3:1000], mem[1001 : 1001+n-997]}
	if err := d.WriteVec(b, 8192); err != nil {
		t.Fatal(err)
	}
	copy(model[8192:], append(append([]byte{}, b[0]...), b[1]...))
	got := make([]byte, n+8192+1)
	if err := d.ReadVec(Buffers{got[1:]}, 4096); err != nil || !bytes.Equal(got[1:], model[4096:][:len(got)-1]) {
		t.Errorf("direct read differs (%v)", err)
	}
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
	if file, err := os.ReadFile(path); err != nil || !bytes.Equal(file, model) {
		t.Errorf("the file differs (%v)", err)
	}
}

// TestBlkQueues has several queues write and read the same disk at the same
// time, each its own sectors, and flush.
func TestBlkQueues(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		const queues, rounds = 3, 64
		path := newImage(t, queues*rounds*sector)
		dev, err := NewBlk(openRaw(t, path, false, false), "", queues)
		if err != nil {
			t.Fatal(err)
		}
		d := attach(dev, func(err error) { t.Error(err) })
		if dev.Features()&blkMultiQueue == 0 || d.config(34, 2) != queues {
			t.Errorf("features %#x, %d queues", dev.Features(), d.config(34, 2))
		}
		var rings [queues]*guestRing
		for q := range rings {
			rings[q] = newGuestRing(t, m.mem, uint64(1+q)*ringAt, blkQueueSize)
		}
		d.probe(^uint64(0), rings[:]...)
		want := make([]byte, queues*rounds*sector)
		for i := range rounds {
			for q, r := range rings {
				at := uint64(0x100000 + q*0x10000)
				data := bytes.Repeat([]byte{byte(i), byte(q)}, sector/2)
				copy(want[(i*queues+q)*sector:], data)
				r.put(at, binary.LittleEndian.AppendUint64([]byte{blkOut, 7: 0}, uint64(i*queues+q)))
				r.put(at+16, data)
				r.put(at+0x1000, []byte{blkIn, 15: 0})
				r.put(at+0x1008, r.get(at+8, 8))
				r.put(at+0x2000, []byte{blkSync, 15: 0})
				r.add(guestBuffer{at, 16 + sector, false}, guestBuffer{at + 0x3000, 1, true})
				r.add(guestBuffer{at + 0x1000, 16, false}, guestBuffer{at + 0x1010, sector + 1, true})
				r.add(guestBuffer{at + 0x2000, 16, false}, guestBuffer{at + 0x3001, 1, true})
			}
			for q := range rings {
				d.kick(q)
			}
			for q, r := range rings {
				for range 3 {
					m.await(t, "block request", func() bool { _, _, ok := r.take(); d.ack(); return ok })
				}
				at := uint64(0x100000 + q*0x10000)
				if got := r.get(at+0x1010, sector); !bytes.Equal(got, want[(i*queues+q)*sector:][:sector]) || r.get(at+0x3001, 1)[0] != blkOK {
					t.Fatalf("round %d, queue %d: read % x...", i, q, got[:8])
				}
			}
		}
		if file, err := os.ReadFile(path); err != nil || !bytes.Equal(file, want) {
			t.Errorf("the file differs from what was written (%v)", err)
		}
		// A driver that knows one queue only.
		d.reset()
		c := newBlkClient(t, m, d, ^uint64(blkMultiQueue))
		if status, n := c.do(blkIn, 5, guestBuffer{dataAt, sector, true}); status != blkOK || n != sector+1 {
			t.Errorf("one queue of several: status %d, %d bytes", status, n)
		}
	})
	for _, n := range []int{0, MaxBlkQueues + 1} {
		if _, err := NewBlk(&fakeDisk{cap: 512}, "", n); err == nil {
			t.Errorf("%d queues are no error", n)
		}
	}
}

// TestRawLost: after a flush that failed none succeeds.
func TestRawLost(t *testing.T) {
	d := openRaw(t, newImage(t, 4096), false, false)
	fd := d.fd
	d.fd = -1
	if err := d.Flush(); !errors.Is(err, unix.EBADF) {
		t.Errorf("flush: %v", err)
	}
	d.fd = fd
	if err := d.Flush(); !errors.Is(err, unix.EBADF) {
		t.Errorf("flush after one that failed: %v", err)
	}
}

// TestBlkAllocations: a request allocates nothing.
func TestBlkAllocations(t *testing.T) {
	serve := blkServer(t, 512, 256)
	serve() // the slices reach their size
	if n := testing.AllocsPerRun(100, serve); n != 0 {
		t.Errorf("%v allocations for 256 requests", n)
	}
}

// blkServer returns a function that serves a full ring of reads.
func blkServer(t testing.TB, bytes uint32, requests int) func() {
	m := newFakeMachine(t)
	dev := newBlk(t, openRaw(t, newImage(t, 64<<10), true, false))
	r := newGuestRing(t, m.mem, ringAt, 256)
	q := newQueue(t, r, FeatureEventIdx|FeatureIndirectDesc)
	s := &Session{Features: ^uint64(0), Queues: []*Queue{&q.Queue}}
	r.put(blkHeaderAt, make([]byte, 16))
	for i := range uint16(requests) {
		table := 0x200000 + 64*uint64(i)
		r.describe(r.desc, i, table, 48, descIndirect, 0)
		r.describe(table, 0, blkHeaderAt, 16, descNext, 1)
		r.describe(table, 1, dataAt, bytes, descNext|descWrite, 2)
		r.describe(table, 2, blkStatusAt, 1, descWrite, 0)
	}
	return func() {
		for i := range requests {
			r.offer(uint16(i))
		}
		dev.Serve(s, 0)
		q.Flush()
		if q.err != nil || q.nextUsed != r.added {
			t.Fatalf("used %d of %d: %v", q.nextUsed, r.added, q.err)
		}
	}
}

// BenchmarkBlk is a 4 KiB read of cached data, without notification and interrupt.
func BenchmarkBlk(b *testing.B) {
	serve := blkServer(b, 4096, 1)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		serve()
	}
}

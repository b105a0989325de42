package virtio

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

type queueUnderTest struct {
	Queue
	halted     atomic.Bool
	err        error
	interrupts int
}

func newQueue(t testing.TB, r *guestRing, features uint64) *queueUnderTest {
	q := &queueUnderTest{}
	q.halt = &q.halted
	q.fail = func(err error) { q.err = err }
	q.interrupt = func() { q.interrupts++ }
	if err := q.open(r.mem, ring{r.size, true, r.desc, r.avail, r.used}, features); err != nil {
		t.Fatal(err)
	}
	return q
}

const ringAt, dataAt = 0x10000, 0x100000

func TestQueueChains(t *testing.T) {
	const ind = FeatureIndirectDesc
	for _, c := range []struct {
		name     string
		features uint64
		build    func(r *guestRing)
		err      string // "" means a good chain
		readable int
		writable int
	}{
		{name: "direct", build: func(r *guestRing) {
			r.add(guestBuffer{dataAt, 16, false}, guestBuffer{dataAt + 64, 32, false}, guestBuffer{dataAt + 128, 8, true})
		}, readable: 48, writable: 8},
		{name: "empty buffers", build: func(r *guestRing) {
			r.add(guestBuffer{0xffffffffffffffff, 0, false}, guestBuffer{dataAt, 8, true})
		}, writable: 8},
		{name: "indirect behind direct", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, dataAt, 4, descNext, 1)
			r.describe(r.desc, 1, 0x8000, 32, descIndirect, 0)
			r.describe(0x8000, 0, dataAt, 5, descNext, 1)
			r.describe(0x8000, 1, dataAt, 6, descWrite, 0)
			r.offer(0)
		}, readable: 9, writable: 6},
		{name: "loop", build: func(r *guestRing) {
			r.describe(r.desc, 0, dataAt, 4, descNext, 1)
			r.describe(r.desc, 1, dataAt, 4, descNext, 0)
			r.offer(0)
		}, err: "loops"},
		{name: "loop in indirect", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 16, descIndirect, 0)
			r.describe(0x8000, 0, dataAt, 5, descNext, 0)
			r.offer(0)
		}, err: "loops"},
		{name: "head", build: func(r *guestRing) { r.offer(8) }, err: "descriptor 8 in a table of 8"},
		{name: "next", build: func(r *guestRing) {
			r.describe(r.desc, 0, dataAt, 4, descNext, 9)
			r.offer(0)
		}, err: "descriptor 9"},
		{name: "outside memory", build: func(r *guestRing) { r.add(guestBuffer{fakeRAM - 4, 8, false}) }, err: "outside guest memory"},
		{name: "wraps", build: func(r *guestRing) { r.add(guestBuffer{1<<64 - 4, 8, false}) }, err: "outside guest memory"},
		{name: "order", build: func(r *guestRing) {
			r.add(guestBuffer{dataAt, 4, true}, guestBuffer{dataAt, 4, false})
		}, err: "readable behind writable"},
		{name: "index ahead", build: func(r *guestRing) { memory.Store16(r.word(r.avail+2), 9) }, err: "9 entries ahead"},
		{name: "index behind", build: func(r *guestRing) { memory.Store16(r.word(r.avail+2), 0xffff) }, err: "65535 entries ahead"},
		{name: "indirect not negotiated", build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 16, descIndirect, 0)
			r.offer(0)
		}, err: "INDIRECT_DESC"},
		{name: "indirect nested", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 16, descIndirect, 0)
			r.describe(0x8000, 0, 0x8000, 16, descIndirect, 0)
			r.offer(0)
		}, err: "inside an indirect table"},
		{name: "indirect with next", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 16, descIndirect|descNext, 1)
			r.offer(0)
		}, err: "successor"},
		{name: "indirect odd size", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 17, descIndirect, 0)
			r.offer(0)
		}, err: "table of 17 bytes"},
		{name: "indirect huge", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, 0x8000, 16*(maxChain+1), descIndirect, 0)
			r.offer(0)
		}, err: "indirect table of"},
		{name: "indirect outside", features: ind, build: func(r *guestRing) {
			r.describe(r.desc, 0, fakeRAM, 16, descIndirect, 0)
			r.offer(0)
		}, err: "outside guest memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newFakeMachine(t)
			r := newGuestRing(t, m.mem, ringAt, 8)
			q := newQueue(t, r, c.features)
			c.build(r)
			var chain Chain
			ok := q.Pop(&chain)
			if c.err == "" {
				if !ok || q.err != nil || chain.Readable.Len() != c.readable || chain.Writable.Len() != c.writable {
					t.Fatalf("ok %v, err %v, %d and %d bytes", ok, q.err, chain.Readable.Len(), chain.Writable.Len())
				}
				return
			}
			if ok || q.err == nil || !strings.Contains(q.err.Error(), c.err) {
				t.Fatalf("ok %v, err %v, want %q", ok, q.err, c.err)
			}
			if len(chain.Readable)+len(chain.Writable) != 0 {
				t.Error("a bad chain left buffers behind")
			}
			if q.err = nil; q.Pop(&chain) || q.err != nil {
				t.Error("a broken queue goes on")
			}
		})
	}
}

func TestQueueRingErrors(t *testing.T) {
	m := newFakeMachine(t)
	for _, c := range []struct {
		r    ring
		want string
	}{
		{ring{0, true, 0, 0x1000, 0x2000}, "size 0"},
		{ring{24, true, 0, 0x1000, 0x2000}, "size 24"},
		{ring{8, true, 8, 0x1000, 0x2000}, "descriptor table at 0x8"},
		{ring{8, true, 0, 0x1001, 0x2000}, "available ring at 0x1001"},
		{ring{8, true, 0, 0x1000, 0x2002}, "used ring at 0x2002"},
		{ring{8, true, fakeRAM - 64, 0x1000, 0x2000}, "descriptor table: "},
		{ring{8, true, 0, fakeRAM, 0x2000}, "available ring: "},
		{ring{8, true, 0, 0x1000, 1<<64 - 4}, "used ring: "},
	} {
		if err := new(Queue).open(m.mem, c.r, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.r, err, c.want)
		}
	}
}

// TestQueueNotifications checks both ways to switch notifications and
// interrupts on and off (virtio 1.3 2.7.7, 2.7.10).
func TestQueueNotifications(t *testing.T) {
	buffer := guestBuffer{dataAt, 8, true}
	t.Run("flags", func(t *testing.T) {
		m := newFakeMachine(t)
		r := newGuestRing(t, m.mem, ringAt, 8)
		q := newQueue(t, r, 0)
		var c Chain
		r.add(buffer)
		if !q.Pop(&c) || memory.Load16(r.word(r.used)) != usedNoNotify {
			t.Error("notifications stay on while the device is at work")
		}
		if q.Pop(&c) || memory.Load16(r.word(r.used)) != 0 {
			t.Error("notifications stay off on an empty ring")
		}
		q.Push(&c, 8)
		if _, _, ok := r.take(); ok {
			t.Error("used entry visible before Flush")
		}
		q.Flush()
		q.Flush()
		if id, n, ok := r.take(); !ok || id != 0 || n != 8 || q.interrupts != 1 {
			t.Errorf("used %d %d %v, %d interrupts", id, n, ok, q.interrupts)
		}
		memory.Store16(r.word(r.avail), availNoInterrupt)
		r.add(buffer)
		q.Pop(&c)
		q.Push(&c, 0)
		q.Flush()
		if q.interrupts != 1 {
			t.Error("interrupt in spite of VIRTQ_AVAIL_F_NO_INTERRUPT")
		}
	})
	t.Run("event index", func(t *testing.T) {
		m := newFakeMachine(t)
		r := newGuestRing(t, m.mem, ringAt, 8)
		q := newQueue(t, r, FeatureEventIdx)
		q.nextAvail, q.nextUsed, q.published = 0xfffe, 0xfffe, 0xfffe // across the wrap
		r.added, r.seen, r.next = 0xfffe, 0xfffe, 0xfffe
		memory.Store16(r.word(r.used+2), 0xfffe)
		usedEvent, availEvent := r.word(r.avail+4+16), r.word(r.used+4+64)
		memory.Store16(r.word(r.avail), availNoInterrupt) // must be ignored
		memory.Store16(usedEvent, 0)                      // interrupt when entry 0 is used: the third
		var c Chain
		for i := range 4 {
			r.add(buffer)
			if !q.Pop(&c) {
				t.Fatal("no chain")
			}
			q.Push(&c, uint32(i))
			q.Flush()
			if want := b2i(i >= 2); q.interrupts != want {
				t.Errorf("after entry %d: %d interrupts, want %d", i, q.interrupts, want)
			}
		}
		if memory.Load16(r.word(r.used)) != 0 {
			t.Error("used flags written")
		}
		if q.Pop(&c) || memory.Load16(availEvent) != r.added {
			t.Errorf("avail_event is %d, want %d", memory.Load16(availEvent), r.added)
		}
		// One batch over the event: one interrupt.
		memory.Store16(usedEvent, r.added+1)
		for range 3 {
			r.add(buffer)
			q.Pop(&c)
			q.Push(&c, 0)
		}
		if q.Flush(); q.interrupts != 2 {
			t.Errorf("batch: %d interrupts, want 2", q.interrupts)
		}
	})
	t.Run("halt", func(t *testing.T) {
		m := newFakeMachine(t)
		r := newGuestRing(t, m.mem, ringAt, 8)
		q := newQueue(t, r, 0)
		r.add(buffer)
		q.halted.Store(true)
		var c Chain
		if q.Pop(&c) {
			t.Error("a halted queue gave a chain")
		}
		q.halted.Store(false)
		if !q.Pop(&c) {
			t.Error("the chain is lost")
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestBuffers(t *testing.T) {
	whole := []byte("0123456789")
	b := Buffers{whole[:3], whole[3:3], whole[3:4], whole[4:]}
	for off := 0; off <= 11; off++ {
		for n := 0; n <= 11; n++ {
			lo, hi := min(off, 10), min(off+n, 10)
			p := make([]byte, n)
			if got := b.CopyTo(p, off); got != hi-lo || string(p[:got]) != string(whole[lo:hi]) {
				t.Errorf("CopyTo %d at %d: %q", n, off, p[:got])
			}
			part := b.AppendRange(nil, off, n)
			if p = make([]byte, 20); part.Len() != hi-lo || string(p[:part.CopyTo(p, 0)]) != string(whole[lo:hi]) {
				t.Errorf("AppendRange %d at %d: %q", n, off, part)
			}
		}
	}
	if n := b.CopyFrom([]byte("abcdefghij"), 2); n != 8 || string(whole) != "01abcdefgh" {
		t.Errorf("CopyFrom: %d, %s", n, whole)
	}
}

// FuzzQueue gives a queue arbitrary ring contents: no panic, no endless loop,
// and never a buffer outside guest memory.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{}, uint16(1), byte(0))
	f.Add([]byte{0, 0, 0x10, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0}, uint16(3), byte(3))
	mem, err := memory.New(memory.Range{Base: 0, Size: 64 << 10})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, image []byte, index uint16, flags byte) {
		ram := mem.Regions()[0].Host()
		clear(ram)
		copy(ram[0x1000:], image)
		r := ring{16, true, 0x1000, 0x1000 + 16*16, 0x2000}
		memory.Store16(ram[r.avail+2:], index)
		q := &queueUnderTest{}
		q.halt, q.fail, q.interrupt = &q.halted, func(err error) { q.err = err }, func() {}
		features := uint64(flags&1)*FeatureEventIdx | uint64(flags>>1&1)*FeatureIndirectDesc
		if err := q.open(mem, r, features); err != nil {
			t.Fatal(err)
		}
		var c Chain
		for n := 0; q.Pop(&c); n++ {
			if n > 16 {
				t.Fatal("more chains than the ring holds")
			}
			if len(c.Readable)+len(c.Writable) > maxChain {
				t.Fatal("chain too long")
			}
			q.Push(&c, uint32(c.Writable.Len()))
		}
		q.Flush()
	})
}

// BenchmarkQueue is one request through the ring, from Pop to Flush.
func BenchmarkQueue(b *testing.B) {
	m := newFakeMachine(b)
	r := newGuestRing(b, m.mem, ringAt, 256)
	q := newQueue(b, r, FeatureEventIdx)
	for i := range uint16(256) { // three descriptors a request, reused
		r.describe(r.desc, i, dataAt, 512, b2u16(i%4 < 2)*descNext|b2u16(i%4 > 0)*descWrite, i+1)
	}
	avail := r.word(r.avail + 2)
	for i := range uint64(256) {
		r.put(r.avail+4+2*i, []byte{byte(i &^ 3), 0})
	}
	var c Chain
	n := uint16(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		memory.Store16(avail, n)
		if !q.Pop(&c) {
			b.Fatal(q.err)
		}
		q.Push(&c, 512)
		q.Flush()
	}
}

func b2u16(b bool) uint16 { return uint16(b2i(b)) }

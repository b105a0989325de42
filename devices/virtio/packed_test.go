package virtio

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// packedQueue is a queue over a packed ring of the test's own.
func packedQueue(t testing.TB, size uint16, features uint64) (q *Queue, r *guestRing, failed *error, interrupts *int) {
	t.Helper()
	m := newFakeMachine(t)
	r = newGuestRing(t, m.mem, ringAt, size)
	r.makePacked()
	r.eventIdx = features&FeatureEventIdx != 0
	failed, interrupts = new(error), new(int)
	q = &Queue{halt: new(atomic.Bool), fail: func(err error) { *failed = err }, interrupt: func() { *interrupts++ }}
	if err := q.open(m.mem, ring{size: size, ready: true, desc: r.desc, avail: r.avail, used: r.used}, features|FeaturePacked); err != nil {
		t.Fatal(err)
	}
	return q, r, failed, interrupts
}

// TestPackedOrder passes chains of random lengths through small rings, several
// at a time and returned in another order than they came.
func TestPackedOrder(t *testing.T) {
	for _, size := range []uint16{3, 8, 33} {
		rng := rand.New(rand.NewPCG(1, uint64(size)))
		q, r, failed, _ := packedQueue(t, size, 0)
		want := map[uint32]uint32{}
		var held []*Chain
		free := size
		for range 3000 {
			switch n := 1 + uint16(rng.IntN(3)); {
			case n <= free && rng.IntN(2) == 0:
				var b []guestBuffer
				for i := range n {
					b = append(b, guestBuffer{dataAt + 64*uint64(i), 1 + uint32(rng.IntN(60)), i == n-1})
				}
				r.add(b...)
				free -= n
			case len(held) > 0 && rng.IntN(2) == 0:
				i := rng.IntN(len(held))
				c := held[i]
				held = append(held[:i], held[i+1:]...)
				written := rng.Uint32()
				want[uint32(c.head)] = written
				q.Push(c, written)
			default:
				c := &Chain{}
				if q.Pop(c) {
					held = append(held, c)
				}
			}
			if id, written, ok := r.take(); ok {
				if want[id] != written {
					t.Fatalf("chain %d: %d bytes, want %d", id, written, want[id])
				}
				delete(want, id)
				free += r.length[uint16(id)]
			}
			if *failed != nil {
				t.Fatal(*failed)
			}
		}
	}
}

// TestPackedIndirect takes an indirect table whole, as it is.
func TestPackedIndirect(t *testing.T) {
	q, r, failed, _ := packedQueue(t, 4, FeatureIndirectDesc)
	var table []byte
	for i, flags := range []uint16{0, descNext, descWrite} { // NEXT means nothing here
		d := binary.LittleEndian.AppendUint64(nil, dataAt+uint64(i)*100)
		d = binary.LittleEndian.AppendUint32(d, 10)
		d = binary.LittleEndian.AppendUint16(d, 77)
		table = append(table, binary.LittleEndian.AppendUint16(d, flags)...)
	}
	r.put(dataAt+0x1000, table)
	put := func(size uint32, flags uint16) {
		d := binary.LittleEndian.AppendUint64(nil, dataAt+0x1000)
		d = binary.LittleEndian.AppendUint32(d, size)
		d = binary.LittleEndian.AppendUint16(d, 5)
		r.put(r.desc+16*uint64(q.nextAvail), binary.LittleEndian.AppendUint16(d, flags|descAvail))
	}
	put(uint32(len(table)), descIndirect)
	var c Chain
	if !q.Pop(&c) || c.Readable.Len() != 20 || c.Writable.Len() != 10 || c.head != 5 || c.entries != 1 {
		t.Fatalf("%+v, %v", c, *failed)
	}
	put(15, descIndirect)
	if q.Pop(&c) || *failed == nil || !strings.Contains((*failed).Error(), "indirect table of 15 bytes") {
		t.Error(*failed)
	}
}

// TestPackedEvents asks for interrupts as 2.8.10 lets a driver do.
func TestPackedEvents(t *testing.T) {
	for _, x := range []struct {
		name  string
		flags uint16
		event uint16 // with eventDesc: place, and wrap counter in bit 15
		start uint16 // chains of one entry that are through before
		push  int    // chains at once
		want  int
	}{
		{"always", eventEnable, 0, 0, 3, 1},
		{"never", eventDisable, 0, 0, 3, 0},
		{"at the last of three", eventDesc, 2 | eventWrap, 0, 3, 1},
		{"at the first of three", eventDesc, 0 | eventWrap, 0, 3, 1},
		{"behind them", eventDesc, 3 | eventWrap, 0, 3, 0},
		{"passed before", eventDesc, 0 | eventWrap, 2, 1, 0},
		{"round the end", eventDesc, 7 | eventWrap, 6, 2, 1},
		{"at the first behind the end", eventDesc, 0, 6, 3, 1},
		{"the next time round", eventDesc, 1, 0, 3, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			q, r, _, interrupts := packedQueue(t, 8, FeatureEventIdx)
			var c Chain
			pass := func() {
				r.add(guestBuffer{dataAt, 1, false})
				if !q.Pop(&c) {
					t.Fatal("nothing there")
				}
				q.Push(&c, 0)
			}
			for range x.start {
				pass()
			}
			q.Flush()
			*interrupts = 0
			memory.Store16(r.word(r.avail), x.event)
			memory.Store16(r.word(r.avail+2), x.flags)
			for range x.push {
				pass()
			}
			q.Flush()
			q.Flush()
			if *interrupts != x.want {
				t.Errorf("%d interrupts, want %d", *interrupts, x.want)
			}
			if q.Pop(&c) {
				t.Error("a chain out of nothing")
			}
			if event := memory.Load16(r.word(r.used)); event != wrapped(q.nextAvail, q.availWrap) {
				t.Errorf("asked for a notification at %#x", event)
			}
		})
	}
}

// FuzzPacked is a hostile driver of a packed ring: any bytes in it.
func FuzzPacked(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, descAvail | descNext, 0}, 8), uint8(8))
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, descAvail | descIndirect, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, ring []byte, size uint8) {
		q, r, failed, _ := packedQueue(t, max(uint16(size), 1), FeatureIndirectDesc|FeatureEventIdx)
		r.put(r.desc, ring[:min(len(ring), 16*int(q.size))])
		r.put(0x10000, ring[:min(len(ring), 4096)]) // where the seeds' tables are
		var c Chain
		for n := 0; q.Pop(&c); n++ {
			if n > 2*int(q.size) {
				t.Fatal("more chains than the ring can hold, twice over")
			}
			q.Push(&c, 0)
			q.Flush()
		}
		if *failed != nil && q.Pop(&c) {
			t.Error("a broken queue goes on")
		}
	})
}

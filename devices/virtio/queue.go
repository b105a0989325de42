package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Ring flags (virtio 1.3 2.7.5, 2.7.6, 2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1

	descBytes = 16
	usedBytes = 8
)

// maxChain bounds the descriptors of one chain, indirect ones included. It is
// also the most the host takes in one vectored read or write (IOV_MAX).
const maxChain = 1024

// Queue is the device's side of a virtqueue, split (virtio 1.3 2.7) or packed
// (2.8, packed.go). Only the Serve call for its queue may use it.
//
// A driver's mistake (bad address, loop, wrong order) breaks the queue: the
// driver is told through DEVICE_NEEDS_RESET and Pop returns false from then on.
type Queue struct {
	mem               *memory.Guest
	size              uint16
	desc, avail, used []byte
	indirect          bool
	eventIdx          bool
	packed            bool
	availWrap         bool // wrap counters of a packed ring
	usedWrap          bool

	// Free-running indices of a split ring; of a packed one, places in it.
	nextAvail uint16
	nextUsed  uint16
	pushed    uint32 // entries of a packed ring since the last flush
	published uint16 // the value of nextUsed at the last interrupt that was thought of
	noNotify  bool   // notifications switched off by flag (no event index)
	broken    bool

	halt      *atomic.Bool // stop taking chains: a pause or reset waits
	fail      func(error)
	interrupt func()
}

// ring is where the driver put a queue.
type ring struct {
	size              uint16
	ready             bool
	desc, avail, used uint64
}

// open makes the ring's three parts usable, or says what is wrong with them
// (virtio 1.3 2.7: alignments 16, 2 and 4).
func (q *Queue) open(mem *memory.Guest, r ring, features uint64) error {
	if features&FeaturePacked != 0 {
		return q.openPacked(mem, r, features)
	}
	if r.size == 0 || r.size&(r.size-1) != 0 {
		return fmt.Errorf("queue size %d is not a power of two", r.size)
	}
	n := uint64(r.size)
	var err error
	if q.desc, err = ringPart(mem, "descriptor table", r.desc, 16, n*descBytes); err != nil {
		return err
	}
	if q.avail, err = ringPart(mem, "available ring", r.avail, 2, 6+2*n); err != nil {
		return err
	}
	if q.used, err = ringPart(mem, "used ring", r.used, 4, 6+usedBytes*n); err != nil {
		return err
	}
	q.mem, q.size = mem, r.size
	q.indirect = features&FeatureIndirectDesc != 0
	q.eventIdx = features&FeatureEventIdx != 0
	return nil
}

func ringPart(mem *memory.Guest, what string, addr, align, size uint64) ([]byte, error) {
	if addr%align != 0 {
		return nil, fmt.Errorf("%s at %#x is not aligned to %d", what, addr, align)
	}
	b, err := mem.Slice(memory.GPA(addr), size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// Size returns the number of ring entries, 0 for a queue that is not set up.
func (q *Queue) Size() int { return int(q.size) }

// Pop takes the next request into c. When it returns false the ring is empty
// and the guest's next request will notify the device, or the queue is stopped.
func (q *Queue) Pop(c *Chain) bool {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	if q.size == 0 || q.broken || q.halt.Load() {
		return false
	}
	if q.packed {
		return q.popPacked(c)
	}
	n := q.pending()
	if n == 0 {
		// Ask for a notification, then look again (2.7.10, 2.7.13.4.1).
		if q.eventIdx {
			memory.Store16(q.used[4+usedBytes*int(q.size):], q.nextAvail)
		} else if q.noNotify {
			memory.Store16(q.used, 0)
			q.noNotify = false
		}
		memory.Fence()
		if n = q.pending(); n == 0 {
			return false
		}
	}
	if n > q.size {
		q.stop(fmt.Errorf("available index is %d entries ahead in a ring of %d", n, q.size))
		return false
	}
	if !q.eventIdx && !q.noNotify {
		memory.Store16(q.used, usedNoNotify)
		q.noNotify = true
	}
	c.head = memory.Load16(q.avail[4+2*int(q.nextAvail&(q.size-1)):])
	if err := q.walk(c); err != nil {
		c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
		q.stop(err)
		return false
	}
	q.nextAvail++
	return true
}

// pending returns how far the driver's index is ahead of ours.
func (q *Queue) pending() uint16 { return memory.Load16(q.avail[2:]) - q.nextAvail }

// walk collects the buffers of the chain that starts at c.head. Each descriptor
// is read once.
func (q *Queue) walk(c *Chain) error {
	table, inTable := q.desc, false
	entries, i := uint32(q.size), uint32(c.head)
	for steps := 0; steps < maxChain; steps++ {
		if i >= entries {
			return fmt.Errorf("descriptor %d in a table of %d", i, entries)
		}
		d := table[i*descBytes:][:descBytes]
		addr, size := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirect != 0 {
			// 2.7.5.3.1: only when negotiated, not nested, last of its chain.
			if inTable {
				return errors.New("indirect descriptor inside an indirect table")
			}
			t, err := q.indirectTable(addr, size, flags)
			if err != nil {
				return err
			}
			table, inTable, entries, i = t, true, size/descBytes, 0
			continue
		}
		if err := q.addBuffer(c, i, addr, size, flags); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		i = uint32(next)
	}
	return fmt.Errorf("descriptor chain loops or has more than %d entries", maxChain)
}

// indirectTable returns the table that an indirect descriptor names (2.7.5.3.1:
// only when negotiated, not nested, last of its chain).
func (q *Queue) indirectTable(addr uint64, size uint32, flags uint16) ([]byte, error) {
	switch {
	case !q.indirect:
		return nil, errors.New("indirect descriptor without VIRTIO_F_INDIRECT_DESC")
	case flags&descNext != 0:
		return nil, errors.New("indirect descriptor with a successor")
	case size == 0 || size%descBytes != 0 || size > maxChain*descBytes:
		return nil, fmt.Errorf("indirect table of %d bytes", size)
	}
	t, err := q.mem.Slice(memory.GPA(addr), uint64(size))
	if err != nil {
		return nil, fmt.Errorf("indirect table: %w", err)
	}
	return t, nil
}

// addBuffer adds the buffer of descriptor i to a chain.
func (q *Queue) addBuffer(c *Chain, i uint32, addr uint64, size uint32, flags uint16) error {
	if size == 0 {
		return nil
	}
	b, err := q.mem.Slice(memory.GPA(addr), uint64(size))
	if err != nil {
		return fmt.Errorf("descriptor %d: %w", i, err)
	}
	if flags&descWrite != 0 {
		c.Writable = append(c.Writable, b)
	} else if len(c.Writable) > 0 {
		return fmt.Errorf("descriptor %d: readable behind writable", i)
	} else {
		c.Readable = append(c.Readable, b)
	}
	return nil
}

// Push gives the request in c back with the number of bytes that were written
// to its Writable buffers. The driver sees it at the next Flush.
func (q *Queue) Push(c *Chain, written uint32) {
	if q.size == 0 || q.broken {
		return
	}
	if q.packed {
		q.pushPacked(c, written)
		return
	}
	e := q.used[4+usedBytes*int(q.nextUsed&(q.size-1)):][:usedBytes]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], written)
	q.nextUsed++
}

// Flush shows the driver everything pushed so far and interrupts it if it asked
// for that (virtio 1.3 2.7.7.2). It runs after every Serve; Serve calls it before
// something slow.
func (q *Queue) Flush() {
	if q.packed {
		q.flushPacked()
		return
	}
	if q.nextUsed == q.published {
		return
	}
	memory.Store16(q.used[2:], q.nextUsed)
	memory.Fence()
	var want bool
	if q.eventIdx {
		event := memory.Load16(q.avail[4+2*int(q.size):])
		want = q.nextUsed-event-1 < q.nextUsed-q.published
	} else {
		want = memory.Load16(q.avail)&availNoInterrupt == 0
	}
	q.published = q.nextUsed
	if want {
		q.interrupt()
	}
}

func (q *Queue) stop(err error) {
	q.broken = true
	q.fail(err)
}

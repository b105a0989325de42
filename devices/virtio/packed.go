package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Packed virtqueues (virtio 1.3 2.8): one ring of descriptors, which driver and
// device write in turn, and two small areas that say who wants to be told.
const (
	descAvail = 1 << 7  // equals the driver's wrap counter in a new descriptor
	descUsed  = 1 << 15 // equals descAvail in a used one

	maxPacked = 32768 // entries

	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2 // at the descriptor that the area names
	eventWrap    = 1 << 15
)

func (q *Queue) openPacked(mem *memory.Guest, r ring, features uint64) error {
	if r.size == 0 || r.size > maxPacked {
		return fmt.Errorf("packed queue of %d entries", r.size)
	}
	var err error
	if q.desc, err = ringPart(mem, "descriptor ring", r.desc, 16, uint64(r.size)*descBytes); err != nil {
		return err
	}
	if q.avail, err = ringPart(mem, "driver area", r.avail, 4, 4); err != nil {
		return err
	}
	if q.used, err = ringPart(mem, "device area", r.used, 4, 4); err != nil {
		return err
	}
	q.mem, q.size, q.packed, q.availWrap, q.usedWrap = mem, r.size, true, true, true
	q.indirect = features&FeatureIndirectDesc != 0
	q.eventIdx = features&FeatureEventIdx != 0
	return nil
}

// available reports whether the next descriptor is the driver's.
func (q *Queue) available() bool {
	flags := memory.Load16(q.desc[descBytes*int(q.nextAvail)+14:])
	return flags&descAvail != 0 == q.availWrap && flags&descUsed != 0 != q.availWrap
}

func (q *Queue) popPacked(c *Chain) bool {
	if !q.available() {
		// Ask for a notification, then look again (2.8.14, 2.8.21.3.1).
		if q.eventIdx {
			memory.Store16(q.used, wrapped(q.nextAvail, q.availWrap))
			memory.Fence()
			memory.Store16(q.used[2:], eventDesc)
		} else {
			memory.Store16(q.used[2:], eventEnable)
		}
		q.noNotify = false
		memory.Fence()
		if !q.available() {
			return false
		}
	}
	if !q.noNotify {
		memory.Store16(q.used[2:], eventDisable)
		q.noNotify = true
	}
	n, err := q.walkPacked(c)
	if err != nil {
		c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
		q.stop(err)
		return false
	}
	c.entries = n
	q.nextAvail, q.availWrap = q.advance(q.nextAvail, q.availWrap, n)
	return true
}

// walkPacked collects the buffers of the next chain and returns how many entries
// of the ring it takes. Each descriptor is read once. The last one has the
// chain's name (2.8.6).
func (q *Queue) walkPacked(c *Chain) (entries uint16, err error) {
	i := q.nextAvail
	for n := uint16(1); n <= q.size && n <= maxChain; n++ {
		d := q.desc[int(i)*descBytes:][:descBytes]
		addr, size := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
		flags := binary.LittleEndian.Uint16(d[14:])
		c.head = binary.LittleEndian.Uint16(d[12:])
		if flags&descIndirect != 0 {
			return n, q.walkIndirect(c, addr, size, flags)
		}
		if err := q.addBuffer(c, uint32(i), addr, size, flags); err != nil {
			return n, err
		}
		if flags&descNext == 0 {
			return n, nil
		}
		i, _ = q.advance(i, false, 1)
	}
	return 0, fmt.Errorf("descriptor chain has more than %d entries", min(int(q.size), maxChain))
}

// walkIndirect collects the buffers of an indirect table: all of them, in order
// (2.8.9).
func (q *Queue) walkIndirect(c *Chain, addr uint64, size uint32, flags uint16) error {
	table, err := q.indirectTable(addr, size, flags)
	if err != nil {
		return err
	}
	for i := uint32(0); i < size/descBytes; i++ {
		d := table[i*descBytes:][:descBytes]
		flags := binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirect != 0 {
			return fmt.Errorf("indirect descriptor inside an indirect table")
		}
		if err := q.addBuffer(c, i, binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:]), flags); err != nil {
			return err
		}
	}
	return nil
}

// pushPacked writes the used descriptor of a chain; its flags, which make the
// driver see it, come last.
func (q *Queue) pushPacked(c *Chain, written uint32) {
	d := q.desc[int(q.nextUsed)*descBytes:][:descBytes]
	binary.LittleEndian.PutUint32(d[8:], written)
	binary.LittleEndian.PutUint16(d[12:], c.head)
	var flags uint16
	if q.usedWrap {
		flags = descAvail | descUsed
	}
	if len(c.Writable) > 0 {
		flags |= descWrite
	}
	memory.Store16(d[14:], flags)
	q.pushed += uint32(c.entries)
	q.nextUsed, q.usedWrap = q.advance(q.nextUsed, q.usedWrap, c.entries)
}

// flushPacked interrupts the driver if it wants that for what was pushed since
// the last time (2.8.10.1, 2.8.21.2).
func (q *Queue) flushPacked() {
	pushed := q.pushed
	if pushed == 0 {
		return
	}
	q.pushed = 0
	memory.Fence()
	want := false
	switch memory.Load16(q.avail[2:]) & 3 {
	case eventEnable:
		want = true
	case eventDesc:
		// How many places before the next used one the event's lies.
		event := memory.Load16(q.avail)
		at, back := uint32(event&^eventWrap), uint32(q.nextUsed)
		if event&eventWrap != 0 != q.usedWrap {
			back += uint32(q.size)
		}
		want = q.eventIdx && at < back && back-at <= pushed
	}
	if want {
		q.interrupt()
	}
}

// advance returns the place n entries on, and its wrap counter.
func (q *Queue) advance(at uint16, wrap bool, n uint16) (uint16, bool) {
	if next := int(at) + int(n); next >= int(q.size) {
		return uint16(next - int(q.size)), !wrap
	}
	return at + n, wrap
}

func wrapped(at uint16, wrap bool) uint16 {
	if wrap {
		return at | eventWrap
	}
	return at
}

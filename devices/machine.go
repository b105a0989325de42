package devices

import "github.com/gvmm/gvmm/vmm/memory"

// Handler serves the accesses to one range of a [Bus]. The offset counts from
// the start of the range; data is 1, 2, 4 or 8 bytes, little-endian. Calls
// come from any vCPU thread, several at once. The guest chooses offset and
// data: a handler must cope with every value.
type Handler interface {
	// Read fills data, which arrives filled with 0xff.
	Read(offset uint64, data []byte)
	Write(offset uint64, data []byte)
}

// Line is one interrupt input of the machine. An edge-triggered line delivers
// one interrupt each time it is raised and ignores Lower; a level-triggered
// line stays asserted until it is lowered.
type Line interface {
	Raise()
	Lower()
}

// Kick is the guest write that notifies a queue (KVM_IOEVENTFD).
type Kick struct {
	Addr  uint64 // guest physical address, or port number
	Port  bool   // a port, not MMIO
	Width int    // bytes of the write: 1, 2, 4 or 8; 0 matches any width
	Match bool   // only writes of Value
	Value uint64
}

// Machine is what the monitor offers to a device.
type Machine interface {
	// Memory is the guest's RAM.
	Memory() *memory.Guest
	// AttachKick has the write described by k signal the eventfd fd instead of
	// reaching a Handler. DetachKick undoes it; it is slow (KVM waits for a
	// grace period), so it belongs to tear-down and rare remapping.
	AttachKick(fd int, k Kick) error
	DetachKick(fd int, k Kick) error
	// EdgeLine returns the edge-triggered input gsi of the interrupt
	// controllers (an irqfd), LevelLine the level-triggered one. Several
	// devices may hold the same level-triggered gsi: it is asserted while any
	// of them raises it.
	EdgeLine(gsi uint32) (Line, error)
	LevelLine(gsi uint32) (Line, error)
	// SignalMSI delivers one message-signalled interrupt.
	SignalMSI(addr uint64, data uint32) error
}

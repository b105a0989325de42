package virtio

import (
	"encoding/binary"

	"github.com/gvmm/gvmm/devices"
)

const (
	msixEntryBytes = 16
	noVector       = 0xffff // VIRTIO_MSI_NO_VECTOR
)

// msix is a function's table of message-signalled interrupts (PCI Local Bus
// 3.0, 6.8.2). Its owner serializes the calls.
type msix struct {
	machine devices.Machine
	table   []byte // entries: address (8), data (4), control (4, bit 0 masks)
	pending uint64 // a bit a vector
	enabled bool
	masked  bool // the whole function
}

// open makes a table of n vectors, at most 64, all masked.
func (x *msix) open(m devices.Machine, n int) {
	x.machine, x.table = m, make([]byte, min(n, 64)*msixEntryBytes)
	for i := 12; i < len(x.table); i += msixEntryBytes {
		x.table[i] = 1
	}
}

// notify sends a vector's message, or keeps it while the vector is masked.
func (x *msix) notify(vector uint16) {
	if int(vector) < len(x.table)/msixEntryBytes {
		x.pending |= 1 << vector
		x.deliver()
	}
}

// deliver sends all pending messages that are not masked.
func (x *msix) deliver() {
	if x.pending == 0 || x.masked || !x.enabled {
		return
	}
	for v := 0; v < len(x.table)/msixEntryBytes; v++ {
		e := x.table[v*msixEntryBytes:][:msixEntryBytes]
		if x.pending&(1<<v) == 0 || e[12]&1 != 0 {
			continue
		}
		x.pending &^= 1 << v
		// The guest chose the address: one that reaches nothing is its loss.
		_ = x.machine.SignalMSI(binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:]))
	}
}

// read serves the table and the pending bits, both by offset in the BAR.
func (x *msix) read(offset uint64, data []byte) {
	if offset < pciPending {
		readConfig(x.table, offset-pciTable, data)
		return
	}
	var bits [8]byte
	binary.LittleEndian.PutUint64(bits[:], x.pending)
	readConfig(bits[:], offset-pciPending, data)
}

// write serves the table: whole 32- or 64-bit words.
func (x *msix) write(at uint64, data []byte) {
	if len(data) < 4 || at%uint64(len(data)) != 0 || at >= uint64(len(x.table)) {
		return
	}
	copy(x.table[at:], data)
	x.deliver()
}

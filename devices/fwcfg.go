package devices

import (
	"encoding/binary"
	"sync"
)

// FWCfg is the firmware configuration port (QEMU docs/specs/fw_cfg): a selector
// at port [PortFWCfg] and a data port behind it, from which test guests and
// firmware read what the machine has.
type FWCfg struct {
	mu    sync.Mutex
	items map[uint16][]byte
	item  []byte // the selected one
	pos   int
}

const (
	PortFWCfg  = 0x510
	FWCfgPorts = 2
)

// Keys of fw_cfg items.
const (
	fwSignature = 0x00
	fwID        = 0x01
	fwRAMSize   = 0x03
	fwCPUs      = 0x05
	fwMaxCPUs   = 0x0f
)

// NewFWCfg returns a port that tells the number of vCPUs and the bytes of RAM.
func NewFWCfg(cpus int, ram uint64) *FWCfg {
	return &FWCfg{items: map[uint16][]byte{
		fwSignature: []byte("QEMU"),
		fwID:        {1, 0, 0, 0}, // the plain interface, no DMA
		fwRAMSize:   binary.LittleEndian.AppendUint64(nil, ram),
		fwCPUs:      binary.LittleEndian.AppendUint16(nil, uint16(cpus)),
		fwMaxCPUs:   binary.LittleEndian.AppendUint16(nil, uint16(cpus)),
	}}
}

// Read implements [Handler]. Behind an item's end, and for keys nobody set, the
// data port reads as zero.
func (f *FWCfg) Read(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(data)
	if offset == 1 {
		n := copy(data, f.item[min(f.pos, len(f.item)):])
		f.pos += n
	}
}

// Write implements [Handler]: a 16-bit write at offset 0 selects an item.
func (f *FWCfg) Write(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset == 0 && len(data) == 2 {
		f.item, f.pos = f.items[binary.LittleEndian.Uint16(data)], 0
	}
}

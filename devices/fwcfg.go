package devices

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"

	"github.com/gvmm/gvmm/vmm/memory"
)

// FWCfg is the firmware configuration device (QEMU docs/specs/fw_cfg): a
// selector at port [PortFWCfg], a data port behind it and, for firmware, DMA,
// with which it reads what the machine has and what it is to boot.
type FWCfg struct {
	mem *memory.Guest // nil: no DMA

	mu      sync.Mutex
	items   map[uint16]FWCfgData
	item    FWCfgData // the selected one
	pos     int64     // in it, at most its size
	dmaHigh uint32    // of the address that the write of the low half completes
}

// FWCfgItem is one thing to read.
type FWCfgItem struct {
	Key  uint16 // 0: a file, which gets its key from the device
	Name string // of a file, at most 55 bytes
	Data FWCfgData
}

// FWCfgData is what an item holds: bytes, or a file that the guest reads as it likes.
type FWCfgData interface {
	io.ReaderAt
	Size() int64
}

const (
	PortFWCfg  = 0x510
	FWCfgPorts = 12

	fwData   = 1 // offset of the data port
	fwDMA    = 4 // of the DMA address register, big-endian
	fwDMALow = 8
)

// Keys of items.
const (
	fwSignature = 0x00
	fwID        = 0x01
	fwRAMSize   = 0x03
	fwCPUs      = 0x05
	fwMaxCPUs   = 0x0f
	fwDirectory = 0x19
	fwFirstFile = 0x20
)

// NewFWCfg returns a device that tells the number of vCPUs, the bytes of RAM and
// the items. With mem it has DMA.
func NewFWCfg(cpus int, ram uint64, mem *memory.Guest, items []FWCfgItem) *FWCfg {
	le, be := binary.LittleEndian, binary.BigEndian
	count := bytes.NewReader(le.AppendUint16(nil, uint16(cpus)))
	f := &FWCfg{mem: mem, items: map[uint16]FWCfgData{
		fwSignature: bytes.NewReader([]byte("QEMU")),
		fwID:        bytes.NewReader([]byte{1, 0, 0, 0}),
		fwRAMSize:   bytes.NewReader(le.AppendUint64(nil, ram)),
		fwCPUs:      count,
		fwMaxCPUs:   count,
	}}
	directory, key := make([]byte, 4), uint16(fwFirstFile)
	for _, it := range items {
		if it.Key == 0 {
			it.Key = key
			key++
			var entry [64]byte
			be.PutUint32(entry[:], uint32(it.Data.Size()))
			be.PutUint16(entry[4:], it.Key)
			copy(entry[8:63], it.Name)
			directory = append(directory, entry[:]...)
		}
		f.items[it.Key] = it.Data
	}
	if mem != nil {
		be.PutUint32(directory, uint32(key-fwFirstFile))
		f.items[fwDirectory], f.items[fwID] = bytes.NewReader(directory), bytes.NewReader([]byte{1 | 2, 0, 0, 0}) // and DMA
	}
	return f
}

// Read implements [Handler]. Behind an item's end, and for keys nobody set, the
// data port reads as zero.
func (f *FWCfg) Read(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case offset == fwData:
		f.read(data)
	case offset < fwDMA:
		clear(data)
	case f.mem != nil:
		copy(data, "QEMU CFG"[offset-fwDMA:])
	}
}

// Write implements [Handler]: a 16-bit write at offset 0 selects an item, 32-bit
// writes behind the data port start DMA.
func (f *FWCfg) Write(offset uint64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case offset == 0 && len(data) == 2:
		f.choose(binary.LittleEndian.Uint16(data))
	case f.mem == nil || len(data) != 4:
	case offset == fwDMA:
		f.dmaHigh = binary.BigEndian.Uint32(data)
	case offset == fwDMALow:
		f.dma(memory.GPA(f.dmaHigh)<<32 | memory.GPA(binary.BigEndian.Uint32(data)))
		f.dmaHigh = 0
	}
}

func (f *FWCfg) choose(key uint16) { f.item, f.pos = f.items[key], 0 }

// left is how many bytes of the selected item are left.
func (f *FWCfg) left() int64 {
	if f.item == nil {
		return 0
	}
	return f.item.Size() - f.pos
}

// read fills p with the next bytes of the selected item, and zeros behind its
// end. It reports whether the bytes were there: a file can become shorter.
func (f *FWCfg) read(p []byte) bool {
	n := int(min(int64(len(p)), f.left()))
	clear(p[n:])
	if n == 0 {
		return true
	}
	k, _ := f.item.ReadAt(p[:n], f.pos)
	clear(p[k:n])
	f.pos += int64(n)
	return k == n
}

// Control bits of a DMA request. The key to select stands in the upper half.
const (
	fwDMAError  = 1 << 0
	fwDMARead   = 1 << 1
	fwDMASkip   = 1 << 2
	fwDMASelect = 1 << 3
	fwDMAWrite  = 1 << 4

	maxFWDMA = 1 << 30 // bytes of one request: what a vCPU may wait for
)

// dma serves the request at gpa: control, length and address, big-endian. The
// guest finds 0 or an error in control afterwards.
func (f *FWCfg) dma(gpa memory.GPA) {
	var request [16]byte
	if f.mem.Read(gpa, request[:]) != nil {
		return // no place for an answer
	}
	be := binary.BigEndian
	control, length := be.Uint32(request[:]), be.Uint32(request[4:])
	if control&fwDMASelect != 0 {
		f.choose(uint16(control >> 16))
	}
	var result [4]byte
	failed := length > maxFWDMA || control&(fwDMARead|fwDMAWrite) == fwDMAWrite // items cannot be written
	switch {
	case failed:
	case control&fwDMARead != 0:
		p, err := f.mem.Slice(memory.GPA(be.Uint64(request[8:])), uint64(length))
		failed = err != nil || !f.read(p)
	case control&fwDMASkip != 0:
		f.pos += min(int64(length), f.left())
	}
	if failed {
		result[3] = fwDMAError
	}
	_ = f.mem.Write(gpa, result[:]) // it was there
}

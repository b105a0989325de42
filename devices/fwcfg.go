package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
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
	bytesOf := func(b []byte) FWCfgData { return bytes.NewReader(b) }
	count := bytesOf(le.AppendUint16(nil, uint16(cpus)))
	features := byte(1)
	if mem != nil {
		features |= 2
	}
	f := &FWCfg{mem: mem, items: map[uint16]FWCfgData{
		fwSignature: bytesOf([]byte("QEMU")),
		fwID:        bytesOf([]byte{features, 0, 0, 0}),
		fwRAMSize:   bytesOf(le.AppendUint64(nil, ram)),
		fwCPUs:      count,
		fwMaxCPUs:   count,
	}}
	directory, key := make([]byte, 4), uint16(fwFirstFile)
	for _, it := range items {
		if it.Key == 0 {
			it.Key = key
			key++
			entry := be.AppendUint16(be.AppendUint32(nil, uint32(it.Data.Size())), it.Key)
			directory = append(directory, append(entry, make([]byte, 58)...)...)
			copy(directory[len(directory)-56:len(directory)-1], it.Name)
		}
		f.items[it.Key] = it.Data
	}
	if mem != nil {
		be.PutUint32(directory, uint32(key-fwFirstFile))
		f.items[fwDirectory] = bytesOf(directory)
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
		_ = f.read(data) // a file that became shorter has zeros
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

// read fills p with the next bytes of the selected item, and zeros behind its end.
func (f *FWCfg) read(p []byte) error {
	n, at := int(min(int64(len(p)), f.left())), f.pos
	f.pos += int64(n)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if k, err := f.item.ReadAt(p[:n], at); k < n {
		clear(p[k:n])
		return fmt.Errorf("fw_cfg: %d of %d bytes at %#x: %w", k, n, at, err)
	}
	return nil
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
	var result [4]byte
	if f.serve(be.Uint32(request[:]), be.Uint32(request[4:]), memory.GPA(be.Uint64(request[8:]))) != nil {
		be.PutUint32(result[:], fwDMAError)
	}
	_ = f.mem.Write(gpa, result[:]) // it was there
}

func (f *FWCfg) serve(control, length uint32, gpa memory.GPA) error {
	if control&fwDMASelect != 0 {
		f.choose(uint16(control >> 16))
	}
	switch {
	case length > maxFWDMA || control&(fwDMARead|fwDMAWrite) == fwDMAWrite:
		return errors.New("fw_cfg: too long, or no item that can be written")
	case control&fwDMARead != 0:
		p, err := f.mem.Slice(gpa, uint64(length))
		if err != nil {
			return err
		}
		return f.read(p)
	case control&fwDMASkip != 0:
		f.pos += min(int64(length), f.left())
	}
	return nil
}

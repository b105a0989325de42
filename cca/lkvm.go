package cca

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/vmm/memory"
)

// kvmtool's layout for arm64 (arm/kvm.c and include/kvm/fdt.h of its realm branch).
const (
	lkvmRAM       memory.GPA = 0x80000000
	lkvmLoadLimit            = 256 << 20 // kernel, initrd and device tree lie below
	lkvmDTBSize              = 0x10000   // measured whole
	lkvmDTBAlign             = 2 << 20

	imageHeader        = 64
	imageOffsetDefault = 0x80000 // of images without a size
)

// LKVM is a realm as kvmtool's realm branch (`lkvm run --realm`) launches it.
type LKVM struct {
	Params Params // IPABits 0: what kvmtool asks for

	RAM    uint64    // bytes; 0: what the device tree says
	Kernel boot.Blob // an uncompressed arm64 Image
	Initrd boot.Blob // nil: none
	DTB    boot.Blob // as `lkvm run --dump-dtb` writes it

	// BSSOnly: only what the kernel's image leaves empty is set to RIPAS RAM,
	// behind the kernel's granules, as kvmtool did up to its branch cca/v2.
	// Otherwise all RAM is, before anything else, which Linux guests need.
	BSSOnly bool
}

// Launch returns the launch, or an error where kvmtool would refuse or where
// the device tree was made for another layout.
func (l *LKVM) Launch() (*Launch, error) {
	dtb, tree, err := l.deviceTree()
	if err != nil {
		return nil, fmt.Errorf("device tree: %w", err)
	}
	size := l.RAM
	if size == 0 {
		size = tree.ram.Size
	}
	ram := memory.Range{Base: lkvmRAM, Size: size}
	switch {
	case size == 0:
		return nil, errors.New("RAM: the device tree does not say how much: give it with -M, as to lkvm run -m")
	case size%Granule != 0 || size > 1<<50:
		return nil, fmt.Errorf("RAM: %d bytes are not whole pages of %d, or beyond any realm", size, Granule)
	case tree.ram.Size != 0 && tree.ram != ram:
		return nil, fmt.Errorf("RAM: the device tree says %v, -M says %v: give both as the realm is run", tree.ram, ram)
	}
	limit := lkvmRAM + memory.GPA(min(size, lkvmLoadLimit)) - 1

	kernel, bss, err := l.kernel(limit)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	kernelEnd := max(kernel.End(), bss.End())
	if limit < lkvmRAM+lkvmDTBSize+lkvmDTBAlign {
		return nil, fmt.Errorf("RAM: %d bytes have no place for the device tree", size)
	}
	dtbAt := (limit - (lkvmDTBSize + lkvmDTBAlign) + lkvmDTBAlign - 1) &^ (lkvmDTBAlign - 1)
	if dtbAt < kernelEnd {
		return nil, fmt.Errorf("device tree: it would lie at %#x, in the kernel, which ends at %#x: the realm needs more RAM", uint64(dtbAt), uint64(kernelEnd))
	}

	launch := &Launch{Params: l.Params}
	if launch.Params.IPABits == 0 {
		launch.Params.IPABits = ipaBitsFor(ram.End() - 1)
	}
	if !l.BSSOnly {
		launch.add(OpRIPAS, "RAM", ram, nil, 0)
	}
	launch.add(OpPopulate, "kernel", pages(kernel), l.Kernel, uint64(kernel.Base)%Granule)
	if l.BSSOnly && bss.Size > 0 {
		launch.add(OpRIPAS, "kernel BSS", bss, nil, 0)
	}
	var initrd memory.Range
	if l.Initrd != nil && l.Initrd.Size() > 0 {
		initrd.Size = uint64(l.Initrd.Size())
		if initrd.Size+4 > uint64(dtbAt-kernelEnd) {
			return nil, fmt.Errorf("initrd: %d bytes do not fit between kernel and device tree, %#x to %#x: the realm needs more RAM", initrd.Size, uint64(kernelEnd), uint64(dtbAt))
		}
		initrd.Base = (dtbAt - memory.GPA(initrd.Size+4) + 3) &^ 3
		launch.add(OpPopulate, "initrd", pages(initrd), l.Initrd, uint64(initrd.Base)%Granule)
	}
	if tree.initrd != initrd {
		return nil, fmt.Errorf("initrd: the device tree says %v, -i gives %v: give both as the realm is run", tree.initrd, initrd)
	}
	launch.add(OpPopulate, "device tree", memory.Range{Base: dtbAt, Size: lkvmDTBSize}, bytes.NewReader(dtb), 0)
	launch.Ops = append(launch.Ops, Op{Kind: OpREC, Name: "vCPU 0", REC: REC{
		Runnable: true,
		PC:       uint64(kernel.Base),
		GPRs:     [8]uint64{uint64(dtbAt)},
	}})
	return launch, nil
}

func (l *Launch) add(kind OpKind, name string, r memory.Range, data boot.Blob, offset uint64) {
	l.Ops = append(l.Ops, Op{Kind: kind, Name: name, Range: r, Data: data, Offset: offset})
}

// deviceTree reads the tree and what it says.
func (l *LKVM) deviceTree() ([]byte, deviceTree, error) {
	if l.DTB == nil {
		return nil, deviceTree{}, errors.New("kvmtool's is part of the measurement: write it with `lkvm run --dump-dtb FILE` and give it with --dtb")
	}
	if n := l.DTB.Size(); n < 0 || n > lkvmDTBSize {
		return nil, deviceTree{}, fmt.Errorf("%d bytes: kvmtool has room for %d", n, lkvmDTBSize)
	}
	b, err := readBlob(l.DTB, uint64(l.DTB.Size()))
	if err != nil {
		return nil, deviceTree{}, err
	}
	tree, err := readDeviceTree(b)
	return b, tree, err
}

// kernel returns where the kernel's bytes lie, and the whole pages behind them
// that its image claims (Linux Documentation/arch/arm64/booting.rst).
func (l *LKVM) kernel(limit memory.GPA) (file, bss memory.Range, err error) {
	head, err := readBlob(l.Kernel, imageHeader)
	if err != nil {
		return file, bss, err
	}
	if string(head[56:60]) != "ARM\x64" {
		return file, bss, errors.New("not an arm64 Image: kvmtool unpacks nothing, so give the uncompressed Image")
	}
	offset, claimed := binary.LittleEndian.Uint64(head[8:]), binary.LittleEndian.Uint64(head[16:])
	size := uint64(l.Kernel.Size())
	if claimed == 0 {
		offset, claimed = imageOffsetDefault, size
	}
	room := uint64(limit - lkvmRAM)
	if offset > room || size > room-offset || claimed > room-offset {
		return file, bss, fmt.Errorf("%d bytes (with BSS %d) at offset %#x do not fit below %#x: the realm needs more RAM, up to 256 MiB", size, claimed, offset, uint64(limit))
	}
	file = memory.Range{Base: lkvmRAM + memory.GPA(offset), Size: size}
	end := pages(file).End()
	if top := pages(memory.Range{Base: file.Base, Size: claimed}).End(); top > end {
		bss = memory.Range{Base: end, Size: uint64(top - end)}
	}
	return file, bss, nil
}

// pages widens a range to whole granules. The caller knows that its end does
// not overflow.
func pages(r memory.Range) memory.Range {
	base := r.Base &^ (Granule - 1)
	return memory.Range{Base: base, Size: uint64((r.End()+Granule-1)&^(Granule-1) - base)}
}

// readBlob reads the first n bytes.
func readBlob(b boot.Blob, n uint64) ([]byte, error) {
	if b == nil || uint64(max(b.Size(), 0)) < n {
		return nil, fmt.Errorf("it has not even %d bytes", n)
	}
	p := make([]byte, n)
	if k, err := b.ReadAt(p, 0); uint64(k) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes: %w", n, err)
	}
	return p, nil
}

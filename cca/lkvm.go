package cca

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/vmm/memory"
)

const lkvmDTBSize = 0x10000 // bytes that kvmtool has for the device tree and measures

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
// the device tree was made for another layout. What lies where is boot's plan
// for kvmtool's machine.
func (l *LKVM) Launch() (*Launch, error) {
	dtb, tree, err := l.deviceTree()
	if err != nil {
		return nil, fmt.Errorf("device tree: %w", err)
	}
	img, err := boot.Open(l.Kernel, l.Kernel.Size())
	if err == nil && (img.Arch != boot.ARM64 || img.Packed != "") {
		err = errors.New("not an uncompressed arm64 Image, and kvmtool unpacks nothing")
	}
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	o := boot.Options{Machine: boot.MachineLKVM, Memory: cmp.Or(l.RAM, tree.ram.Size), Initrd: l.Initrd, ARM64: boot.ARM64Options{DTB: dtb}}
	if o.Memory == 0 {
		return nil, errors.New("RAM: the device tree does not say how much: give it with -M, as to lkvm run -m")
	}
	plan, err := img.Plan(o)
	if err != nil {
		return nil, err
	}
	if ram := plan.RAM[0]; tree.ram.Size != 0 && tree.ram != ram {
		return nil, fmt.Errorf("RAM: the device tree says %v, -M says %v: give both as the realm is run", tree.ram, ram)
	}
	kernel, initrd := plan.Regions[0].Range, memory.Range{}
	if len(plan.Regions) == 3 { // the device tree is the last
		initrd = plan.Regions[1].Range
	}
	if tree.initrd != initrd {
		return nil, fmt.Errorf("initrd: the device tree says %v, -i gives %v: give both as the realm is run", tree.initrd, initrd)
	}
	launch, err := PlanLaunch(plan, &Config{Params: l.Params})
	if err != nil || !l.BSSOnly {
		return launch, err
	}
	launch.Ops = launch.Ops[1:] // RAM; the kernel is next
	end := launch.Ops[0].End()
	if bss := pages(kernel).End(); bss > end {
		launch.Ops = slices.Insert(launch.Ops, 1, Op{Kind: OpRIPAS, Name: "kernel BSS", Range: memory.Range{Base: end, Size: uint64(bss - end)}})
	}
	return launch, nil
}

func (l *Launch) add(kind OpKind, name string, r memory.Range, data boot.Blob, offset uint64) {
	l.Ops = append(l.Ops, Op{Kind: kind, Name: name, Range: r, Data: data, Offset: offset})
}

// deviceTree reads the tree and what it says.
func (l *LKVM) deviceTree() (boot.Blob, deviceTree, error) {
	if l.DTB == nil {
		return nil, deviceTree{}, errors.New("kvmtool's is part of the measurement: write it with `lkvm run --dump-dtb FILE` and give it with --dtb")
	}
	n := l.DTB.Size()
	if n < 0 || n > lkvmDTBSize {
		return nil, deviceTree{}, fmt.Errorf("%d bytes: kvmtool has room for %d", n, lkvmDTBSize)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(l.DTB, 0, n), b); err != nil {
		return nil, deviceTree{}, err
	}
	tree, err := readDeviceTree(b)
	return bytes.NewReader(b), tree, err
}

// pages widens a range to whole granules. The caller knows that its end does
// not overflow.
func pages(r memory.Range) memory.Range {
	base := r.Base &^ (Granule - 1)
	return memory.Range{Base: base, Size: uint64((r.End()+Granule-1)&^(Granule-1) - base)}
}

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// The header of an arm64 Image (Linux Documentation/arch/arm64/booting.rst).
const (
	armTextOffset = 8
	armImageSize  = 16
	armMagic      = 56
	armHeader     = 64
	armOldOffset  = 0x80000 // of images before Linux 3.17, which do not tell their size

	// Unikraft keeps what lies below it in RAM for the device tree.
	armUnikraftOffset = 0xfffc0
)

const deviceTreeName = "device tree"

const (
	fdtRoom  = 0x10000 // bytes
	fdtAlign = 2 << 20

	// Kernel, initrd and device tree lie in the first bytes of RAM.
	lkvmLow  = 256 << 20 // kvmtool
	linuxLow = 2 << 30
	maxARM64 = 1 << 40 // bytes an image may claim, and be loaded away from the start of RAM
)

// armImage is what an arm64 Image says about itself.
type armImage struct {
	offset uint64     // from the start of RAM
	room   uint64     // bytes of memory, with what the file leaves out
	ram    memory.GPA // where RAM must start; 0: anywhere
	chip   IRQChip    // the only one it knows; "": any
}

func isARM64(head []byte) bool {
	return len(head) >= armHeader && string(head[armMagic:armMagic+4]) == "ARM\x64"
}

// openARM64 checks an arm64 Image.
func (img *Image) openARM64(head []byte) error {
	img.Format, img.Protocol, img.Arch, img.Machine = FormatARM64, ProtocolARM64, ARM64, MachineVirt
	a := &armImage{offset: u64(head, armTextOffset), room: u64(head, armImageSize)}
	if a.room == 0 {
		a.offset = armOldOffset
	}
	if a.room = max(a.room, uint64(img.size)); a.offset > maxARM64 || a.room > maxARM64 {
		return fmt.Errorf("arm64 Image: %d bytes (image_size at offset %#x) at text_offset %#x (offset %#x): no guest is so big", a.room, armImageSize, a.offset, armTextOffset)
	}
	img.arm = a
	if img.Linux = a.offset != armUnikraftOffset; !img.Linux {
		if err := img.openUnikraftARM64(); err != nil {
			return err
		}
	}
	l, err := layoutARM64(img.Machine, false)
	img.Entry = l.ram + memory.GPA(a.offset)
	img.Segments = []Segment{{
		Range: memory.Range{Base: img.Entry, Size: a.room}, FileSize: uint64(img.size), Perm: "rwx",
	}}
	return err
}

// OpenFirmwareARM64 takes a file for arm64 firmware that is loaded to the start
// of RAM and entered there as an Image is, with a device tree: EDK2's for kvmtool.
func OpenFirmwareARM64(r io.ReaderAt, size int64) (*Image, error) {
	head, err := readAt(r, size, 0, min(uint64(max(size, 0)), armHeader))
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	room := uint64(size)
	if isARM64(head) {
		room = max(room, u64(head, armImageSize))
	}
	if room > maxARM64 {
		return nil, fmt.Errorf("firmware: %d bytes (image_size at offset %#x): no guest is so big", room, armImageSize)
	}
	return &Image{Format: FormatFirmware, Protocol: ProtocolARM64, Arch: ARM64, Machine: MachineLKVM, arm: &armImage{room: room}, src: r, size: size}, nil
}

// openUnikraftARM64 finds out what a Unikraft image is for. It is linked for one
// place, whatever its header says: most 64-bit words in it that could be
// addresses in the image are.
func (img *Image) openUnikraftARM64() error {
	b, err := readAt(img.src, img.size, 0, min(uint64(img.size), maxBannerScan))
	if err != nil {
		return err
	}
	has := func(s string) bool { return bytes.Contains(b, []byte(s)) }
	img.Unikraft, img.LibParams = true, has("libuklibparam")
	most := 0
	for _, m := range []Machine{MachineVirt, MachineMicroVM} {
		l, err := layoutARM64(m, false)
		if err != nil {
			return err
		}
		n := 0
		for off := 0; off+8 <= len(b); off += 8 {
			if u64(b, off)-uint64(l.ram)-img.arm.offset < img.arm.room {
				n++
			}
		}
		if n > most {
			most, img.Machine, img.arm.ram = n, m, l.ram
		}
	}
	switch v2, v3 := has("arm,gic-400") || has("arm,cortex-a15-gic"), has("arm,gic-v3"); {
	case v2 && !v3:
		img.arm.chip = GICv2
	case v3 && !v2:
		img.arm.chip = GICv3
	}
	if img.arm.chip != "" {
		img.Notes = append(img.Notes, fmt.Sprintf("knows no interrupt controller but %s", img.arm.chip))
	}
	return nil
}

// minMemory is [Image.MinMemory] for an arm64 Image: with the device tree, where
// [Image.placeARM64] puts it.
func (a *armImage) minMemory(initrd int64) uint64 {
	need := a.offset + a.room + uint64(max(initrd, 0))
	if a.offset != armUnikraftOffset {
		need = roundUp(need, fdtAlign) + fdtRoom + 1
	}
	return roundUp(need+1, 1<<20)
}

// completeARM64 fills in defaults, refuses what no guest can have, and returns
// the layout.
func (img *Image) completeARM64(o *Options) (l arm64Machine, err error) {
	if o.Machine == "" || o.Machine == MachineAuto {
		o.Machine = img.Machine
	}
	if l, err = layoutARM64(o.Machine, o.ARM64.Realm); err != nil {
		return l, err
	}
	if img.arm.ram != 0 && img.arm.ram != l.ram {
		return l, fmt.Errorf("machine %s: the image is linked for RAM at %#x, not at %#x: use --machine %s", o.Machine, uint64(img.arm.ram), uint64(l.ram), img.Machine)
	}
	if o.Name == "" {
		o.Name = "kernel"
	}
	if o.Memory == 0 {
		o.Memory = img.DefaultMemory()
	}
	if o.Memory%pageSize != 0 || o.Memory > l.maxRAM {
		return l, fmt.Errorf("memory: %d bytes: want whole 4 KiB pages and at most %s", o.Memory, humanSize(l.maxRAM))
	}
	initrd := int64(0)
	if o.Initrd != nil {
		initrd = o.Initrd.Size()
	}
	if initrd < 0 || initrd > maxARM64 {
		return l, fmt.Errorf("initrd: %d bytes: want at most %s", initrd, humanSize(maxARM64))
	}
	if initrd == 0 {
		o.Initrd = nil
	}
	if need := img.arm.minMemory(initrd); o.Memory < need {
		return l, fmt.Errorf("image, initrd and device tree need %s, the guest has %s: use -M %dM", humanSize(need), humanSize(o.Memory), need>>20)
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	a := &o.ARM64
	switch {
	case a.IRQChip == "" && img.arm.chip != "":
		a.IRQChip = img.arm.chip
	case a.IRQChip == "":
		a.IRQChip = append(slices.Clone(a.Host), GICv3ITS)[0]
	case img.arm.chip == GICv2 && a.IRQChip != GICv2, img.arm.chip == GICv3 && a.IRQChip == GICv2:
		return l, fmt.Errorf("irqchip %s: the image knows no interrupt controller but %s", a.IRQChip, img.arm.chip)
	}
	if a.Transport == "" {
		if a.Transport = TransportMMIO; o.Machine == MachineLKVM && img.Linux {
			a.Transport = TransportPCI
		}
	}
	return l, nil
}

// planARM64 is [Image.Plan] for an arm64 Image.
func (img *Image) planARM64(o Options) (*Plan, error) {
	l, err := img.completeARM64(&o)
	if err != nil {
		return nil, err
	}
	p := &Plan{
		Arch: img.Arch, Format: img.Format, Protocol: img.Protocol, Machine: o.Machine, Unikraft: img.Unikraft,
		RAM: []memory.Range{at(l.ram, o.Memory)}, Entry: l.ram + memory.GPA(img.arm.offset),
	}
	if p.Platform, err = l.platform(&o); err != nil {
		return nil, err
	}
	if p.Cmdline, err = img.cmdline(o); err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	p.add("kernel", p.Entry, img.arm.room, img.section(0, uint64(img.size)))
	tree, initrd, err := img.placeARM64(&o, p)
	if err != nil {
		return nil, err
	}
	if initrd.Size > 0 {
		p.add("initrd", initrd.Base, initrd.Size, o.Initrd)
	}
	fdt := p.deviceTree(&o, initrd)
	if b := o.ARM64.DTB; b != nil {
		if fdt, err = readAt(b, b.Size(), 0, uint64(min(b.Size(), fdtRoom+1))); err != nil {
			return nil, fmt.Errorf("device tree: %w", err)
		}
	}
	if o.Machine == MachineLKVM { // to the byte, as a realm measures it
		if o.ARM64.DTB == nil {
			// libfdt leaves the end of the tree there once more when it closes a
			// gap of 8 bytes in front of it (fdt_pack).
			fdt = append(fdt, fdt[len(fdt)-8:]...)
		}
		fdt = append(fdt, make([]byte, max(0, fdtRoom-len(fdt)))...)
	}
	if len(fdt) > fdtRoom {
		return nil, fmt.Errorf("device tree: %d bytes, room for %d: use fewer vCPUs and devices", len(fdt), fdtRoom)
	}
	p.addBytes(deviceTreeName, tree, fdt)
	p.ARM64 = &ARM64State{PC: uint64(p.Entry), X: [4]uint64{uint64(tree)}}
	return p, p.check()
}

// placeARM64 chooses where device tree and initrd lie: at the top of low
// memory, as kvmtool does it (arm/kvm.c, kvm__arch_load_kernel_image), but a
// Unikraft image has the tree in front of it.
func (img *Image) placeARM64(o *Options, p *Plan) (tree memory.GPA, initrd memory.Range, err error) {
	low, align := uint64(linuxLow), memory.GPA(pageSize)
	if o.Machine == MachineLKVM {
		low, align = lkvmLow, 4
	}
	ram, end := p.RAM[0], p.Regions[0].End() // of the kernel
	if img.Format == FormatFirmware {        // behind it; in a realm at the end of RAM, as kvmtool's branch has it
		if tree = (end + fdtAlign - 1) &^ (fdtAlign - 1); o.ARM64.Realm {
			tree = max(tree, (ram.End()-fdtRoom-1)&^(fdtAlign-1))
		}
		if tree+fdtRoom > ram.End() || o.Initrd != nil {
			return 0, initrd, errors.New("firmware and device tree do not fit into RAM, or there is an initrd, which firmware has no use for")
		}
		return tree, initrd, nil
	}
	top := ram.Base + memory.GPA(min(ram.Size, low))
	if tree = ram.Base; !img.Unikraft || o.Machine == MachineLKVM {
		tree = (top - fdtRoom - 2) &^ (fdtAlign - 1)
		top = tree
	}
	if o.Initrd != nil {
		initrd.Size = uint64(o.Initrd.Size())
	}
	if top < end || initrd.Size > 0 && initrd.Size+uint64(align) > uint64(top-end) {
		return 0, initrd, fmt.Errorf("kernel, initrd and device tree do not fit into the first %s of RAM, where the guest looks for them", humanSize(min(ram.Size, low)))
	}
	initrd.Base = (top - memory.GPA(initrd.Size) - 1) &^ (align - 1)
	return tree, initrd, nil
}

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Firmware is what a guest that firmware boots has besides memory and registers.
type Firmware struct {
	ROM            memory.Range // where the firmware lies: memory, but not RAM; it ends at 4 GiB
	Kernel, Initrd Blob         // handed over, whole files; nil: none
	Items          []FWCfgItem  // how they are handed over, and what else fw_cfg serves
}

// FWCfgItem is an entry of the firmware configuration device (QEMU docs/specs/fw_cfg).
type FWCfgItem struct {
	Key  uint16 // fixed; 0: a file, whose key the device chooses
	Name string
	Data Blob
}

// MaxFirmware is the most bytes a firmware may have: KVM's own pages lie below.
const MaxFirmware = 1<<32 - (int64(KVMTSS) + 3*pageSize)

// OpenFirmware checks a flat x86 firmware image, OVMF for one, of size bytes. Its
// plan starts at the reset vector and hands [Options].Kernel over by fw_cfg.
func OpenFirmware(r io.ReaderAt, size int64) (*Image, error) {
	if size <= 0 || size%pageSize != 0 || size > MaxFirmware {
		return nil, fmt.Errorf("firmware: %d bytes: want whole 4 KiB pages and at most %s", size, humanSize(uint64(MaxFirmware)))
	}
	vector, err := readAt(r, size, uint64(size)-16, 16)
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	if len(bytes.Trim(vector, "\x00")) == 0 || len(bytes.Trim(vector, "\xff")) == 0 {
		return nil, errors.New("firmware: nothing at the reset vector, 16 bytes before the end: a file of variables (OVMF_VARS) is no firmware")
	}
	base := RAMAbove4G - memory.GPA(size)
	return &Image{
		Format: FormatFirmware, Protocol: ProtocolReset, Arch: AMD64, Machine: MachinePC, Entry: RAMAbove4G - 16, src: r, size: size,
		Segments: []Segment{{Range: memory.Range{Base: base, Size: uint64(size)}, FileSize: uint64(size), Perm: "rwx"}},
	}, nil
}

// addFirmware completes the plan of a guest that firmware boots. The keys are
// QEMU's (include/standard-headers/linux/qemu_fw_cfg.h, hw/i386/x86-common.c); the
// kernel goes in two parts, its setup sectors first.
func (p *Plan) addFirmware(img *Image, o Options) error {
	f := &Firmware{ROM: img.Segments[0].Range, Kernel: o.Kernel, Initrd: o.Initrd}
	p.Firmware, p.X86 = f, resetState()
	p.add("firmware", f.ROM.Base, f.ROM.Size, img.section(0, f.ROM.Size))
	if o.Kernel != nil {
		f.hand("setup", 0x17, 0x18, io.NewSectionReader(o.Kernel, 0, o.setup))
		f.hand("kernel", 0x08, 0x11, io.NewSectionReader(o.Kernel, o.setup, o.Kernel.Size()-o.setup))
		f.hand("command line", 0x14, 0x15, bytes.NewReader(append([]byte(p.Cmdline), 0)))
	}
	if o.Initrd != nil {
		f.hand("initrd", 0x0b, 0x12, o.Initrd)
	}
	tables, err := acpiTables(o)
	if err != nil {
		return err
	}
	loader := acpiLoader(tables)
	ram := make([]byte, 20*len(p.RAM)) // whole: OVMF makes the holes below 1 MiB, and since 2026 wants low RAM in one entry from 0 on
	for i, r := range p.RAM {
		put64(ram, 20*i, uint64(r.Base))
		put64(ram, 20*i+8, r.Size)
		put32(ram, 20*i+16, e820RAM)
	}
	file := func(name string, b []byte) { f.Items = append(f.Items, FWCfgItem{0, name, bytes.NewReader(b)}) }
	file(acpiRSDPFile, tables[:acpiRSDPSize])
	file(acpiTablesFile, tables)
	file("etc/e820", ram)
	file("etc/table-loader", loader)
	return nil
}

// hand adds a blob and its size, 32 bits.
func (f *Firmware) hand(name string, size, data uint16, b Blob) {
	n := make([]byte, 4)
	put32(n, 0, uint32(b.Size()))
	f.Items = append(f.Items, FWCfgItem{size, name + " size", bytes.NewReader(n)}, FWCfgItem{data, name, b})
}

// setupSize returns the bytes of a Linux kernel's setup sectors, 0 for another
// EFI program.
func setupSize(kernel Blob) (int64, error) {
	size := kernel.Size()
	if size > 1<<32-1 {
		return 0, fmt.Errorf("%d bytes: fw_cfg hands over less than 4 GiB", size)
	}
	head, err := readAt(kernel, size, 0, uint64(min(size, zpMagic+4)))
	if err != nil || !isBzImage(head) {
		return 0, err
	}
	setup := (int64(head[zpSetupSects]) + 1) * sectorSize
	return setup, inFile(size, 0, uint64(setup))
}

// resetState is a processor behind its reset, as KVM makes it (Intel SDM vol. 3,
// table 10-1).
func resetState() *X86State {
	data := X86Segment{Limit: 0xffff, Type: 3, S: true, Present: true}
	code := data
	code.Selector, code.Base, code.Type = 0xf000, 0xffff0000, 11
	table := X86Table{Limit: 0xffff}
	return &X86State{
		RIP: 0xfff0, RFLAGS: rflagsFixed, RDX: 0x600, CR0: 0x60000010,
		CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR: X86Segment{Limit: 0xffff, Type: 11, Present: true}, GDT: table, IDT: table,
	}
}

const (
	acpiRSDPFile   = "etc/acpi/rsdp"
	acpiTablesFile = "etc/acpi/tables"
)

// acpiLoader makes the tables relative to their blob's start and returns the
// script by which firmware places them (QEMU hw/acpi/bios-linker-loader.c): the
// blob "tables", whose first bytes, the RSDP, are a blob of their own as well.
func acpiLoader(blob []byte) []byte {
	const allocate, addPointer, addChecksum = 1, 2, 3
	const zoneHigh, zoneLow, align = 1, 2, 64 // anywhere; 0xf0000 to 0xfffff
	var script []byte
	command := func(kind uint32, file, source string, at int, words ...uint32) {
		c := make([]byte, 128)
		put32(c, 0, kind)
		copy(c[4:], file)
		copy(c[60:], source)
		for i, w := range words {
			put32(c, at+4*i, w)
		}
		script = append(script, c...)
	}
	pointer := func(file string, at, width uint32) (to uint32) {
		command(addPointer, file, acpiTablesFile, 116, at, width)
		to = u32(blob, int(at)) - uint32(acpiBase)
		put32(blob, int(at), to)
		return to
	}
	sum := func(file string, at, from, n uint32) {
		blob[at] = 0
		command(addChecksum, file, "", 60, at, from, n)
	}
	command(allocate, acpiRSDPFile, "", 60, align, zoneLow)
	command(allocate, acpiTablesFile, "", 60, align, zoneHigh)
	rsdt, xsdt := pointer(acpiRSDPFile, 16, 4), pointer(acpiRSDPFile, 24, 8)
	sum(acpiRSDPFile, 8, 0, 20)
	sum(acpiRSDPFile, 32, 0, acpiRSDPSize)
	fadt := pointer(acpiTablesFile, rsdt+acpiHeaderSize, 4)
	for _, p := range []struct{ at, width uint32 }{{rsdt + acpiHeaderSize + 4, 4}, {xsdt + acpiHeaderSize, 8}, {xsdt + acpiHeaderSize + 8, 8},
		{fadt + fadtFACS, 4}, {fadt + fadtDSDT, 4}, {fadt + fadtXDSDT, 8}} {
		pointer(acpiTablesFile, p.at, p.width)
	}
	for _, t := range []uint32{rsdt, xsdt, fadt} {
		sum(acpiTablesFile, t+9, t, u32(blob, int(t)+4))
	}
	return script
}

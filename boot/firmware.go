package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Firmware is what a guest that firmware boots has besides memory and registers.
type Firmware struct {
	ROM            memory.Range `json:"-"`      // where the firmware lies: memory, but not RAM; it ends at 4 GiB
	Kernel, Initrd Blob         `json:"-"`      // handed over, whole files; nil: none
	Items          []FWCfgItem  `json:"fw_cfg"` // how they are handed over, and what else fw_cfg serves
}

// FWCfgItem is an entry of the firmware configuration device (QEMU docs/specs/fw_cfg).
type FWCfgItem struct {
	Key  uint16 // fixed; 0: a file, whose key the device chooses
	Name string
	Data Blob
}

// Keys of fw_cfg's hand-over (QEMU include/standard-headers/linux/qemu_fw_cfg.h
// and hw/i386/x86-common.c): the kernel in two parts, its setup sectors first.
const (
	fwKernelSize  = 0x08
	fwInitrdSize  = 0x0b
	fwKernelData  = 0x11
	fwInitrdData  = 0x12
	fwCmdlineSize = 0x14
	fwCmdlineData = 0x15
	fwSetupSize   = 0x17
	fwSetupData   = 0x18
)

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

// addFirmware completes the plan of a guest that firmware boots.
func (p *Plan) addFirmware(img *Image, o Options) error {
	f := &Firmware{ROM: img.Segments[0].Range, Kernel: o.Kernel, Initrd: o.Initrd}
	p.Firmware, p.X86 = f, resetState()
	p.add("firmware", f.ROM.Base, f.ROM.Size, img.section(0, f.ROM.Size))
	if o.Kernel != nil {
		f.hand("setup", fwSetupSize, fwSetupData, io.NewSectionReader(o.Kernel, 0, o.setup))
		f.hand("kernel", fwKernelSize, fwKernelData, io.NewSectionReader(o.Kernel, o.setup, o.Kernel.Size()-o.setup))
		f.hand("command line", fwCmdlineSize, fwCmdlineData, bytes.NewReader(append([]byte(p.Cmdline), 0)))
	}
	if o.Initrd != nil {
		f.hand("initrd", fwInitrdSize, fwInitrdData, o.Initrd)
	}
	tables, err := acpiTables(o)
	if err != nil {
		return err
	}
	loader := acpiLoader(tables)
	var ram []byte
	for _, r := range p.RAM { // whole: OVMF makes the holes below 1 MiB, and since 2026 wants low RAM in one entry from 0 on
		ram = binary.LittleEndian.AppendUint64(ram, uint64(r.Base))
		ram = binary.LittleEndian.AppendUint64(ram, r.Size)
		ram = binary.LittleEndian.AppendUint32(ram, e820RAM)
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{acpiRSDPFile, tables[:acpiRSDPSize]}, {acpiTablesFile, tables}, {"etc/e820", ram}, {"etc/table-loader", loader}} {
		f.Items = append(f.Items, FWCfgItem{Name: file.name, Data: bytes.NewReader(file.data)})
	}
	return nil
}

// hand adds a blob and its size, 32 bits.
func (f *Firmware) hand(name string, size, data uint16, b Blob) {
	n := binary.LittleEndian.AppendUint32(nil, uint32(b.Size()))
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
	const zoneHigh, zoneLow = 1, 2 // anywhere; 0xf0000 to 0xfffff
	var script []byte
	command := func(kind uint32, file string) []byte {
		at := len(script)
		script = append(script, make([]byte, 128)...)
		put32(script, at, kind)
		copy(script[at+4:], file)
		return script[at+60:]
	}
	place := func(file string, zone byte) {
		c := command(allocate, file)
		put32(c, 0, 64)
		c[4] = zone
	}
	pointer := func(file string, at uint64, width byte) (to uint64) {
		c := command(addPointer, file)
		copy(c, acpiTablesFile)
		put32(c, 56, uint32(at))
		c[60] = width
		to = uint64(u32(blob, int(at))) - uint64(acpiBase)
		put32(blob, int(at), uint32(to))
		return to
	}
	sum := func(file string, at, from, n uint64) {
		blob[at] = 0
		c := command(addChecksum, file)
		put32(c, 0, uint32(at))
		put32(c, 4, uint32(from))
		put32(c, 8, uint32(n))
	}
	place(acpiRSDPFile, zoneLow)
	place(acpiTablesFile, zoneHigh)
	rsdt, xsdt := pointer(acpiRSDPFile, 16, 4), pointer(acpiRSDPFile, 24, 8)
	sum(acpiRSDPFile, 8, 0, 20)
	sum(acpiRSDPFile, 32, 0, acpiRSDPSize)
	pointer(acpiTablesFile, rsdt+acpiHeaderSize+4, 4)
	pointer(acpiTablesFile, xsdt+acpiHeaderSize+8, 8)
	pointer(acpiTablesFile, rsdt+acpiHeaderSize, 4)
	fadt := pointer(acpiTablesFile, xsdt+acpiHeaderSize, 8)
	pointer(acpiTablesFile, fadt+fadtFACS, 4)
	pointer(acpiTablesFile, fadt+fadtDSDT, 4)
	pointer(acpiTablesFile, fadt+fadtXDSDT, 8)
	for _, t := range []uint64{rsdt, xsdt, fadt} {
		sum(acpiTablesFile, t+9, t, uint64(u32(blob, int(t)+4)))
	}
	return script
}

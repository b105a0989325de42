package boot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Options is what the user and the monitor decide about a guest.
type Options struct {
	Memory  uint64 // bytes of RAM, whole pages; 0: the image's default
	CPUs    int    // 0: 1
	Machine Machine

	Name   string   // word 0 of the command lines that have one; the image's base name
	Params string   // kernel parameters, kept byte for byte
	Auto   []string // Unikraft library parameters added unless Params sets them, "lib.name=value"
	Args   []string // the application's arguments
	Raw    bool     // Params are a Linux guest's whole command line

	Unnamed bool // Params begin with word 0 themselves

	Initrd Blob // nil: none
	Kernel Blob // what firmware is to boot ([OpenFirmware]); nil: what it finds

	MMIO []MMIODevice // in the order in which the guest is to find them
	PCI  []PCIDevice

	ARM64 ARM64Options // of arm64 guests, which do not use MMIO and PCI

	SNP *SNP // make the plan of an SEV-SNP launch; nil: of a plain one

	firmware bool       // it boots the guest
	setup    int64      // bytes of setup sectors in Kernel, if it is a Linux kernel
	acpi     memory.GPA // where the ACPI tables lie; 0: at acpiBase
}

// Plan lays the guest out: every byte it starts with and the first registers.
func (img *Image) Plan(o Options) (*Plan, error) {
	if img.Arch == ARM64 {
		return img.planARM64(o)
	}
	if err := img.complete(&o); err != nil {
		return nil, err
	}
	if o.SNP != nil && !o.firmware {
		var err error
		if img, err = img.directSNP(&o); err != nil {
			return nil, err
		}
	}
	cmdline, err := img.cmdline(o)
	if err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	p := &Plan{
		Arch: img.Arch, Format: img.Format, Protocol: img.Protocol, Machine: o.Machine,
		Unikraft: img.Unikraft, RAM: RAMRanges(o.Memory), Cmdline: cmdline, Entry: img.Entry,
	}
	if o.firmware {
		if err := p.addFirmware(img, o); err != nil {
			return nil, err
		}
		return p, p.check()
	}
	for i, s := range img.Segments {
		p.add(fmt.Sprintf("kernel segment %d", i), s.Base, s.Size, img.section(s.Offset, s.FileSize))
	}
	initrd, err := img.placeInitrd(o)
	if err != nil {
		return nil, err
	}
	if initrd != nil {
		p.add("initrd", initrd.Base, initrd.Size, o.Initrd)
	}
	tables, err := acpiTables(o)
	if err != nil {
		return nil, err
	}
	p.addBytes("ACPI tables", cmp.Or(o.acpi, acpiBase), tables)
	p.addBytes("command line", cmdlineBase, append([]byte(cmdline), 0))
	switch img.Protocol {
	case ProtocolMultiboot:
		p.X86 = flat32(img.Entry)
		p.X86.RAX, p.X86.RBX = multibootMagic, uint64(multibootBase)
		p.addBytes("multiboot information", multibootBase, multibootInfo(p.RAM, initrd))
	case ProtocolPVH:
		p.X86 = flat32(img.Entry)
		p.X86.RBX = uint64(pvhInfoBase)
		p.addBytes("PVH start info", pvhInfoBase, pvhInfo(p.RAM, initrd))
	case ProtocolLinux64:
		p.X86 = flat64(img.Entry)
		p.X86.RSI = uint64(zeroPageBase)
		var header []byte
		if img.setup != nil {
			header = img.setup.raw
		}
		params, tables := zeroPage(header, img.Entry, p.RAM, len(cmdline), initrd), identityTables()
		if o.SNP != nil {
			p.addSNP(o.SNP, params, tables)
		}
		p.addBytes("zero page", zeroPageBase, params)
		p.addBytes("page tables", pageTableBase, tables)
	}
	p.addBytes("GDT", gdtBase, gdt(p.X86))
	if err := p.check(); err != nil {
		return nil, err
	}
	if o.SNP != nil {
		p.launchAll()
	}
	return p, nil
}

// complete fills in defaults and refuses what no guest can have.
func (img *Image) complete(o *Options) error {
	if o.Machine == "" || o.Machine == MachineAuto {
		o.Machine = img.Machine
	}
	if o.Machine != MachinePC && o.Machine != MachineMicroVM {
		return fmt.Errorf("machine %q: an x86-64 guest runs on pc or microvm", o.Machine)
	}
	if o.firmware = img.Format == FormatFirmware; o.firmware && o.Machine != MachinePC {
		return fmt.Errorf("machine %q: firmware finds its devices on pc only", o.Machine)
	}
	if o.firmware && o.Kernel == nil && (o.Initrd != nil || o.Params != "" || len(o.Args) > 0) {
		return errors.New("initrd or parameters without a kernel: firmware that boots a disk has no use for them")
	}
	if o.firmware && o.Kernel != nil {
		var err error
		if o.setup, err = setupSize(o.Kernel); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
	}
	if o.Name == "" {
		o.Name = "kernel"
	}
	if o.Memory == 0 {
		o.Memory = img.DefaultMemory()
	}
	if o.Memory%pageSize != 0 || o.Memory > maxMemory {
		return fmt.Errorf("memory: %d bytes: want whole 4 KiB pages and at most %s", o.Memory, humanSize(maxMemory))
	}
	var initrd int64
	if o.Initrd != nil {
		if initrd = o.Initrd.Size(); initrd < 0 || uint64(initrd) > uint64(RAMHole) {
			return fmt.Errorf("initrd: %d bytes: want at most %s", initrd, humanSize(uint64(RAMHole)))
		}
		if initrd == 0 {
			o.Initrd = nil
		}
	}
	if need := img.MinMemory(initrd); o.Memory < need {
		what := "image needs"
		if initrd > 0 {
			what = "image and initrd need"
		}
		return fmt.Errorf("%s %s, the guest has %s: use -M %dM", what, humanSize(need), humanSize(o.Memory), need>>20)
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.CPUs < 1 || o.CPUs > maxCPUs {
		return fmt.Errorf("cpus: %d: want 1 to %d", o.CPUs, maxCPUs)
	}
	if len(o.MMIO) > 256 || len(o.PCI) > 256 {
		return fmt.Errorf("%d virtio-mmio and %d PCI devices: want at most 256 of each", len(o.MMIO), len(o.PCI))
	}
	for _, d := range o.MMIO {
		if d.Base < MMIOBase || d.Base >= PCIMemBase || d.Size == 0 || d.Size > uint64(PCIMemBase-d.Base) || d.IRQ > 23 {
			return fmt.Errorf("virtio-mmio device at %#x with interrupt %d: want %#x to %#x and at most 23", uint64(d.Base), d.IRQ, uint64(MMIOBase), uint64(PCIMemBase)-1)
		}
	}
	for _, d := range o.PCI {
		if d.Slot < 0 || d.Slot > 31 || d.IRQ > 23 {
			return fmt.Errorf("PCI device in slot %d with interrupt %d: want slot 0 to 31, interrupt at most 23", d.Slot, d.IRQ)
		}
	}
	return nil
}

// placeInitrd chooses where the initrd lies: behind a multiboot image, as QEMU
// does it, or at the top of the RAM that the protocol can address.
func (img *Image) placeInitrd(o Options) (*memory.Range, error) {
	if o.Initrd == nil {
		return nil, nil
	}
	size := uint64(o.Initrd.Size())
	end := roundUp(uint64(max(img.Segments[len(img.Segments)-1].End(), highRAMBase)), pageSize)
	top := min(o.Memory, uint64(RAMHole))
	if img.setup != nil {
		top = min(top, img.setup.initrdMax+1)
	}
	first := end + initrdGap
	if first > top || size > top-first {
		return nil, fmt.Errorf("initrd: %d bytes do not fit between the kernel's end at %#x and %#x", size, end, top)
	}
	base := first
	if img.Protocol != ProtocolMultiboot {
		base = (top - size) &^ (pageSize - 1)
	}
	return &memory.Range{Base: memory.GPA(base), Size: size}, nil
}

// initrdGap stays free behind the kernel: Unikraft miscounts the free memory
// around a multiboot module that starts where its kernel ends.
const initrdGap = pageSize

func (p *Plan) addBytes(name string, base memory.GPA, b []byte) {
	p.add(name, base, uint64(len(b)), bytes.NewReader(b))
}

func (p *Plan) add(name string, base memory.GPA, size uint64, data Blob) {
	p.Regions = append(p.Regions, Region{
		Range: memory.Range{Base: base, Size: size}, Name: name, Kind: Normal, Data: data,
	})
}

// check sorts the regions and makes sure of what [Plan] promises about them.
func (p *Plan) check() error {
	sort.Slice(p.Regions, func(i, j int) bool { return p.Regions[i].Base < p.Regions[j].Base })
	for i, r := range p.Regions {
		if !slices.ContainsFunc(p.Memory(), func(m memory.Range) bool { return m.Contains(r.Base, r.Size) }) {
			return fmt.Errorf("%s at %v lies outside the guest's memory", r.Name, r.Range)
		}
		if i > 0 && r.Base < p.Regions[i-1].End() {
			return fmt.Errorf("%s at %v overlaps %s at %v: link the image to start at 1 MiB or above",
				r.Name, r.Range, p.Regions[i-1].Name, p.Regions[i-1].Range)
		}
	}
	return nil
}

// Load copies the plan's bytes into fresh, zeroed guest memory. Files are read
// straight into it; what is zero is not touched.
func (p *Plan) Load(m *memory.Guest) error {
	for _, r := range p.Regions {
		n := uint64(r.Data.Size())
		dst, err := m.Slice(r.Base, n)
		if err != nil {
			return fmt.Errorf("load %s: %w", r.Name, err)
		}
		if k, err := r.Data.ReadAt(dst, 0); uint64(k) < n {
			if err == nil {
				err = errors.New("the file became shorter")
			}
			return fmt.Errorf("load %s: %d of %d bytes read: %w", r.Name, k, n, err)
		}
	}
	return nil
}

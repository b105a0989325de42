package boot

import (
	"io"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Arch is a guest architecture, named as Go names it.
type Arch string

// The guest architectures.
const (
	AMD64 Arch = "amd64"
	ARM64 Arch = "arm64"
)

// Kind says how a region of the plan comes into guest memory in a confidential
// launch. A plain launch writes every region that has bytes.
type Kind string

// The kinds of region. Only a Normal one has bytes in Data.
const (
	Normal     Kind = "normal"     // bytes that are measured
	Zero       Kind = "zero"       // zeros, measured as such
	Unmeasured Kind = "unmeasured" // zeros whose address alone is measured
	Secrets    Kind = "secrets"    // filled by the secure processor
	CPUID      Kind = "cpuid"      // what the guest may believe of the processor, filled at the launch
)

// Region is one piece of guest memory that is not zero at the start.
type Region struct {
	memory.Range        // Size may exceed the bytes of Data: the rest is zero
	Name         string // what it is, for people: "kernel segment 0", "zero page"
	Kind         Kind
	Data         Blob
}

// Blob is the contents of a region: bytes the plan made, or a section of a file
// that is read when the region is loaded or hashed, so that a big image is
// never held twice.
type Blob interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Format is what an image file is.
type Format string

// The formats.
const (
	FormatMultiboot Format = "multiboot"   // ELF or flat, with a multiboot 1 header
	FormatELF64     Format = "ELF64"       // Unikraft for Firecracker, vmlinux
	FormatELF32     Format = "ELF32"       // with a PVH entry
	FormatBzImage   Format = "bzImage"     // Linux, compressed by its own build
	FormatARM64     Format = "arm64 Image" // Linux or Unikraft for arm64
	FormatFirmware  Format = "firmware"    // flat, entered by a reset: OVMF
)

// Protocol is how an image is entered.
type Protocol string

// The boot protocols.
const (
	ProtocolMultiboot Protocol = "multiboot" // Multiboot Specification 0.6.96
	ProtocolLinux64   Protocol = "linux-64"  // Linux Documentation/arch/x86/boot.rst, 64-bit entry
	ProtocolPVH       Protocol = "pvh"       // Xen docs/misc/pvh
	ProtocolARM64     Protocol = "arm64"     // Linux Documentation/arch/arm64/booting.rst
	ProtocolReset     Protocol = "reset"     // a processor's own reset vector
)

// Plan is everything a guest starts with: a value that can be printed, loaded,
// launched and measured, and from which alone those four follow.
type Plan struct {
	Arch     Arch
	Format   Format   // what the image is
	Protocol Protocol // how it is entered
	Machine  Machine  // platform layout
	Unikraft bool     // the image is a Unikraft unikernel: see [Image]

	RAM      []memory.Range // guest RAM, ascending
	Regions  []Region       // not overlapping, inside RAM; ascending, but for a confidential launch in launch order
	Cmdline  string         // as the guest will read it
	X86      *X86State      // first registers of vCPU 0, on AMD64
	ARM64    *ARM64State    // first registers of vCPU 0, on ARM64
	Platform *Platform      // where devices lie, on ARM64
	X86APs   *X86State      // of the others, where the launch measures them; nil: as KVM makes them

	Entry memory.GPA // where vCPU 0 starts

	Firmware *Firmware // nil: the guest starts without
}

// DeviceTree returns the device tree that the guest gets, nil where it gets none.
func (p *Plan) DeviceTree() Blob {
	for i := range p.Regions {
		if p.Regions[i].Name == deviceTreeName {
			return p.Regions[i].Data
		}
	}
	return nil
}

// Memory returns all memory of the guest: RAM, where its firmware lies, and what
// the host tells it about stolen time.
func (p *Plan) Memory() []memory.Range {
	all := slices.Clone(p.RAM)
	if p.Firmware != nil {
		all = append(all, p.Firmware.ROM)
	}
	if p.Platform != nil && p.Platform.PVTime.Size > 0 {
		all = append(all, p.Platform.PVTime)
	}
	return all
}

// X86State is the state that a boot protocol sets on a vCPU. What it does not
// name is as KVM makes a new vCPU.
type X86State struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	RIP, RFLAGS                            uint64

	CR0, CR3, CR4, EFER    uint64
	CS, DS, ES, FS, GS, SS X86Segment
	TR                     X86Segment
	GDT, IDT               X86Table

	SCET, SSP uint64 // supervisor CET, where the plan presets it: IA32_S_CET; SSP, also PL0_SSP
}

// X86Segment is a segment register with its hidden part (Intel SDM vol. 3, 3.4.5).
type X86Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32
	Type     uint8 // descriptor type field, 4 bits
	S        bool  // code or data, not system
	DPL      uint8
	Present  bool
	AVL      bool
	L        bool // 64-bit code
	DB       bool // 32-bit default size
	G        bool // limit counts 4 KiB pages
}

// X86Table is a descriptor table register.
type X86Table struct {
	Base  uint64
	Limit uint16
}

package boot

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/memory"
)

// The x86 machines in guest physical memory:
//
//	0x0000_0000  zeros (no BIOS data: a guest that looks finds nothing)
//	0x0000_0500  GDT, IDT                  every protocol
//	0x0000_6000  PVH start info            PVH
//	0x0000_7000  zero page                 Linux 64-bit entry
//	0x0000_8ff0  first stack               Linux 64-bit entry
//	0x0000_9000  page tables, 6 pages      Linux 64-bit entry
//	0x0001_0000  shadow stack, 64 KiB      where it is preset; one more page table before it
//	0x0002_0000  command line, 64 KiB
//	0x0009_f000  multiboot information     multiboot
//	0x0009_fc00  end of low memory
//	0x000f_0000  ACPI tables, 64 KiB
//	0x0010_0000  the image, then free memory up to the end of RAM
//	             initrd: behind a multiboot image, at the top for the others
//	0xd000_0000  end of RAM below 4 GiB; virtio-mmio windows, 4 KiB each
//	0xe000_0000  PCI memory window
//	0xfec0_0000  I/O APIC
//	0xfee0_0000  local APICs
//	0xfeff_c000  pages KVM needs on Intel processors
//	0x1_0000_0000  the RAM that did not fit below 0xd000_0000
//
// Everything gvmm adds lies below 1 MiB, so that an image that fits into its
// RAM boots in it. GSI n is input n of the I/O APIC for every n and input n of
// the PIC for n < 16, as in KVM's default routing.
const (
	gdtBase       memory.GPA = 0x500
	idtBase       memory.GPA = 0x540
	pvhInfoBase   memory.GPA = 0x6000
	zeroPageBase  memory.GPA = 0x7000
	bootStack     memory.GPA = 0x8ff0
	pageTableBase memory.GPA = 0x9000
	cmdlineBase   memory.GPA = 0x20000

	shadowStackBase memory.GPA = 0x10000
	shadowStackEnd  memory.GPA = 0x20000

	multibootBase memory.GPA = 0x9f000 // flat test guests are linked as low as 16 KiB
	lowRAMEnd     memory.GPA = 0x9fc00
	acpiBase      memory.GPA = 0xf0000
	highRAMBase   memory.GPA = 0x100000

	cmdlineRoom = 0x10000 // bytes, with the NUL
	acpiRoom    = 0x10000 // bytes

	// RAMHole is where RAM below 4 GiB ends and device memory begins.
	RAMHole memory.GPA = 0xd0000000
	// RAMAbove4G is where RAM that does not fit below [RAMHole] goes on.
	RAMAbove4G memory.GPA = 1 << 32
	maxMemory  uint64     = 1 << 44 // bytes; below every 46-bit physical address space

	// MMIOBase is the first virtio-mmio window; each has MMIOSize bytes.
	MMIOBase memory.GPA = RAMHole
	MMIOSize            = 0x1000

	// The windows of the PCI host bridge: 32-bit memory BARs and I/O BARs.
	PCIMemBase memory.GPA = 0xe0000000
	PCIMemSize            = 0x1ec00000
	PCIIOBase  uint16     = 0xc000
	PCIIOSize             = 0x4000

	IOAPICBase memory.GPA = 0xfec00000
	LAPICBase  memory.GPA = 0xfee00000

	// KVMIdentityMap and KVMTSS are for KVM_SET_IDENTITY_MAP_ADDR (one page)
	// and KVM_SET_TSS_ADDR (three pages).
	KVMIdentityMap memory.GPA = 0xfeffc000
	KVMTSS         memory.GPA = 0xfeffd000

	// Ports the ACPI tables name. PM1aEvent has 4 bytes (status, enable),
	// PM1aControl 2: a write with bit 13 set and the sleep type (bits 10 to
	// 12) zero powers off. 0xfe written to ResetPort resets.
	PM1aEvent   uint16 = 0x600
	PM1aControl uint16 = 0x604
	ResetPort   uint16 = 0x64
	PvpanicPort uint16 = 0x505
	COM1Port    uint16 = 0x3f8
	RTCPort     uint16 = 0x70
	PCIPort     uint16 = 0xcf8

	COM1IRQ uint32 = 4
	RTCIRQ  uint32 = 8
	SCIIRQ  uint32 = 9 // ACPI events, level-triggered

	maxCPUs = 255 // xAPIC ids

	// MaxUnikraftMMIO is how many virtio-mmio devices a Unikraft guest takes
	// from its command line (VIRTIO_MMIO_MAX_DEV_CMDLINE).
	MaxUnikraftMMIO = 4
)

// Machine is a platform layout.
type Machine string

// The machines. MachineAuto, like "", lets the image choose.
const (
	MachineAuto    Machine = "auto"
	MachinePC      Machine = "pc"      // PCI with INTx
	MachineMicroVM Machine = "microvm" // virtio-mmio
)

// MMIODevice is a virtio-mmio window. Its interrupt is edge-triggered.
type MMIODevice struct {
	Base memory.GPA
	Size uint64 // bytes
	IRQ  uint32 // GSI
}

// PCIDevice is a device on bus 0. Its INTA# is level-triggered.
type PCIDevice struct {
	Slot int    // device number, 0 to 31
	IRQ  uint32 // GSI, also the value of the interrupt line register
}

// isaIRQs are the interrupts below 16 that no device of the machine has: a
// guest that knows only the PIC can take them.
var isaIRQs = [...]uint32{5, 6, 7, 10, 11, 12, 14, 15}

// MMIOSlot returns the window and interrupt of the i-th virtio-mmio device,
// from 0. The first eight have interrupts that the PIC can deliver. It reports
// false when the interrupts are used up: virtio-mmio lines are not shared.
func MMIOSlot(i int) (MMIODevice, bool) {
	const ioapicOnly = 8 // GSI 16 to 23
	if i < 0 || i >= len(isaIRQs)+ioapicOnly {
		return MMIODevice{}, false
	}
	irq := uint32(16 + i - len(isaIRQs))
	if i < len(isaIRQs) {
		irq = isaIRQs[i]
	}
	return MMIODevice{Base: MMIOBase + memory.GPA(i)*MMIOSize, Size: MMIOSize, IRQ: irq}, true
}

// PCISlot returns the slot and interrupt of the i-th PCI device, from 0. From
// the ninth on interrupts are shared. It reports false when the bus is full.
func PCISlot(i int) (PCIDevice, bool) {
	if i < 0 || i >= 31 {
		return PCIDevice{}, false
	}
	return PCIDevice{Slot: i + 1, IRQ: isaIRQs[i%len(isaIRQs)]}, true
}

// RAMRanges returns where size bytes of RAM lie on the x86 machines.
func RAMRanges(size uint64) []memory.Range {
	low := min(size, uint64(RAMHole))
	ram := []memory.Range{{Base: 0, Size: low}}
	if size > low {
		ram = append(ram, memory.Range{Base: RAMAbove4G, Size: size - low})
	}
	return ram
}

const e820RAM = 1 // AddressRangeMemory (ACPI 6.5, 15.1)

type e820Entry struct {
	memory.Range
	Type uint32
}

// e820 is the memory map every protocol gives to the guest: RAM, and nothing
// else. What is not listed is not RAM, so a reserved entry would add nothing;
// each costs a Unikraft guest milliseconds where KVM emulates it, and one over
// video memory, which Unikraft declares itself, has it assert.
func e820(ram []memory.Range) []e820Entry {
	m := []e820Entry{
		{memory.Range{Base: 0, Size: uint64(lowRAMEnd)}, e820RAM},
		{memory.Range{Base: highRAMBase, Size: ram[0].Size - uint64(highRAMBase)}, e820RAM},
	}
	for _, r := range ram[1:] {
		m = append(m, e820Entry{r, e820RAM})
	}
	return m
}

// humanSize prints a number of bytes in the largest unit that divides it.
func humanSize(n uint64) string {
	switch {
	case n != 0 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n != 0 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n != 0 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

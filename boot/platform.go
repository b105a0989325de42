package boot

import (
	"fmt"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// ARM64State is the state that the boot protocol sets on the first vCPU (Linux
// Documentation/arch/arm64/booting.rst). What it does not name is as
// KVM_ARM_VCPU_INIT makes it: EL1, interrupts masked, MMU and caches off.
type ARM64State struct {
	PC uint64
	X  [4]uint64 // X0 to X3
}

// ARM64Options is what only arm64 machines have, and what the host decides
// about them.
type ARM64Options struct {
	Devices   int       // virtio devices
	Transport Transport // of all of them; "": MMIO, or PCI for Linux on lkvm, as kvmtool has it
	IRQChip   IRQChip   // "": what the image knows, or else the first of Host
	Host      []IRQChip // what the host has, best first; nil: everything
	Realm     bool      // PSCI calls by SMC, which goes to the realm's own monitor
	PMU       bool      // the vCPUs have one
	PVTime    bool      // the host accounts stolen time
	NoPVTime  bool      // the guest is not to learn of it
	NoSVE     bool      // nor have SVE

	KASLRSeed uint64
	RNGSeed   []byte // nil: none
	DTB       Blob   // a device tree to give instead of gvmm's own; nil: none
	HVC       bool   // lkvm: the console is virtio's
	Bare      bool   // lkvm: no kernel parameters but the user's (kvmtool's --nodefaults)
}

// IRQChip is an interrupt controller, by kvmtool's names.
type IRQChip string

// The interrupt controllers.
const (
	GICv2    IRQChip = "gicv2" // at most 8 vCPUs
	GICv3    IRQChip = "gicv3"
	GICv3ITS IRQChip = "gicv3-its" // with message-signalled interrupts for PCI
)

// Transport is what stands between a virtio device and its driver.
type Transport string

// The transports.
const (
	TransportMMIO Transport = "mmio"
	TransportPCI  Transport = "pci"
)

// Platform is the table of what an arm64 machine has beside RAM and vCPUs. The
// monitor makes the devices from it and the device tree describes it.
// Interrupts are GSIs: the number of a shared peripheral interrupt, that is its
// INTID less 32.
type Platform struct {
	GIC       GIC
	UART      string       // kind of all UARTs: [PL011] or [NS16550]
	UARTs     []Peripheral // the first is the console; nothing is wired to the others
	RTC       memory.Range // registers of the clock
	RTCKind   string       // [PL031], which has no interrupt here, or [MC146818]
	PVTime    memory.Range // for stolen time, 64 bytes a vCPU; empty: none
	Transport Transport    // of the virtio devices
	MMIO      []MMIODevice // virtio-mmio windows, edge-triggered
	PCI       *PCIHost     // nil: none
	SMC       bool         // PSCI by SMC, not HVC
	PMU       bool         // its interrupt is [PMUInterrupt]
}

// The devices of arm64 machines that are not virtio, by the first word of
// their compatible property.
const (
	PL011    = "arm,pl011"
	NS16550  = "ns16550a" // registers of one byte, one after the other
	PL031    = "arm,pl031"
	MC146818 = "motorola,mc146818" // index and data register
)

// PMUInterrupt is the INTID of the vCPUs' performance monitors, a private
// peripheral interrupt.
const PMUInterrupt = 23

// Peripheral is a device's registers and its interrupt.
type Peripheral struct {
	memory.Range
	IRQ  uint32 // GSI
	Edge bool   // edge-triggered; otherwise level, active high
}

// GIC is where the interrupt controller lies.
type GIC struct {
	Version int          // 2 or 3
	Dist    memory.Range // distributor
	CPU     memory.Range // version 2: CPU interface
	Redist  memory.Range // version 3: redistributors, [GICRedistSize] a vCPU
	ITS     memory.Range // empty: none
}

// GICRedistSize and GICITSSize are the numbers of bytes of one vCPU's
// redistributor and of the interrupt translation service.
const (
	GICRedistSize = 0x20000
	GICITSSize    = 0x20000
)

// PCIHost is a PCI host bridge with one bus: its configuration space (ECAM) and
// the windows that hold the devices' ranges. Memory has the same address on the
// bus; port n lies at Ports.Base + n.
type PCIHost struct {
	ECAM    memory.Range
	Ports   memory.Range
	Memory  memory.Range
	Bridge  bool        // a function in slot 0 stands for the host bridge
	Devices []PCIDevice // virtio; the requester ID for MSIs is Slot<<3
}

// MPIDR returns the affinity fields of MPIDR_EL1 that KVM gives to a vCPU
// (arch/arm64/kvm/sys_regs.c, reset_mpidr) and a realm to a REC.
func MPIDR(vcpu int) uint64 {
	n := uint64(vcpu)
	return n&0xf | n>>4&0xff<<8 | n>>12&0xff<<16
}

// The machines of arm64 guests; [MachineMicroVM] is the third.
const (
	MachineVirt Machine = "virt" // QEMU's virt: RAM at 1 GiB
	MachineLKVM Machine = "lkvm" // kvmtool's: RAM at 2 GiB
)

// arm64Machine is a layout before it is known what is in it.
type arm64Machine struct {
	ram     memory.GPA
	maxRAM  uint64 // bytes
	maxCPUs int    // with GICv3
	gic2    GIC
	dist    memory.Range // GICv3
	redist  memory.GPA   // 0: redistributors lie below the distributor, the ITS below them
	its     memory.GPA
	uart    string
	uarts   []Peripheral
	rtc     memory.Range
	rtcKind string
	pvtime  memory.Range
	mmio    MMIODevice // the first; the others follow
	maxMMIO int
	pci     *PCIHost
	pciIRQ  func(slot int) uint32
}

func at(base memory.GPA, size uint64) memory.Range { return memory.Range{Base: base, Size: size} }

// layoutARM64 returns where things lie on a machine, in a realm or not.
func layoutARM64(m Machine, realm bool) (arm64Machine, error) {
	switch m {
	case MachineVirt: // QEMU hw/arm/virt.c, base_memmap and a15irqmap
		return arm64Machine{
			ram: 0x40000000, maxRAM: 255 << 30, maxCPUs: 123,
			gic2: GIC{Version: 2, Dist: at(0x08000000, 0x10000), CPU: at(0x08010000, 0x10000)},
			dist: at(0x08000000, 0x10000), redist: 0x080a0000, its: 0x08080000,
			uart: PL011, uarts: []Peripheral{{Range: at(0x09000000, 0x1000), IRQ: 1}},
			rtcKind: PL031, rtc: at(0x09010000, 0x1000),
			pvtime: at(0x090a0000, 0x10000),
			mmio:   MMIODevice{Base: 0x0a000000, Size: 0x200, IRQ: 16}, maxMMIO: 32,
			pci: &PCIHost{ // the low configuration space: Unikraft's page tables reach it
				ECAM: at(0x3f000000, 0x1000000), Ports: at(0x3eff0000, 0x10000), Memory: at(0x10000000, 0x2eff0000),
				Bridge: true,
			},
			pciIRQ: func(slot int) uint32 { return 3 + uint32(slot)%4 },
		}, nil
	case MachineMicroVM: // Firecracker src/vmm/src/arch/aarch64/layout.rs and gic
		return arm64Machine{
			ram: 0x80000000, maxRAM: 254 << 30, maxCPUs: 123,
			gic2: GIC{Version: 2, Dist: at(0x3ffff000, 0x1000), CPU: at(0x3fffd000, 0x2000)},
			dist: at(0x3fff0000, 0x10000),
			uart: NS16550, uarts: []Peripheral{{Range: at(0x40002000, 0x1000), Edge: true}}, // its interrupt follows those of virtio
			rtcKind: PL031, rtc: at(0x40001000, 0x1000),
			pvtime: at(0x3e000000, 0x10000),
			mmio:   MMIODevice{Base: 0x40003000, Size: 0x1000}, maxMMIO: 32,
		}, nil
	case MachineLKVM: // kvmtool arm/include/arm-common/kvm-arch.h
		l := arm64Machine{
			ram: 0x80000000, maxRAM: 1 << 40, maxCPUs: 255,
			gic2: GIC{Version: 2, Dist: at(0x3fff0000, 0x10000), CPU: at(0x3ffd0000, 0x20000)},
			dist: at(0x3fff0000, 0x10000),
			uart: NS16550, rtcKind: MC146818, rtc: at(0x01010000, 2),
			pvtime: at(0x01020000, 0x10000),
			mmio:   MMIODevice{Base: 0x03000000, Size: 0x200, IRQ: 4}, maxMMIO: 60,
			pci:    &PCIHost{ECAM: at(0x40000000, 1<<28), Ports: at(0, 0x10000), Memory: at(0x50000000, 0x30000000)},
			pciIRQ: func(slot int) uint32 { return 4 + uint32(slot) },
		}
		if realm { // its realm branch has a fixed map of interrupts
			l.pciIRQ = func(slot int) uint32 { return 64 + uint32(slot) }
		}
		for i := range uint32(4) {
			l.uarts = append(l.uarts, Peripheral{Range: at(0x01000000+memory.GPA(i)*0x1000, 8), IRQ: i})
		}
		return l, nil
	}
	return arm64Machine{}, fmt.Errorf("machine %q: an arm64 guest runs on %s, %s or %s", m, MachineVirt, MachineMicroVM, MachineLKVM)
}

// platform puts what the options ask for into a layout.
func (l *arm64Machine) platform(o *Options) (*Platform, error) {
	a := &o.ARM64
	p := &Platform{
		UART: l.uart, UARTs: slices.Clone(l.uarts), RTC: l.rtc, RTCKind: l.rtcKind,
		Transport: a.Transport, SMC: a.Realm, PMU: a.PMU,
	}
	if a.PVTime {
		p.PVTime = l.pvtime
	}
	room := l.maxCPUs
	switch a.IRQChip {
	case GICv2:
		room, p.GIC = 8, l.gic2
	case GICv3, GICv3ITS:
		size := uint64(o.CPUs) * GICRedistSize
		p.GIC = GIC{Version: 3, Dist: l.dist, Redist: at(l.redist, size)}
		its := l.its
		if l.redist == 0 {
			p.GIC.Redist.Base = l.dist.Base - memory.GPA(size)
			its = p.GIC.Redist.Base - GICITSSize
		}
		if a.IRQChip == GICv3ITS {
			p.GIC.ITS = at(its, GICITSSize)
		}
	default:
		return nil, fmt.Errorf("irqchip %q: want %s, %s or %s", a.IRQChip, GICv2, GICv3, GICv3ITS)
	}
	if o.CPUs < 1 || o.CPUs > room {
		return nil, fmt.Errorf("cpus: %d: machine %s with %s has room for %d", o.CPUs, o.Machine, a.IRQChip, room)
	}
	return p, l.place(p, o.Machine, a.Devices)
}

// place gives the virtio devices their places.
func (l *arm64Machine) place(p *Platform, m Machine, devices int) error {
	room := l.maxMMIO
	if l.pci != nil { // empty or not: Unikraft for QEMU crashes without
		host := *l.pci
		p.PCI = &host
	}
	switch {
	case p.Transport == TransportPCI && l.pci == nil:
		return fmt.Errorf("virtio over PCI: machine %s has none: use another, or virtio-mmio", m)
	case p.Transport == TransportPCI:
		first := 0
		if l.pci.Bridge {
			first = 1
		}
		room = 32 - first
		for i := range min(devices, room) {
			p.PCI.Devices = append(p.PCI.Devices, PCIDevice{Slot: first + i, IRQ: l.pciIRQ(first + i)})
		}
	case p.Transport == TransportMMIO:
		for i := range min(devices, room) {
			d := l.mmio
			d.Base, d.IRQ = d.Base+memory.GPA(i)*memory.GPA(d.Size), d.IRQ+uint32(i)
			p.MMIO = append(p.MMIO, d)
		}
	default:
		return fmt.Errorf("virtio over %q: want %s or %s", p.Transport, TransportMMIO, TransportPCI)
	}
	if devices < 0 || devices > room {
		return fmt.Errorf("%d devices: machine %s has room for %d over %s", devices, m, room, p.Transport)
	}
	if m == MachineMicroVM {
		p.UARTs[0].IRQ = uint32(devices)
	}
	return nil
}

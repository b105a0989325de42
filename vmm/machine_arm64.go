package vmm

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"time"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// archVM is what only the arm64 machine has.
type archVM struct {
	pci   *devices.PCI
	realm *cca.Realm // nil for a plain guest
}

// archVCPU is what only an arm64 vCPU has: nothing.
type archVCPU struct{}

// highestRAM is where RAM begins on the machines that have it highest.
const highestRAM = 2 << 30

// createVM creates the VM and settles what the host decides of the plan.
func (m *VM) createVM(sys *kvm.System) (*kvm.VM, error) {
	c := &m.cfg
	if c.CET == cet.Require || c.CETPreset != "" || c.CETAudit != "" {
		return nil, errors.New("CET: an arm64 processor has none: leave --cet, --cet-preset and --cet-audit out")
	}
	if c.SNP != nil {
		return nil, errors.New("SEV-SNP: an arm64 processor has none: its confidential guests are realms (--realm)")
	}
	// The machine type is the number of address bits; RAM ends above all devices.
	top := highestRAM + max(c.Memory, boot.DefaultMemoryLinux)
	kind := max(bits.Len64(top-1), 32)
	switch limit := sys.Check(kvm.CapARMIPASize); {
	case limit == 0:
		kind = 0 // an old kernel, whose VMs have 40
	case kind > limit:
		return nil, fmt.Errorf("--memory: guest addresses of %d bits are needed, the host has %d", kind, limit)
	}
	create := func() (*kvm.VM, error) { return sys.CreateVM(kind) }
	if c.Realm != nil {
		create = func() (*kvm.VM, error) { return m.createRealm(sys) }
	}
	v, err := create()
	if err != nil {
		return nil, err
	}
	a := &c.ARM64
	for _, i := range []struct {
		chip boot.IRQChip
		has  bool
	}{
		{boot.GICv3ITS, v.HasDevice(kvm.GICv3) && v.HasDevice(kvm.ITS)},
		{boot.GICv3, v.HasDevice(kvm.GICv3)},
		{boot.GICv2, v.HasDevice(kvm.GICv2) || c.CPUs == 1 && c.Realm == nil},
	} {
		if i.has {
			a.Host = append(a.Host, i.chip)
		}
	}
	if len(a.Host) == 0 || a.IRQChip != "" && !slices.Contains(a.Host, a.IRQChip) {
		return v, fmt.Errorf("KVM here gives guests no %s: it has %v", cmp.Or(a.IRQChip, "interrupt controller"), a.Host)
	}
	if a.PMU && v.Check(kvm.CapARMPMU) == 0 {
		return v, errors.New("KVM here gives guests no performance monitors (PMUv3)")
	}
	if a.Realm { // whose device tree is measured
		return v, nil
	}
	a.PVTime = v.Check(kvm.CapARMStealTime) != 0 && !a.NoPVTime
	if c.Machine == boot.MachineLKVM { // kvmtool gives no seed unasked
		return v, nil
	}
	var seed [8 + 64]byte
	_, _ = rand.Read(seed[:]) // never fails
	if a.KASLRSeed == 0 {
		a.KASLRSeed = binary.NativeEndian.Uint64(seed[:])
	}
	a.RNGSeed = seed[8:]
	return v, nil
}

// irqInput is what KVM calls an interrupt input: a shared peripheral interrupt
// by its INTID (Documentation/virt/kvm/api.rst, 4.25).
func irqInput(gsi uint32) uint32 {
	const spi, first = 1 << 24, 32
	return spi | (gsi + first)
}

// atPort has a write to a PCI port make the event: it is memory here.
func (m *VM) atPort(e *kvm.IOEventFD) { e.Addr += uint64(m.plan.Platform.PCI.Ports.Base) }

// msiFlags: an ITS tells devices apart (KVM_MSI_VALID_DEVID).
const msiFlags = 1

// place returns where the i-th virtio device goes; the plan has checked the number.
func (m *VM) place(i int) (*boot.MMIODevice, boot.PCIDevice) {
	if p := m.plan.Platform; p.Transport == boot.TransportMMIO {
		return &p.MMIO[i], boot.PCIDevice{}
	}
	return nil, m.plan.Platform.PCI.Devices[i]
}

// createPlatform makes the vCPUs, which the interrupt controller wants to know,
// that controller, which everything else wants, and all that is not virtio.
func (m *VM) createPlatform() error {
	p := m.plan.Platform
	if err := m.createVCPUs(p); err != nil {
		return &LackingError{err}
	}
	if err := m.createGIC(&p.GIC); err != nil {
		return &LackingError{fmt.Errorf("GICv%d, which the guest wants: %w: KVM here gives guests %v", p.GIC.Version, err, m.cfg.ARM64.Host)}
	}
	for id, c := range m.cpus {
		if p.PMU {
			if err := errors.Join(c.SetDeviceAttr(kvm.VCPUPMU, kvm.PMUIRQ, boot.PMUInterrupt), c.SetDeviceAttr(kvm.VCPUPMU, kvm.PMUInit, 0)); err != nil {
				return err
			}
		}
		if p.PVTime.Size != 0 {
			if err := c.SetDeviceAttr(kvm.VCPUPVTime, kvm.PVTimeIPA, uint64(p.PVTime.Base)+uint64(id)*pvTimeSize); err != nil {
				return err
			}
		}
	}
	for i := range p.UARTs {
		if err := m.createUART(p, i); err != nil {
			return err
		}
	}
	var clock devices.Handler = devices.NewPL031(time.Now)
	if p.RTCKind == boot.MC146818 {
		clock = devices.NewCMOS(time.Now, 0)
	}
	if err := m.mmio.Add("clock", uint64(p.RTC.Base), p.RTC.Size, clock); err != nil || p.PCI == nil {
		return err
	}
	window := func(r memory.Range) devices.PCIWindow { return devices.PCIWindow{Base: uint64(r.Base), Size: r.Size} }
	var err error
	m.pci, err = devices.NewPCIMapped(&m.mmio, window(p.PCI.ECAM), window(p.PCI.Ports), window(p.PCI.Memory), p.PCI.Bridge)
	return err
}

// pvTimeSize is what a vCPU's stolen time structure takes (Arm DEN0057A).
const pvTimeSize = 64

// createVCPUs creates the vCPUs, with SVE and pointer authentication where the
// host has them. All but the first wait for PSCI's CPU_ON.
func (m *VM) createVCPUs(p *boot.Platform) error {
	target, err := m.kvm.PreferredTarget()
	if err != nil {
		return err
	}
	features := uint32(kvm.VCPUPSCI02)
	if p.PMU {
		features |= kvm.VCPUPMUv3
	}
	if m.kvm.Check(kvm.CapARMPtrAuthAddr) != 0 && m.kvm.Check(kvm.CapARMPtrAuthGen) != 0 {
		features |= kvm.VCPUPtrAuthAddr | kvm.VCPUPtrAuthGen
	}
	if m.kvm.Check(kvm.CapARMSVE) != 0 && m.realm == nil && !m.cfg.ARM64.NoSVE {
		features |= kvm.VCPUSVE
	}
	for id := range m.cfg.CPUs {
		v, err := m.kvm.CreateVCPU(id)
		if err != nil {
			return err
		}
		m.cpus = append(m.cpus, &vcpu{VCPU: v, vm: m})
		if m.realm != nil {
			err = m.realm.Init(v, target, features)
		} else {
			err = v.Init(target, features)
		}
		if err != nil {
			return err
		}
		features |= kvm.VCPUPowerOff
		if features&kvm.VCPUSVE != 0 {
			if err := v.Finalize(kvm.FinalizeSVE); err != nil {
				return err
			}
		}
	}
	return nil
}

// gicIRQs is the number of interrupts of the controller, 32 of them private:
// enough for every device of every machine.
const gicIRQs = 128

// createGIC makes the interrupt controller in the kernel.
func (m *VM) createGIC(g *boot.GIC) error {
	type address struct {
		attr uint64
		base uint64
	}
	if g.Version == 2 && !m.kvm.HasDevice(kvm.GICv2) {
		return m.softGIC(g)
	}
	kind, at := kvm.GICv3, []address{{kvm.GICAddressV3Dist, uint64(g.Dist.Base)}, {kvm.GICAddressRedist, uint64(g.Redist.Base)}}
	if g.Version == 2 {
		kind, at = kvm.GICv2, []address{{kvm.GICAddressV2Dist, uint64(g.Dist.Base)}, {kvm.GICAddressV2CPU, uint64(g.CPU.Base)}}
	}
	create := func(kind kvm.DeviceKind, irqs uint64, at []address) error {
		d, err := m.kvm.CreateDevice(kind)
		if err != nil {
			return err
		}
		defer d.Close()
		for _, a := range at {
			err = errors.Join(err, d.SetDeviceAttr(kvm.GICAddress, a.attr, a.base))
		}
		if irqs != 0 {
			err = errors.Join(err, d.SetDeviceAttr(kvm.GICIRQs, 0, irqs))
		}
		return errors.Join(err, d.SetDeviceAttr(kvm.GICControl, kvm.GICInitAttr, 0))
	}
	if err := create(kind, gicIRQs, at); err != nil || g.ITS.Size == 0 {
		return err
	}
	return create(kvm.ITS, 0, []address{{kvm.GICAddressITS, uint64(g.ITS.Base)}})
}

// softGIC makes the interrupt controller in this program, for one vCPU: most
// processors with a GICv3 have no GICv2 for guests (Documentation/virt/kvm/api.rst, 8.5).
func (m *VM) softGIC(g *boot.GIC) error {
	if m.plan.Platform.PMU {
		return errors.New("gvmm's own takes no interrupts of performance monitors: leave --pmu out")
	}
	if len(m.cpus) > 1 || m.kvm.Check(kvm.CapARMUserIRQ) == 0 {
		return errors.New("gvmm's own serves one vCPU: use -c 1")
	}
	const vtimer, ptimer = 27, 30 // INTIDs
	const input = 0               // of KVM_IRQ_LINE: that of the first vCPU itself
	gic := devices.NewGICv2(func(asserted bool) { _ = m.kvm.SetIRQ(input, asserted) })
	m.irqs.soft = func(gsi uint32, asserted bool) { gic.Set(int(gsi)+32, asserted) }
	c := m.cpus[0]
	c.before = func() *Outcome {
		timers := c.DeviceIRQs()
		gic.Set(vtimer, timers&kvm.IRQVTimer != 0)
		gic.Set(ptimer, timers&kvm.IRQPTimer != 0)
		return nil
	}
	return errors.Join(m.mmio.Add("GIC distributor", uint64(g.Dist.Base), g.Dist.Size, gic.Distributor()),
		m.mmio.Add("GIC interface", uint64(g.CPU.Base), g.CPU.Size, gic.Interface()))
}

// uart is a serial port of either kind.
type uart interface {
	devices.Handler
	Input(p []byte) bool
	Close()
}

// createUART makes the i-th serial port. The first is the console.
func (m *VM) createUART(p *boot.Platform, i int) error {
	u := p.UARTs[i]
	connect := host{m: m}.LevelLine
	if u.Edge {
		connect = host{m: m}.EdgeLine
	}
	line, err := connect(u.IRQ)
	if err != nil {
		return err
	}
	out := io.Discard
	if i == 0 {
		out = m.watch
	}
	serial := devices.NewSerial(out, line)
	var port uart = serial
	if p.UART == boot.PL011 {
		port = devices.NewPL011(out, line)
	}
	if i == 0 {
		m.input = port.Input
		if p.UART != boot.PL011 {
			m.sysrq = serial.SysRq
		}
	}
	m.closers = append(m.closers, closeFunc(port.Close))
	return m.mmio.Add("serial port", uint64(u.Base), u.Size, port)
}

// prepareVCPUs sets the first vCPU's registers, as the boot protocol wants them.
func (m *VM) prepareVCPUs(*kvm.System) error {
	if m.realm != nil {
		return m.launchRealm()
	}
	first, s := m.cpus[0], m.plan.ARM64
	err := first.SetOneReg(kvm.RegPC, s.PC)
	for i, x := range s.X {
		err = errors.Join(err, first.SetOneReg(kvm.RegX0+2*uint64(i), x))
	}
	return err
}

package vmm

import (
	"errors"
	"time"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// tssAddr is where KVM on Intel keeps three pages of its own, in the hole below
// 4 GiB where firmware would be.
const tssAddr = uint64(boot.KVMTSS)

const (
	portCOM1 = 0x3f8
	gsiCOM1  = 4
	portCMOS = 0x70
)

// createVM creates the VM.
func (m *VM) createVM(sys *kvm.System) (*kvm.VM, error) { return sys.CreateVM(0) }

// irqInput is what KVM calls an interrupt input.
func irqInput(gsi uint32) uint32 { return gsi }

// atPort has a write to a port make the event.
func (m *VM) atPort(e *kvm.IOEventFD) { e.Flags |= kvm.IOEventPort }

// msiFlags: the address and data of a message say it all.
const msiFlags = 0

// place returns where the i-th virtio device goes; the plan has checked the number.
func (m *VM) place(i int) (*boot.MMIODevice, boot.PCIDevice) {
	if m.plan.Machine == boot.MachineMicroVM {
		slot, _ := boot.MMIOSlot(i)
		return &slot, boot.PCIDevice{}
	}
	slot, _ := m.cfg.pciSlot(i)
	return nil, slot
}

// createPlatform makes the interrupt controllers and the devices that are not
// virtio.
func (m *VM) createPlatform() error {
	if err := errors.Join(m.kvm.SetTSSAddr(uint32(tssAddr)), m.kvm.CreateIRQChip(), m.kvm.CreatePIT()); err != nil {
		return &LackingError{err}
	}
	com1, err := host{m: m}.EdgeLine(gsiCOM1)
	if err != nil {
		return err
	}
	serial := devices.NewSerial(m.watch, com1)
	m.serial = serial
	m.input = serial.Input
	m.closers = append(m.closers, closeFunc(serial.Close))
	keyboard := devices.NewI8042(m.guestEnd)
	keyboard.Absent = m.plan.Firmware != nil
	reset := devices.NewResetControl(m.guestEnd)
	if m.plan.Machine == boot.MachinePC {
		if m.pci, err = devices.NewPCI(&m.pio, &m.mmio); err != nil {
			return err
		}
		m.pci.Reset = reset
		if m.plan.Firmware != nil {
			if err := m.pci.AddPIIX(devices.PortPM1Event); err != nil {
				return err
			}
		}
	} else if err := m.pio.Add("reset control", devices.PortReset, devices.ResetControlPorts, reset); err != nil {
		return err
	}
	low := m.plan.RAM[0]
	for _, d := range []struct {
		name       string
		base, size uint64
		h          devices.Handler
	}{
		{"COM1", portCOM1, devices.SerialPorts, serial},
		{"CMOS", portCMOS, devices.CMOSPorts, devices.NewCMOS(time.Now, uint64(low.End()))},
		{"i8042 data", devices.PortI8042Data, 1, keyboard.Data()},
		{"i8042 command", devices.PortI8042Command, 1, keyboard.Command()},
		{"PM1a", devices.PortPM1Event, devices.PowerManagementPorts, devices.NewPowerManagement(m.guestEnd)},
		{"debug exit", devices.PortExit, devices.DebugExitPorts, devices.NewDebugExit(m.guestEnd, false)},
		{"debug exit", devices.PortExitUK, devices.DebugExitPorts, devices.NewDebugExit(m.guestEnd, m.plan.Unikraft)},
		{"pvpanic", devices.PortPanic, devices.PanicPorts, devices.NewPanic(m.guestEnd)},
		{"fw_cfg", devices.PortFWCfg, devices.FWCfgPorts, m.fwCfg()},
	} {
		if err := m.pio.Add(d.name, d.base, d.size, d.h); err != nil {
			return err
		}
	}
	return nil
}

// fwCfg is the firmware configuration device with what the plan hands over.
func (m *VM) fwCfg() *devices.FWCfg {
	var ram uint64
	for _, r := range m.plan.RAM {
		ram += r.Size
	}
	if m.plan.Firmware == nil {
		return devices.NewFWCfg(m.cfg.CPUs, ram, nil, nil)
	}
	var items []devices.FWCfgItem
	for _, it := range m.plan.Firmware.Items {
		items = append(items, devices.FWCfgItem{Key: it.Key, Name: it.Name, Data: it.Data})
	}
	return devices.NewFWCfg(m.cfg.CPUs, ram, m.mem, items)
}

// Model-specific registers set before the first instruction.
const (
	msrMiscEnable  = 0x1a0
	msrMTRRDefType = 0x2ff

	miscFastStrings = 1 << 0
	mtrrEnabledWB   = 1<<11 | 6
	capTSCDeadline  = 72 // KVM_CAP_TSC_DEADLINE_TIMER
	lapicLVT0       = 0x350
	lapicLVT1       = 0x360
	lvtExtINT       = 0x700
	lvtNMI          = 0x400
)

// prepareVCPUs creates the vCPUs and sets the state of the first; the others wait
// for the guest to start them (INIT, SIPI).
func (m *VM) prepareVCPUs(sys *kvm.System) error {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	given, missing := cet.Grant(m.cfg.CET, m.cfg.CETPreset, supported)
	if missing.Any() {
		return lackingCET(missing)
	}
	if m.cet = given; given.Any() && m.cfg.CETAudit == "" {
		m.explain = m.explainCET
	}
	deadline := sys.Check(capTSCDeadline) != 0
	for id := range m.cfg.CPUs {
		v, err := m.kvm.CreateVCPU(id)
		if err != nil {
			return err
		}
		c := &vcpu{VCPU: v, vm: m}
		m.cpus = append(m.cpus, c)
		if err := v.SetCPUID(cet.Edit(cpuidFor(supported, id, m.cfg.CPUs, v.TSCKHz(), deadline), supported, given)); err != nil {
			return err
		}
		// The defaults of a real machine's firmware, which sets its own; a KVM
		// without these registers does without.
		for _, r := range []struct {
			index uint32
			value uint64
		}{{msrMiscEnable, miscFastStrings}, {msrMTRRDefType, mtrrEnabledWB}} {
			if m.plan.Firmware != nil {
				break
			}
			if err := v.SetMSR(r.index, r.value); err != nil {
				m.log.Debug("optional register not set", "vcpu", id, "err", err)
			}
		}
		if err := setLVT(v); err != nil {
			return err
		}
	}
	if m.cfg.CETAudit != "" {
		a := cet.NewAuditor(m.cfg.CETAudit, m.image.symbols())
		for _, c := range m.cpus {
			c.audit(a)
		}
	}
	first := m.cpus[0].VCPU
	if err := setX86State(first, m.plan.X86); err != nil || m.cfg.CETPreset == "" {
		return err
	}
	preset := &cet.State{Features: given, Enabled: true, SCET: m.plan.X86.SCET, SSP: m.plan.X86.SSP}
	preset.PLSSP[0] = preset.SSP
	return preset.Restore(first)
}

// setLVT wires the 8259's output and NMI to the local APIC. Unikraft takes its
// interrupts this way and never programs the APIC itself.
func setLVT(v *kvm.VCPU) error {
	l, err := v.LAPIC()
	if err != nil {
		return err
	}
	l.Regs[lapicLVT0+0], l.Regs[lapicLVT0+1], l.Regs[lapicLVT0+2] = lvtExtINT&0xff, lvtExtINT>>8, 0
	l.Regs[lapicLVT1+0], l.Regs[lapicLVT1+1], l.Regs[lapicLVT1+2] = lvtNMI&0xff, lvtNMI>>8, 0
	return v.SetLAPIC(l)
}

func setX86State(v *kvm.VCPU, x *boot.X86State) error {
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	for _, seg := range []struct {
		to   *kvm.Segment
		from boot.X86Segment
	}{{&s.CS, x.CS}, {&s.DS, x.DS}, {&s.ES, x.ES}, {&s.FS, x.FS}, {&s.GS, x.GS}, {&s.SS, x.SS}, {&s.TR, x.TR}} {
		*seg.to = segment(seg.from)
	}
	s.GDT = kvm.Descriptor{Base: x.GDT.Base, Limit: x.GDT.Limit}
	s.IDT = kvm.Descriptor{Base: x.IDT.Base, Limit: x.IDT.Limit}
	s.CR0, s.CR3, s.CR4, s.EFER = x.CR0, x.CR3, x.CR4, x.EFER
	return errors.Join(v.SetSregs(s), v.SetRegs(&kvm.Regs{
		RAX: x.RAX, RBX: x.RBX, RCX: x.RCX, RDX: x.RDX, RSI: x.RSI, RDI: x.RDI, RSP: x.RSP, RBP: x.RBP,
		RIP: x.RIP, RFLAGS: x.RFLAGS | rflagsFixed,
	}))
}

const rflagsFixed = 2 // bit 1 always reads as one

func segment(s boot.X86Segment) kvm.Segment {
	bit := func(b bool) uint8 {
		if b {
			return 1
		}
		return 0
	}
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Typ: s.Type, Present: bit(s.Present), DPL: s.DPL,
		DB: bit(s.DB), S: bit(s.S), L: bit(s.L), G: bit(s.G), AVL: bit(s.AVL), Unusable: bit(!s.Present),
	}
}

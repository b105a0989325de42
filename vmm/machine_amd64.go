package vmm

import (
	"errors"
	"time"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/sev"
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
func (m *VM) createVM(sys *kvm.System) (*kvm.VM, error) {
	if m.cfg.SNP != nil {
		return m.createSNP(sys)
	}
	return sys.CreateVM(0)
}

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
	m.input, m.sysrq = serial.Input, serial.SysRq
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
			if f := probeHardware(); !f.OK {
				m.log.Warn("--firmware: this KVM emulates kernel mode, in which firmware runs: it takes the better part of an hour", "host", f.Detail)
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
	fw := m.plan.Firmware
	if fw == nil {
		return devices.NewFWCfg(m.cfg.CPUs, m.mem.Size(), nil, nil)
	}
	var items []devices.FWCfgItem
	for _, it := range fw.Items {
		items = append(items, devices.FWCfgItem{Key: it.Key, Name: it.Name, Data: it.Data})
	}
	return devices.NewFWCfg(m.cfg.CPUs, m.mem.Size()-fw.ROM.Size, m.mem, items)
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
	plain := m.launch == nil
	if m.cet = given; given.Any() && m.cfg.CETAudit == "" && plain {
		m.explain = m.explainCET
	}
	deadline := sys.Check(capTSCDeadline) != 0 && plain
	var leaves []kvm.CPUIDEntry // of vCPU 0
	for id := range m.cfg.CPUs {
		v, err := m.kvm.CreateVCPU(id)
		if err != nil {
			return err
		}
		c := &vcpu{VCPU: v, vm: m}
		m.cpus = append(m.cpus, c)
		tsc := uint32(0) // no leaf 0x15: AMD's processors have none, and the secure one knows
		if plain {
			tsc = v.TSCKHz()
		}
		mine := cet.Edit(cpuidFor(supported, id, m.cfg.CPUs, tsc, deadline), supported, given)
		if id == 0 {
			leaves = mine
		}
		if err := v.SetCPUID(mine); err != nil {
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
	if !plain {
		return m.finishLaunch(leaves)
	}
	first, regs := m.cpus[0].VCPU, sev.FromX86(m.plan.X86, 0)
	if err := setRegisters(first, &regs); err != nil || m.cfg.CETPreset == "" {
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

// setRegisters sets the general, segment and control registers.
func setRegisters(v *kvm.VCPU, r *sev.Registers) error {
	s, err := v.Sregs() // for the APIC's base
	if err != nil {
		return err
	}
	for _, seg := range []struct {
		to   *kvm.Segment
		from sev.Segment
	}{{&s.CS, r.CS}, {&s.DS, r.DS}, {&s.ES, r.ES}, {&s.FS, r.FS}, {&s.GS, r.GS}, {&s.SS, r.SS}, {&s.TR, r.TR}, {&s.LDT, r.LDTR}} {
		a := seg.from.Attrib
		bit := func(n int) uint8 { return uint8(a >> n & 1) }
		*seg.to = kvm.Segment{
			Base: seg.from.Base, Limit: seg.from.Limit, Selector: seg.from.Selector, Typ: uint8(a & 0xf), S: bit(4), DPL: uint8(a >> 5 & 3),
			Present: bit(7), AVL: bit(8), L: bit(9), DB: bit(10), G: bit(11), Unusable: bit(7) ^ 1,
		}
	}
	s.GDT = kvm.Descriptor{Base: r.GDTR.Base, Limit: uint16(r.GDTR.Limit)}
	s.IDT = kvm.Descriptor{Base: r.IDTR.Base, Limit: uint16(r.IDTR.Limit)}
	s.CR0, s.CR2, s.CR3, s.CR4, s.EFER = r.CR0, r.CR2, r.CR3, r.CR4, r.EFER
	return errors.Join(v.SetSregs(s), v.SetRegs(&kvm.Regs{
		RAX: r.RAX, RBX: r.RBX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, RSP: r.RSP, RBP: r.RBP,
		R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15,
		RIP: r.RIP, RFLAGS: r.RFLAGS,
	}))
}

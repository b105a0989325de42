package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// howToKVM says how a host gets [Path].
const howToKVM = "load the kvm_intel or kvm_amd module"

// The register structures are gokvm's, laid out as the kernel's.
type (
	Regs       = gokvm.Regs
	Sregs      = gokvm.Sregs
	Segment    = gokvm.Segment
	Descriptor = gokvm.Descriptor
	VCPUEvents = gokvm.VCPUEvents
	Exception  = gokvm.Exception
)

// IO returns a KVM_EXIT_IO: count accesses of size bytes at port, back to back
// in data, which aliases kvm_run. data is nil when the kernel's numbers do not
// fit the area, which no kernel does.
func (c *VCPU) IO() (port uint16, size int, data []byte, write bool) {
	u := c.shared[offUnion:]
	size = int(u[1])
	count := uint64(binary.LittleEndian.Uint32(u[4:]))
	off := binary.LittleEndian.Uint64(u[8:])
	end := off + count*uint64(size)
	if size == 0 || end > uint64(len(c.shared)) || off > end {
		return 0, 0, nil, false
	}
	return binary.LittleEndian.Uint16(u[2:]), size, c.shared[off:end:end], u[0] == 1
}

// Regs reads the general registers (KVM_GET_REGS).
func (c *VCPU) Regs() (*Regs, error) {
	r := &Regs{}
	return r, read(c.file, "KVM_GET_REGS", nrGetRegs, r)
}

// SetRegs writes the general registers (KVM_SET_REGS).
func (c *VCPU) SetRegs(r *Regs) error {
	return write(c.file, "KVM_SET_REGS", nrSetRegs, r)
}

// Sregs reads the segment and control registers (KVM_GET_SREGS).
func (c *VCPU) Sregs() (*Sregs, error) {
	s := &Sregs{}
	return s, read(c.file, "KVM_GET_SREGS", nrGetSregs, s)
}

// SetSregs writes the segment and control registers (KVM_SET_SREGS).
func (c *VCPU) SetSregs(s *Sregs) error {
	return write(c.file, "KVM_SET_SREGS", nrSetSregs, s)
}

// XCR0 reads the extended control register 0 (KVM_GET_XCRS). A host without
// XSAVE has none: it reads as 3, x87 and SSE.
func (c *VCPU) XCR0() (uint64, error) {
	var x gokvm.XCRS
	if err := read(c.file, "KVM_GET_XCRS", nrGetXCRS, &x); err != nil {
		return 0, err
	}
	for i := range min(int(x.NrXRCS), len(x.Registers)) {
		if x.Registers[i].XRC == 0 {
			return x.Registers[i].Value, nil
		}
	}
	return 3, nil
}

// SetXCR0 writes the extended control register 0 (KVM_SET_XCRS).
func (c *VCPU) SetXCR0(value uint64) error {
	x := gokvm.XCRS{NrXRCS: 1}
	x.Registers[0].Value = value
	return write(c.file, "KVM_SET_XCRS", nrSetXCRS, &x)
}

// SetDebugRegs writes DR6 and DR7 and clears the others (KVM_SET_DEBUGREGS).
func (c *VCPU) SetDebugRegs(dr6, dr7 uint64) error {
	return write(c.file, "KVM_SET_DEBUGREGS", nrSetDebugRegs, &gokvm.DebugRegs{DR6: dr6, DR7: dr7})
}

// SyncRegs is struct kvm_sync_regs: the part of the vCPU's state that KVM can
// exchange through kvm_run with KVM_RUN, without an ioctl of its own each.
type SyncRegs struct {
	Regs   Regs
	Sregs  Sregs
	Events VCPUEvents
}

// Offsets in struct kvm_run, and the bits of its two masks.
const (
	offValidRegs = 288
	offDirtyRegs = 296
	offSyncRegs  = 304

	syncRegs   = 1 << 0
	syncSregs  = 1 << 1
	syncEvents = 1 << 2
)

// Sync returns the vCPU's registers as they are after an exit. From the first
// call on KVM stores them at every exit (KVM_CAP_SYNC_REGS), which costs little
// on a KVM whose ioctls cost much. What the caller changes counts after the
// matching call of [VCPU.SetDirty].
func (c *VCPU) Sync() (*SyncRegs, error) {
	if c.shared[offValidRegs] == 0 {
		c.shared[offValidRegs] = syncRegs | syncSregs | syncEvents
		// A kick that comes now is not lost: whoever kicks has changed the state
		// that is looked at next.
		if _, err := c.Settle(); err != nil {
			return nil, err
		}
	}
	return c.syncArea(), nil
}

// SetDirty has the next KVM_RUN load the general registers and pending events
// from the [SyncRegs], and with sregs also the segment and control registers.
func (c *VCPU) SetDirty(sregs bool) {
	c.shared[offDirtyRegs] = syncRegs | syncEvents
	if sregs {
		c.shared[offDirtyRegs] |= syncSregs
	}
}

// LAPIC is the register page of a local APIC, 1 KiB.
type LAPIC = gokvm.LAPICState

// LAPIC reads the local APIC (KVM_GET_LAPIC).
func (c *VCPU) LAPIC() (*LAPIC, error) {
	l := &LAPIC{}
	return l, read(c.file, "KVM_GET_LAPIC", nrGetLAPIC, l)
}

// SetLAPIC writes the local APIC (KVM_SET_LAPIC).
func (c *VCPU) SetLAPIC(l *LAPIC) error {
	return write(c.file, "KVM_SET_LAPIC", nrSetLAPIC, l)
}

// TSCKHz returns the frequency of the vCPU's time stamp counter in kHz
// (KVM_GET_TSC_KHZ), 0 when KVM does not know it.
func (c *VCPU) TSCKHz() uint32 {
	khz, err := c.call("KVM_GET_TSC_KHZ", nrGetTSCKHz, 0)
	if err != nil {
		return 0
	}
	return uint32(khz)
}

// Translate walks the guest's page tables for a linear address (KVM_TRANSLATE).
// ok is false when it is not mapped.
func (c *VCPU) Translate(linear uint64) (gpa uint64, ok bool) {
	t := gokvm.Translation{LinearAddress: linear}
	if _, err := exchange(c.file, "KVM_TRANSLATE", nrTranslate, &t); err != nil || t.Valid == 0 {
		return 0, false
	}
	return t.PhysicalAddress, true
}

// Halt has the vCPU wait for its next interrupt, as HLT does (KVM_SET_MP_STATE).
func (c *VCPU) Halt() error {
	halted := uint32(3) // KVM_MP_STATE_HALTED
	return write(c.file, "KVM_SET_MP_STATE", nrSetMPState, &halted)
}

// SingleStep has KVM_RUN return with [ExitDebug] behind the next instruction
// (KVM_SET_GUEST_DEBUG). KVM holds the trap flag in the vCPU's RFLAGS, which a
// guest's popf clears: the call is repeated before each entry.
func (c *VCPU) SingleStep() error {
	const enable, singleStep = 1, 2 // KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP
	return write(c.file, "KVM_SET_GUEST_DEBUG", nrSetGuestDebug, &struct {
		control, _ uint32
		registers  [8]uint64
	}{control: enable | singleStep})
}

// SetMSR writes one model-specific register (KVM_SET_MSRS).
func (c *VCPU) SetMSR(index uint32, value uint64) error {
	n, err := c.SetMSRs([]MSR{{Index: index, Data: value}})
	if err == nil && n != 1 {
		err = errors.New("KVM_SET_MSRS: not accepted")
	}
	if err != nil {
		return fmt.Errorf("MSR %#x = %#x: %w", index, value, err)
	}
	return nil
}

package cet

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// The registers of CET (Intel SDM vol. 4, table 2-2).
var registers = [...]struct {
	index uint32
	name  string
}{
	{0xda0, "IA32_XSS"}, {0x6a0, "IA32_U_CET"}, {0x6a2, "IA32_S_CET"},
	{0x6a4, "IA32_PL0_SSP"}, {0x6a5, "IA32_PL1_SSP"}, {0x6a6, "IA32_PL2_SSP"}, {0x6a7, "IA32_PL3_SSP"},
	{0x6a8, "IA32_INTERRUPT_SSP_TABLE_ADDR"},
}

const (
	// RegSSP is the KVM_REG_* id of the shadow-stack pointer, which is no MSR.
	RegSSP = 0x2030000300000000

	cr0WP  = 1 << 16
	cr4CET = 1 << 23
)

// Bits of IA32_U_CET and IA32_S_CET (Intel SDM vol. 1, 17.1.2).
const (
	enableShadowStack = 1 << 0
	enableIBT         = 1 << 2
	enableNoTrack     = 1 << 4
	waitENDBR         = 1 << 11
)

// VCPU is what [State] needs of a vCPU; *kvm.VCPU is one. MSRs and SetMSRs
// return how many registers of the list KVM took.
type VCPU interface {
	Sregs() (*kvm.Sregs, error)
	MSRs(list []kvm.MSR) (int, error)
	SetMSRs(list []kvm.MSR) (int, error)
	OneReg(id uint64) (uint64, error)
	SetOneReg(id, value uint64) error
}

// State is the CET state of a vCPU, all that is not in its control registers.
// Everything that dumps or moves a vCPU uses it.
type State struct {
	Features  Features // what the vCPU's CPUID has; without any, the rest is zero
	Enabled   bool     // CR4.CET
	XSS       uint64   // IA32_XSS, all of it
	UCET      uint64
	SCET      uint64    // with the tracker, which cannot be computed anew
	PLSSP     [4]uint64 // PL0_SSP to PL3_SSP
	IntSSPTab uint64
	SSP       uint64
}

// msrs are the registers of the state in the order in which they are restored:
// IA32_XSS first, which tells KVM what else there is.
func (s *State) msrs() (list []kvm.MSR, values []*uint64) {
	values = []*uint64{&s.XSS, &s.UCET, &s.SCET, &s.PLSSP[0], &s.PLSSP[1], &s.PLSSP[2], &s.PLSSP[3], &s.IntSSPTab}
	if !s.Features.ShadowStack {
		values = values[:3]
	}
	for i, v := range values {
		list = append(list, kvm.MSR{Index: registers[i].index, Data: *v})
	}
	return list, values
}

// Save reads the state of a vCPU that has the features. The vCPU stands, with
// no port or memory access half done (KVM_RUN with immediate_exit ends one).
func Save(v VCPU, f Features) (*State, error) {
	s := &State{Features: f}
	if !f.Any() {
		return s, nil
	}
	x, err := v.Sregs()
	if err != nil {
		return nil, fmt.Errorf("CET state: %w", err)
	}
	s.Enabled = x.CR4&cr4CET != 0
	list, values := s.msrs()
	n, err := v.MSRs(list)
	if err := short("read", list, n, err); err != nil {
		return nil, err
	}
	for i := range list {
		*values[i] = list[i].Data
	}
	if f.ShadowStack {
		if s.SSP, err = v.OneReg(RegSSP); err != nil {
			return nil, fmt.Errorf("CET state: read SSP: %w", err)
		}
	}
	return s, nil
}

// Restore writes the state to a vCPU that has its CPUID, control registers and
// XSAVE area already; its events and local APIC come after. CR4.CET that
// differs from the state's is an error: the order was wrong.
func (s *State) Restore(v VCPU) error {
	if !s.Features.Any() {
		return nil
	}
	x, err := v.Sregs()
	if err != nil {
		return fmt.Errorf("CET state: %w", err)
	}
	if err := CheckControl(x.CR0, x.CR4, s.Features); err != nil {
		return err
	}
	if on := x.CR4&cr4CET != 0; on != s.Enabled {
		return fmt.Errorf("CET state: CR4.CET is %v on the vCPU and %v in the state: set the control registers first", on, s.Enabled)
	}
	list, _ := s.msrs()
	n, err := v.SetMSRs(list)
	if err := short("write", list, n, err); err != nil {
		return err
	}
	if s.Features.ShadowStack {
		if err := v.SetOneReg(RegSSP, s.SSP); err != nil {
			return fmt.Errorf("CET state: write SSP: %w", err)
		}
	}
	return nil
}

// short turns a list that KVM did not take whole into an error that names the
// register: KVM stops there and reports success.
func short(verb string, list []kvm.MSR, n int, err error) error {
	if err != nil {
		return fmt.Errorf("CET state: %s MSRs: %w", verb, err)
	}
	if n < 0 || n >= len(list) {
		return nil
	}
	m := list[n]
	return fmt.Errorf("CET state: %s MSR %#x (%s), value %#x: KVM refuses it: the vCPU's CPUID lacks the feature, or the value has bits it does not allow",
		verb, m.Index, registers[n].name, m.Data)
}

// CheckControl refuses control registers that the processor does not enter a
// guest with, and CR4.CET without either feature (Intel SDM vol. 3, 2.5). KVM
// takes CR4.CET without CR0.WP and fails at the next KVM_RUN.
func CheckControl(cr0, cr4 uint64, f Features) error {
	switch {
	case cr4&cr4CET == 0:
		return nil
	case cr0&cr0WP == 0:
		return fmt.Errorf("CR4.CET without CR0.WP: cr0 %#x, cr4 %#x: no processor enters a guest so", cr0, cr4)
	case !f.Any():
		return fmt.Errorf("CR4.CET (cr4 %#x) without shadow stack or IBT in the vCPU's CPUID", cr4)
	}
	return nil
}

// String is the state on one line, as crash dumps show it.
func (s *State) String() string {
	return fmt.Sprintf("s_cet %x  u_cet %x  ssp %016x  pl0..3_ssp %x %x %x %x  int_ssp_tab %x  xss %x",
		s.SCET, s.UCET, s.SSP, s.PLSSP[0], s.PLSSP[1], s.PLSSP[2], s.PLSSP[3], s.IntSSPTab, s.XSS)
}

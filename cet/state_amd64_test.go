package cet

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// fakeVCPU keeps the registers of CET as KVM does: lists stop at the first
// register it does not take, nothing but XSS is there before XSS is written,
// and SSP comes last.
type fakeVCPU struct {
	has      Features
	cr0, cr4 uint64
	msr      map[uint32]uint64
	ssp      uint64
	log      []uint32 // registers in the order in which they were written
	skip     uint32   // a write that gets lost: a mutation
	fail     error
}

const sspInLog = 1

func newFake(f Features) *fakeVCPU {
	v := &fakeVCPU{has: f, cr0: cr0WP | 1, msr: map[uint32]uint64{}}
	s := &State{Features: f}
	list, _ := s.msrs()
	for _, m := range list {
		v.msr[m.Index] = 0
	}
	return v
}

func (v *fakeVCPU) Sregs() (*kvm.Sregs, error) {
	return &kvm.Sregs{CR0: v.cr0, CR4: v.cr4}, v.fail
}

func (v *fakeVCPU) MSRs(list []kvm.MSR) (int, error) {
	for i := range list {
		data, ok := v.msr[list[i].Index]
		if !ok {
			return i, nil
		}
		list[i].Data = data
	}
	return len(list), nil
}

func (v *fakeVCPU) SetMSRs(list []kvm.MSR) (int, error) {
	for i, m := range list {
		if _, ok := v.msr[m.Index]; !ok || m.Index != 0xda0 && (len(v.log) == 0 || v.log[0] != 0xda0) {
			return i, nil
		}
		v.log = append(v.log, m.Index)
		if m.Index != v.skip {
			v.msr[m.Index] = m.Data
		}
	}
	return len(list), nil
}

func (v *fakeVCPU) OneReg(id uint64) (uint64, error) {
	if id != RegSSP || !v.has.ShadowStack {
		return 0, errors.New("invalid argument")
	}
	return v.ssp, nil
}

func (v *fakeVCPU) SetOneReg(id, value uint64) error {
	if id != RegSSP || !v.has.ShadowStack || len(v.log) < 8 {
		return errors.New("invalid argument")
	}
	v.log = append(v.log, sspInLog)
	if v.skip != sspInLog {
		v.ssp = value
	}
	return nil
}

// busy is a vCPU in the middle of something: every register differs.
func busy() *fakeVCPU {
	v := newFake(Features{true, true})
	v.cr4 = cr4CET
	n := uint64(0x1000)
	for index := range v.msr {
		n += 8
		v.msr[index] = n + uint64(index)
	}
	v.ssp = 0x7ff8
	return v
}

func TestStateMoves(t *testing.T) {
	old := busy()
	s, err := Save(old, old.has)
	if err != nil {
		t.Fatal(err)
	}
	fresh := newFake(old.has)
	fresh.cr4 = cr4CET
	if err := s.Restore(fresh); err != nil {
		t.Fatal(err)
	}
	want := []uint32{0xda0, 0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8, sspInLog}
	if !reflect.DeepEqual(fresh.log, want) {
		t.Errorf("order %#x, want %#x", fresh.log, want)
	}
	if !reflect.DeepEqual(fresh.msr, old.msr) || fresh.ssp != old.ssp {
		t.Errorf("moved %#x ssp %#x, want %#x ssp %#x", fresh.msr, fresh.ssp, old.msr, old.ssp)
	}
	// Each register counts: without any one of them the copy is another.
	for _, lost := range want {
		v := newFake(old.has)
		v.cr4, v.skip = cr4CET, lost
		if err := s.Restore(v); err != nil {
			t.Fatal(err)
		}
		again, err := Save(v, v.has)
		if err != nil {
			t.Fatal(err)
		}
		if *again == *s {
			t.Errorf("losing register %#x makes no difference: State does not carry it", lost)
		}
	}
}

// KVM answers a list that it does not take whole with a smaller number.
func TestShortLists(t *testing.T) {
	old := busy()
	s, err := Save(old, old.has)
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint32]string{
		0xda0: "IA32_XSS", 0x6a0: "IA32_U_CET", 0x6a2: "IA32_S_CET", 0x6a4: "IA32_PL0_SSP", 0x6a5: "IA32_PL1_SSP",
		0x6a6: "IA32_PL2_SSP", 0x6a7: "IA32_PL3_SSP", 0x6a8: "IA32_INTERRUPT_SSP_TABLE_ADDR",
	}
	for index := range old.msr {
		v := busy()
		delete(v.msr, index)
		for verb, err := range map[string]error{"read": second(Save(v, v.has)), "write": s.Restore(v)} {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s MSR %#x (%s)", verb, index, names[index])) {
				t.Errorf("%s without %#x: %v", verb, index, err)
			}
		}
	}
	ibt := newFake(Features{IBT: true}) // has no PLx_SSP and no SSP
	if s, err := Save(ibt, ibt.has); err != nil || s.Restore(ibt) != nil || len(ibt.log) != 3 {
		t.Errorf("IBT alone: %v, %#x", err, ibt.log)
	}
	none := &fakeVCPU{fail: errors.New("must not be asked")}
	if s, err := Save(none, Features{}); err != nil || s.Restore(none) != nil {
		t.Errorf("no CET: %v", err)
	}
}

func second(_ *State, err error) error { return err }

func TestControlRegisters(t *testing.T) {
	s, err := Save(busy(), Features{true, true})
	if err != nil {
		t.Fatal(err)
	}
	for say, v := range map[string]*fakeVCPU{
		"without CR0.WP":          {cr0: 1, cr4: cr4CET},
		"control registers first": {cr0: cr0WP, cr4: 0},
	} {
		if err := s.Restore(v); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v, want it to say %q", err, say)
		}
	}
	if err := CheckControl(cr0WP, cr4CET, Features{}); err == nil {
		t.Error("CR4.CET without CET in CPUID is accepted")
	}
	if err := CheckControl(0, 0x20, Features{}); err != nil {
		t.Error(err)
	}
}

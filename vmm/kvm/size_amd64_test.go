package kvm

import (
	"testing"
	"unsafe"
)

func TestX86StructSizes(t *testing.T) {
	for name, c := range map[string]struct{ got, want uintptr }{
		"kvm_cpuid_entry2": {unsafe.Sizeof(CPUIDEntry{}), 40},
		"kvm_cpuid2":       {unsafe.Sizeof(cpuidTable{}), 8 + 40*MaxCPUID},
		"kvm_msr_entry":    {unsafe.Sizeof(MSR{}), 16},
		"kvm_regs":         {unsafe.Sizeof(Regs{}), 144},
		"kvm_sregs":        {unsafe.Sizeof(Sregs{}), 312},
		"kvm_vcpu_events":  {unsafe.Sizeof(VCPUEvents{}), 64},
		"kvm_sync_regs":    {unsafe.Sizeof(SyncRegs{}), 520},
		"kvm_lapic_state":  {unsafe.Sizeof(LAPIC{}), 1024},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, c.got, c.want)
		}
	}
}

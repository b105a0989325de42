package vmm

import (
	"bytes"
	"fmt"
	"os"

	"github.com/gvmm/gvmm/vmm/kvm"
)

const (
	vmTypeSNP = 4 // KVM_X86_SNP_VM

	ecx7ShadowStack = 1 << 7
	edx7IBT         = 1 << 20
)

// probeArch says what only x86 hosts have.
func probeArch(sys *kvm.System) []Finding {
	found := []Finding{probeHardware()}
	types := sys.Check(kvm.CapVMTypes)
	snp := Finding{Name: "sev-snp", OK: types&(1<<vmTypeSNP) != 0, Detail: "KVM can create SEV-SNP machines"}
	if !snp.OK {
		snp.Detail = fmt.Sprintf("KVM offers the machine types %#x, without SEV-SNP (type %d)", types, vmTypeSNP)
		snp.Remedy = "an EPYC processor (Milan or later) with SNP enabled in its firmware, Linux 6.11 or later, kvm_amd.sev_snp=1"
	}
	found = append(found, snp)
	for _, f := range []struct {
		name string
		has  func(e kvm.CPUIDEntry) bool
	}{
		{"cet-shstk", func(e kvm.CPUIDEntry) bool { return e.ECX&ecx7ShadowStack != 0 }},
		{"cet-ibt", func(e kvm.CPUIDEntry) bool { return e.EDX&edx7IBT != 0 }},
	} {
		found = append(found, probeCET(sys, f.name, f.has))
	}
	return found
}

// probeHardware tells a KVM on virtualization hardware from one without: there
// ring 0 of the guest is emulated, which gvmm has to help with.
func probeHardware() Finding {
	f := Finding{Name: "hardware", OK: true, Detail: "the processor's virtualization extensions"}
	info, err := os.ReadFile("/proc/cpuinfo")
	switch {
	case exists("/sys/module/kvm_pvm"), err == nil && !bytes.Contains(info, []byte(" vmx")) && !bytes.Contains(info, []byte(" svm")):
		f.OK = false
		f.Detail = "KVM without virtualization hardware: kernels run, slowly; CPUID cannot be masked; gvmm completes instructions that KVM refuses"
		f.Remedy = "bare metal, or nested virtualization in the outer hypervisor"
	}
	return f
}

func probeCET(sys *kvm.System, name string, has func(kvm.CPUIDEntry) bool) Finding {
	f := Finding{Name: name, Detail: "KVM offers it to guests"}
	leaves, err := sys.SupportedCPUID()
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	for _, e := range leaves {
		if e.Function == 7 && e.Index == 0 && has(e) {
			f.OK = true
			return f
		}
	}
	f.Detail = "KVM does not offer it"
	f.Remedy = "a processor with CET and Linux 6.18 or later"
	return f
}

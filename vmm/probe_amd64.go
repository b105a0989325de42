package vmm

import (
	"bytes"
	"fmt"
	"os"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// probeArch says what only x86 hosts have.
func probeArch(sys *kvm.System, _ *kvm.VM) []Finding {
	found := []Finding{probeHardware()}
	found = append(found, probeSNP(sys, thisHost())...)
	found = append(found, probeCET(sys)...)
	return append(found, Finding{Name: "realm", Detail: "realms are Arm's (CCA)", Remedy: "an arm64 host whose processor has RME"})
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

// probeCET says of each half of CET whether guests can have it, and why not.
func probeCET(sys *kvm.System) []Finding {
	leaves, err := sys.SupportedCPUID()
	if err != nil {
		return []Finding{{Name: "cet", Detail: err.Error()}}
	}
	var found []Finding
	has := cet.Offered(leaves)
	for _, f := range []struct {
		name string
		ok   bool
		want cet.Features
	}{
		{"cet-shstk", has.ShadowStack, cet.Features{ShadowStack: true}},
		{"cet-ibt", has.IBT, cet.Features{IBT: true}},
	} {
		found = append(found, Finding{Name: f.name, OK: true, Detail: "KVM offers it to guests"})
		if f.ok {
			continue
		}
		p := &found[len(found)-1]
		p.OK, p.Detail = false, ""
		for i, l := range cet.ThisHost().Missing(f.want) {
			if i > 0 {
				p.Detail, p.Remedy = p.Detail+"; ", p.Remedy+"; "
			}
			p.Detail, p.Remedy = p.Detail+l.Why, p.Remedy+l.Remedy
		}
	}
	return found
}

// lackingCET is the error of a machine that is to have CET on a host without.
func lackingCET(missing cet.Features) error {
	links := cet.ThisHost().Missing(missing)
	return &LackingError{fmt.Errorf("CET: KVM does not offer %v: %v", missing, links[0])}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

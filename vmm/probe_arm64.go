package vmm

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// probeArch says what only arm64 hosts have.
func probeArch(sys *kvm.System, vm *kvm.VM) []Finding {
	bits := sys.Check(kvm.CapARMIPASize)
	if bits == 0 {
		bits = 40 // of all VMs on kernels that do not tell
	}
	var found []Finding
	for _, f := range []Finding{
		{"gicv3", vm.HasDevice(kvm.GICv3), "interrupt controller GICv3 for guests", "a processor with a GICv3"},
		{"its", vm.HasDevice(kvm.ITS), "message-signalled interrupts by GICv3's ITS", "a processor with a GICv3"},
		{"gicv2", vm.HasDevice(kvm.GICv2), "interrupt controller GICv2 for guests", "a processor with a GICv2, or a GICv3 that is compatible with it (guests with one vCPU get gvmm's own)"},
		{"ipa-size", true, fmt.Sprintf("guest addresses of up to %d bits", bits), ""},
		{"sve", vm.Check(kvm.CapARMSVE) != 0, "scalable vectors", "a processor with SVE"},
		{"pointer-auth", vm.Check(kvm.CapARMPtrAuthAddr) != 0 && vm.Check(kvm.CapARMPtrAuthGen) != 0, "pointer authentication", "a processor with FEAT_PAuth"},
		{"pmu", vm.Check(kvm.CapARMPMU) != 0, "performance monitors", "a processor with PMUv3, and its driver in the host's kernel"},
		{"stolen-time", vm.Check(kvm.CapARMStealTime) != 0, "guests learn of time the host took from them", "a kernel with scheduler statistics"},
	} {
		if f.OK {
			f.Remedy = ""
		}
		found = append(found, f)
	}
	return append(found, probeRealm(sys))
}

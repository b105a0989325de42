//go:build amd64 || arm64

package vmm

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// Finding is one thing a host can or cannot do.
type Finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`           // what was found, or the missing link
	Remedy string `json:"remedy,omitempty"` // how to get it
}

// Probe says what kernel can do for a VM. The first finding is KVM itself;
// without it there are no others.
func Probe(kernel kvm.Kernel) []Finding {
	sys, err := kvm.Open(kernel)
	if err != nil {
		return []Finding{{Name: "kvm", Detail: err.Error(), Remedy: "enable virtualization and give this user access to /dev/kvm"}}
	}
	defer sys.Close()
	vm, err := sys.CreateVM(0)
	if err != nil {
		return []Finding{{Name: "kvm", Detail: err.Error(), Remedy: "see the kernel log; another hypervisor may hold the processor"}}
	}
	defer vm.Close()
	found := []Finding{{Name: "kvm", OK: true, Detail: fmt.Sprintf("/dev/kvm works, up to %d vCPUs", sys.Check(kvm.CapMaxVCPUs))}}
	for _, c := range []struct {
		name   string
		number int
		what   string
	}{
		{"ioeventfd", kvm.CapIOEventFD, "queue notifications without an exit"},
		{"irqfd", kvm.CapIRQFD, "interrupts without a system call of the vCPU"},
		{"signal-msi", kvm.CapSignalMSI, "message-signalled interrupts"},
		{"immediate-exit", kvm.CapImmediateExit, "stop and pause while a guest spins"},
		{"guest-memfd", kvm.CapGuestMemFD, "private memory of confidential guests"},
		{"memory-attributes", kvm.CapMemoryAttributes, "private and shared pages of confidential guests"},
	} {
		f := Finding{Name: c.name, OK: sys.Check(c.number) != 0, Detail: c.what}
		if !f.OK {
			f.Remedy = "a newer kernel, or a KVM flavour that has it"
		}
		found = append(found, f)
	}
	return append(found, probeArch(sys, vm)...)
}

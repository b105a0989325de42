package vmm

import (
	"fmt"
	"strings"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// handleArch serves the exits that the architectures do not share.
func (c *vcpu) handleArch(rec *exitRecord) *Outcome {
	o := c.crash(fmt.Sprintf("KVM exit %v, which gvmm does not know", rec))
	switch rec.reason {
	case kvm.ExitFailEntry, kvm.ExitUnknown:
		o = c.crash(fmt.Sprintf("the processor refused to run the guest, reason %#x", c.FailEntry()))
	case kvm.ExitInternalError:
		sub, data := c.InternalError()
		o = c.crash(fmt.Sprintf("KVM internal error, sub-error %d, data %#x", sub, data))
	}
	return &o
}

// dumped are the registers of a post-mortem, in lines.
var dumped = [...][]struct {
	name string
	id   uint64
}{
	{{"pc", kvm.RegPC}, {"pstate", kvm.RegPState}, {"sp_el0", kvm.RegSP}, {"sp_el1", kvm.RegSPEL1}},
	{{"elr_el1", kvm.RegELREL1}, {"spsr_el1", kvm.RegSPSR}, {"esr_el1", kvm.SysReg(3, 0, 5, 2, 0)}, {"far_el1", kvm.SysReg(3, 0, 6, 0, 0)}},
	{{"sctlr_el1", kvm.SysReg(3, 0, 1, 0, 0)}, {"vbar_el1", kvm.SysReg(3, 0, 12, 0, 0)}, {"ttbr0_el1", kvm.SysReg(3, 0, 2, 0, 0)}, {"ttbr1_el1", kvm.SysReg(3, 0, 2, 0, 1)}},
}

// dump describes a stopped vCPU for a post-mortem: registers and the last exits.
// A register that KVM does not show is left out.
func (c *vcpu) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vCPU %d", c.ID)
	if c.vm.realm != nil {
		b.WriteString(": a realm's registers are its own\n")
		c.dumpTrail(&b)
		return b.String()
	}
	show := func(name string, id uint64) {
		if v, err := c.OneReg(id); err == nil {
			fmt.Fprintf(&b, "  %-9s %016x", name, v)
		}
	}
	for _, line := range dumped {
		b.WriteByte('\n')
		for _, r := range line {
			show(r.name, r.id)
		}
	}
	for i := range uint64(31) {
		if i%4 == 0 {
			b.WriteByte('\n')
		}
		show(fmt.Sprintf("x%d", i), kvm.RegX0+2*i)
	}
	b.WriteByte('\n')
	c.dumpTrail(&b)
	return b.String()
}

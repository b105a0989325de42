package vmm

import (
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// explainCET completes the outcome of a crash with what control-flow enforcement
// has to say about it. The vCPU threads have ended.
func (m *VM) explainCET(o *Outcome) {
	for _, c := range m.cpus {
		state, err := cet.Save(c.VCPU, m.cet)
		if err != nil || !state.Enabled {
			continue
		}
		r, err := c.Regs()
		if err != nil {
			continue
		}
		s, err := c.Sregs()
		if err != nil {
			continue
		}
		if why := cet.Explain(state, r, s, c.readLinear, m.image.symbols()); why != "" {
			o.Why += ": " + why
			if o.Dump == "" {
				o.Dump = c.dump()
			}
			return
		}
	}
}

// audit has the vCPU single-stepped and followed.
func (c *vcpu) audit(a *cet.Auditor) {
	f := a.Follow()
	c.before = func() *Outcome {
		o, err := c.auditStep(f)
		if err != nil {
			crashed := c.crash("CET audit: " + err.Error())
			return &crashed
		}
		return o
	}
}

// auditStep looks at the next instruction and arms the step over it. An access
// to a port or to MMIO is finished first, and registers that were changed are
// loaded: KVM_RUN does both and enters the guest in one go otherwise.
func (c *vcpu) auditStep(f *cet.Follower) (*Outcome, error) {
	for c.exits.Load() > 0 && c.ExitReason() != kvm.ExitDebug {
		ok, err := c.Settle()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if o := c.handle(); o != nil {
			return o, nil
		}
	}
	regs, err := c.Sync()
	if err != nil {
		return nil, err
	}
	if wrong := f.Step(&regs.Regs, &regs.Sregs, c.readLinear); wrong != "" {
		o := c.crash("CET audit: " + wrong)
		return &o, nil
	}
	if f.Halts {
		// Stepping over a HLT has some KVMs halt later, with interrupts off.
		regs.Regs.RIP++
		regs.Events.I.Shadow = 0 // of the STI before it
		c.SetDirty(false)
		if _, err := c.Settle(); err != nil {
			return nil, err
		}
		if err := c.Halt(); err != nil {
			return nil, err
		}
	}
	return nil, c.SingleStep()
}

// readLinear copies guest memory at a linear address. It reports whether all of
// it is mapped RAM.
func (c *vcpu) readLinear(linear uint64, p []byte) bool {
	for len(p) > 0 {
		n := min(uint64(len(p)), 4096-linear&4095)
		gpa, ok := c.Translate(linear)
		if !ok || c.vm.mem.Read(memory.GPA(gpa), p[:n]) != nil {
			return false
		}
		p, linear = p[n:], linear+n
	}
	return true
}

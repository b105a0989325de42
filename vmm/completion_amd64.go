package vmm

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/complete"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// archVCPU is what only an x86 vCPU has: the tools for completing instructions
// that KVM's emulator refuses, made when the first is met.
type archVCPU struct {
	completer *complete.Completer
	state     complete.CPU
	result    complete.Result
	completed uint64 // instructions so far
}

// completeInstruction finishes the instruction at which KVM's emulator gave up
// (KVM_EXIT_INTERNAL_ERROR, emulation) and lets the guest run on, or says how
// the VM ends.
func (c *vcpu) completeInstruction() *Outcome {
	res, err := c.complete()
	if err != nil {
		o := c.crash("instruction completion: " + err.Error())
		return &o
	}
	if res.Outcome == complete.NotOnList {
		o := c.crash(fmt.Sprintf("KVM cannot emulate the %v; gvmm does not complete it. "+
			"Run the guest on KVM with virtualization hardware, or build it without this instruction", res))
		return &o
	}
	return nil
}

func (c *vcpu) complete() (*complete.Result, error) {
	a := &c.arch
	if a.completer == nil {
		var err error
		if a.completer, err = complete.New(c.vm.mem, &c.vm.mmio); err != nil {
			return nil, err
		}
		a.state.XSAVE = make([]byte, c.vm.kvm.XSaveSize())
	}
	regs, err := c.Sync()
	if err != nil {
		return nil, err
	}
	if a.state.XCR0, err = c.XCR0(); err != nil {
		return nil, err
	}
	if err := c.XSave(a.state.XSAVE); err != nil {
		return nil, err
	}
	loadState(&a.state, &regs.Regs, &regs.Sregs)
	res := &a.result
	a.completer.Complete(&a.state, res)
	if res.Outcome == complete.NotOnList {
		return res, nil
	}
	a.completed += uint64(res.Count)
	return res, c.storeState(res, regs)
}

// loadState gives the registers of KVM to a completion.
func loadState(s *complete.CPU, r *kvm.Regs, x *kvm.Sregs) {
	s.GPR = [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
	s.RIP, s.RFLAGS = r.RIP, r.RFLAGS
	s.CR0, s.CR3, s.CR4, s.EFER = x.CR0, x.CR3, x.CR4, x.EFER
	s.CPL = x.SS.DPL
	s.FPUChanged, s.SegChanged = false, false
	for i, seg := range [...]*kvm.Segment{complete.ES: &x.ES, complete.CS: &x.CS, complete.SS: &x.SS, complete.DS: &x.DS, complete.FS: &x.FS, complete.GS: &x.GS} {
		s.Seg[i] = complete.Segment{Base: seg.Base, Limit: seg.Limit, Type: seg.Typ, L: seg.L != 0, DB: seg.DB != 0, Unusable: seg.Unusable != 0}
	}
}

const vectorPF = 14

// storeState writes back what a completion changed and replaces the #UD that
// KVM queued for the refused instruction by what the processor would have raised.
func (c *vcpu) storeState(res *complete.Result, regs *kvm.SyncRegs) error {
	s, r, x, e := &c.arch.state, &regs.Regs, &regs.Sregs, &regs.Events
	g := &s.GPR
	r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]
	r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15 = g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]
	r.RIP, r.RFLAGS = s.RIP, s.RFLAGS
	x.FS.Base, x.GS.Base = s.Seg[complete.FS].Base, s.Seg[complete.GS].Base
	e.E = kvm.Exception{}
	e.I.Shadow = 0
	pageFault := false
	if res.Outcome == complete.Faulted {
		e.E.Inject, e.E.Nr, e.E.ErrorCode = 1, res.Fault.Vector, res.Fault.ErrorCode
		if res.Fault.HasError {
			e.E.HadErrorCode = 1
		}
		if pageFault = res.Fault.Vector == vectorPF; pageFault {
			x.CR2 = res.Fault.CR2
		}
	}
	c.SetDirty(s.SegChanged || pageFault)
	if s.FPUChanged {
		return c.SetXSave(s.XSAVE)
	}
	return nil
}

// Close releases the vCPU and its tools.
func (c *vcpu) Close() error {
	if c.arch.completer != nil {
		if err := c.arch.completer.Close(); err != nil {
			return err
		}
	}
	return c.VCPU.Close()
}

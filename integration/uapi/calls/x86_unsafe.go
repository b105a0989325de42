//go:build amd64 && !uapi_arm64

package main

import (
	"fmt"
	"unsafe"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// inner prints the structure of a KVM_MEMORY_ENCRYPT_OP.
func (p *printer) inner(at unsafe.Pointer, id byte) {
	if n := map[byte]int{22: 48, 100: 64, 101: 64, 102: 88}[id]; n > 0 {
		fmt.Printf("command:%d 0x0 %x\n", id, unsafe.Slice((*byte)(at), n))
	}
}

func archCalls(p *printer, sys *kvm.System, vm *kvm.VM, cpu *kvm.VCPU) {
	segment := func(n uint8) kvm.Segment {
		return kvm.Segment{Base: uint64(n) << 32, Limit: uint32(n) << 8, Selector: uint16(n), Typ: 1, Present: 2, DPL: 3, DB: 4, S: 5, L: 6, G: 7, AVL: 8, Unusable: 9}
	}
	var err error
	p.do("KVM_GET_REGS", func() { _, err = cpu.Regs() })
	p.do("KVM_SET_REGS", func() {
		err = cpu.SetRegs(&kvm.Regs{RAX: 1, RBX: 2, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RSP: 7, RBP: 8, R8: 9, R9: 10, R10: 11,
			R11: 12, R12: 13, R13: 14, R14: 15, R15: 16, RIP: 17, RFLAGS: 18})
	})
	p.do("KVM_GET_SREGS", func() { _, err = cpu.Sregs() })
	p.do("KVM_SET_SREGS", func() {
		s := &kvm.Sregs{CS: segment(1), DS: segment(2), ES: segment(3), FS: segment(4), GS: segment(5), SS: segment(6), TR: segment(7), LDT: segment(8),
			GDT: kvm.Descriptor{Base: 9, Limit: 10}, IDT: kvm.Descriptor{Base: 11, Limit: 12}, CR0: 13, CR2: 14, CR3: 15, CR4: 16, CR8: 17, EFER: 18, ApicBase: 19}
		s.InterruptBitmap[3] = 20
		err = cpu.SetSregs(s)
	})
	p.do("KVM_GET_XCRS", func() { _, err = cpu.XCR0() })
	p.do("KVM_SET_XCRS", func() { err = cpu.SetXCR0(7) })
	p.do("KVM_SET_DEBUGREGS", func() { err = cpu.SetDebugRegs(5, 6) })
	p.do("KVM_GET_LAPIC", func() { _, err = cpu.LAPIC() })
	p.do("KVM_SET_LAPIC", func() { err = cpu.SetLAPIC(&kvm.LAPIC{}) })
	p.do("KVM_GET_TSC_KHZ", func() { cpu.TSCKHz() })
	p.do("KVM_NMI", func() { err = cpu.NMI() })
	p.do("KVM_TRANSLATE", func() { cpu.Translate(0x123456789) })
	p.do("KVM_SET_MP_STATE", func() { err = cpu.Halt() })
	p.do("KVM_SET_GUEST_DEBUG", func() { err = cpu.SingleStep() })
	p.do("KVM_GET_SUPPORTED_CPUID", func() { _, err = sys.SupportedCPUID() })
	p.sized("KVM_SET_CPUID2", 8+2*40, func() {
		err = cpu.SetCPUID([]kvm.CPUIDEntry{{Function: 1}, {Function: 2, Index: 3, Flags: kvm.CPUIDSignificantIndex, EAX: 5, EBX: 6, ECX: 7, EDX: 8}})
	})
	p.sized("KVM_GET_MSRS", 8+2*16, func() { _, err = cpu.MSRs([]kvm.MSR{{Index: 1}, {Index: 2}}) })
	p.sized("KVM_SET_MSRS", 8+2*16, func() { _, err = cpu.SetMSRs([]kvm.MSR{{Index: 1, Data: 2}, {Index: 3, Data: 4}}) })
	p.do("KVM_GET_XSAVE", func() { err = cpu.XSave(make([]byte, 4096)) })
	p.do("KVM_GET_XSAVE2", func() { err = cpu.XSave(make([]byte, 8192)) })
	p.do("KVM_SET_XSAVE", func() { err = cpu.SetXSave(make([]byte, 4096)) })
	p.do("KVM_CREATE_IRQCHIP", func() { err = vm.CreateIRQChip() })
	p.do("KVM_SET_TSS_ADDR", func() { err = vm.SetTSSAddr(1) })
	p.do("KVM_CREATE_PIT2", func() { err = vm.CreatePIT() })

	psp, err := vm.OpenSEV()
	check(err)
	p.sized("KVM_MEMORY_ENCRYPT_OP", 24, func() {
		err = psp.Init(0x21)
		check(err)
		check(psp.EnableReqCerts())
		check(psp.Start(0x30000))
		_, err = psp.Update(uint8(sev.PageNormal), 0x12345000, 0x2000, make([]byte, 1))
		check(err)
		end := &kvm.LaunchEnd{IDBlock: make([]byte, 96), IDAuth: make([]byte, 4096), AuthorKey: true, VCEKDisabled: true}
		for i := range end.HostData {
			end.HostData[i] = byte(i + 1)
		}
		check(psp.Finish(end))
	})
	p.do("SEV_ISSUE_CMD", func() { _, err = sys.PlatformStatus() })
	check(err)
	fmt.Printf("sizeof:sev_user_data_snp_status %#x\n", unsafe.Sizeof(kvm.SNPStatus{}))
	var s kvm.SNPStatus
	fmt.Printf("offsets:sev_user_data_snp_status %#x\n", []uintptr{unsafe.Offsetof(s.Major), unsafe.Offsetof(s.Minor), unsafe.Offsetof(s.State),
		unsafe.Offsetof(s.Build), unsafe.Offsetof(s.Guests), unsafe.Offsetof(s.TCB), unsafe.Offsetof(s.ReportedTCB)})
}

func archExit(name string, p *printer, c *kvm.VCPU) {
	seen := func(v ...any) { see(name, c, v) }
	switch name {
	case "io":
		port, size, data, write := c.IO()
		seen(port, size, data, write)
	case "hypercall":
		nr, args := c.Hypercall()
		seen(nr, args)
	case "snp-req-certs":
		gpa, pages := c.SNPReqCerts()
		seen(gpa, pages)
	case "set-hypercall":
		c.SetHypercallResult(0x77)
	case "set-snp-req-certs":
		c.SetSNPReqCerts(0x88, 0x99)
	case "sync":
		s, err := c.Sync()
		check(err)
		seen(s.Regs.RAX, s.Regs.RFLAGS, s.Sregs.CS.Base, s.Sregs.EFER, s.Sregs.ApicBase, s.Events.E.Inject, s.Events.E.Nr, s.Events.E.HadErrorCode, s.Events.E.ErrorCode, s.Events.I.Shadow)
	case "set-dirty":
		c.SetDirty(true)
	}
}

var archConstants = map[string]int{
	"KVM_CAP_XSAVE2": kvm.CapXSave2, "KVM_CAP_VM_TYPES": kvm.CapVMTypes, "KVM_CAP_EXIT_HYPERCALL": kvm.CapExitHypercall,
	"KVM_X86_SNP_VM": kvm.VMTypeSNP, "KVM_X86_GRP_SEV": kvm.GroupSEV, "KVM_X86_SEV_VMSA_FEATURES": kvm.SEVVMSAFeatures,
	"KVM_X86_SNP_POLICY_BITS": kvm.SEVPolicyBits, "KVM_X86_SEV_SNP_REQ_CERTS": kvm.SEVReqCerts,
	"KVM_EXIT_HYPERCALL": kvm.ExitHypercall, "KVM_EXIT_SNP_REQ_CERTS": kvm.ExitSNPReqCerts,
	"KVM_HC_MAP_GPA_RANGE": kvm.HypercallMapGPA, "KVM_MAP_GPA_RANGE_ENCRYPTED": kvm.MapGPAEncrypted,
	"KVM_SEV_SNP_PAGE_TYPE_NORMAL": int(sev.PageNormal), "KVM_SEV_SNP_PAGE_TYPE_ZERO": int(sev.PageZero),
	"KVM_SEV_SNP_PAGE_TYPE_UNMEASURED": int(sev.PageUnmeasured), "KVM_SEV_SNP_PAGE_TYPE_SECRETS": int(sev.PageSecrets),
	"KVM_SEV_SNP_PAGE_TYPE_CPUID": int(sev.PageCPUID),
}

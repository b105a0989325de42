package vmm

import (
	"fmt"
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

const (
	eferLMA   = 1 << 10
	codeBytes = 32
	dumpLines = 6 // instructions disassembled
)

// dump describes a stopped vCPU for a post-mortem: registers, the code at RIP
// and the last exits.
func (c *vcpu) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vCPU %d\n", c.ID)
	if c.vm.launch != nil {
		b.WriteString("  its registers and code are encrypted\n")
		c.dumpTrail(&b)
		return b.String()
	}
	r, err := c.Regs()
	if err != nil {
		return fmt.Sprintf("no registers: %v\n", err)
	}
	s, err := c.Sregs()
	if err != nil {
		return fmt.Sprintf("no registers: %v\n", err)
	}
	fmt.Fprintf(&b, "  rip %016x  rsp %016x  rflags %08x\n", r.RIP, r.RSP, r.RFLAGS)
	fmt.Fprintf(&b, "  rax %016x  rbx %016x  rcx %016x  rdx %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
	fmt.Fprintf(&b, "  rsi %016x  rdi %016x  rbp %016x\n", r.RSI, r.RDI, r.RBP)
	fmt.Fprintf(&b, "  r8  %016x  r9  %016x  r10 %016x  r11 %016x\n", r.R8, r.R9, r.R10, r.R11)
	fmt.Fprintf(&b, "  r12 %016x  r13 %016x  r14 %016x  r15 %016x\n", r.R12, r.R13, r.R14, r.R15)
	fmt.Fprintf(&b, "  cr0 %08x  cr2 %016x  cr3 %016x  cr4 %08x  efer %x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.EFER)
	fmt.Fprintf(&b, "  cs %04x base %x  ss %04x  fs base %x  gs base %x  gdt %x+%x  idt %x+%x\n",
		s.CS.Selector, s.CS.Base, s.SS.Selector, s.FS.Base, s.GS.Base, s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit)
	if c.vm.cet.Any() {
		if state, err := cet.Save(c.VCPU, c.vm.cet); err != nil {
			fmt.Fprintf(&b, "  %v\n", err)
		} else {
			fmt.Fprintf(&b, "  %v\n", state)
		}
	}
	c.dumpCode(&b, r, s)
	c.dumpTrail(&b)
	if n := c.arch.completed; n > 0 {
		fmt.Fprintf(&b, "  %d instructions completed for KVM\n", n)
	}
	return b.String()
}

func (c *vcpu) dumpCode(b *strings.Builder, r *kvm.Regs, s *kvm.Sregs) {
	var code []byte
	for linear := s.CS.Base + r.RIP; len(code) < codeBytes; linear++ {
		gpa, ok := c.Translate(linear)
		var one [1]byte
		if !ok || c.vm.mem.Read(memory.GPA(gpa), one[:]) != nil {
			break
		}
		code = append(code, one[0])
	}
	if len(code) == 0 {
		b.WriteString("  code: not readable at rip\n")
		return
	}
	fmt.Fprintf(b, "  code: % x\n", code)
	mode := 16
	switch {
	case s.EFER&eferLMA != 0 && s.CS.L != 0:
		mode = 64
	case s.CS.DB != 0:
		mode = 32
	}
	for off, n := 0, 0; off < len(code) && n < dumpLines; n++ {
		inst, err := x86asm.Decode(code[off:], mode)
		if err != nil {
			break
		}
		fmt.Fprintf(b, "    %x: %s\n", r.RIP+uint64(off), x86asm.GNUSyntax(inst, r.RIP+uint64(off), nil))
		off += inst.Len
	}
}

package cet

import (
	"fmt"
	"sync"

	"golang.org/x/arch/x86/x86asm"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// Auditor follows the calls and returns of a guest that is single-stepped, with
// a shadow stack in the monitor's memory and the rules of CET for indirect
// branches. It needs no CET in the processor.
//
// The shadow stack is keyed by the place of the return address, so that
// switching stacks, longjmp, and threads that move between vCPUs need no
// understanding: a return is looked up where it lies. A return from a place
// where no call was seen to put one is let pass, as the first one of a new
// thread must be.
type Auditor struct {
	what Audit
	elf  *ELF

	mu     sync.Mutex
	shadow map[slot]call
	epoch  uint32 // counts the times that the guest ran on unseen
}

// slot is a place on a stack: of the kernel's, or of an address space's.
type slot struct{ space, addr uint64 }

// call is a call whose return was not seen yet.
type call struct {
	to    uint64 // where the return must go
	epoch uint32
}

// maxShadow bounds the calls remembered: a guest that never returns loses them.
const maxShadow = 1 << 20

// NewAuditor makes an auditor for all vCPUs of a guest. elf, which may be nil,
// gives names to addresses.
func NewAuditor(what Audit, elf *ELF) *Auditor {
	return &Auditor{what: what, elf: elf, shadow: map[slot]call{}}
}

// Follower follows one vCPU.
type Follower struct {
	a    *Auditor
	next struct { // what is known of the instruction behind the last one
		known bool
		rip   [3]uint64
	}
	rsp      uint64
	loadsRSP bool // the last instruction gave the stack pointer a new value
	switched bool // to another stack, on which nothing was called yet

	// Halts says that the instruction [Follower.Step] looked at is a HLT.
	Halts bool
}

// Follow starts with a vCPU.
func (a *Auditor) Follow() *Follower { return &Follower{a: a} }

// Step looks at the instruction that a vCPU is about to execute and returns
// what is wrong with it, or "". read copies guest memory at a linear address
// and reports whether all of it is mapped.
func (f *Follower) Step(r *kvm.Regs, s *kvm.Sregs, read func(linear uint64, p []byte) bool) string {
	mode := codeMode(s)
	m := view{read: read, size: uint64(mode / 8), ss: s.SS.Base}
	if mode == 64 {
		m.ss = 0
	}
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	if f.loadsRSP && (r.RSP < f.rsp || r.RSP > f.rsp+4096) { // upwards a little, it unwinds
		f.switched = true
	}
	if !f.expected(r, m) {
		f.a.epoch++
	}
	f.next.known, f.loadsRSP, f.Halts, f.rsp = false, false, false, r.RSP
	if mode == 16 {
		return ""
	}
	var code [15]byte
	linear := s.CS.Base + r.RIP
	n := len(code)
	for n > 0 && !read(linear, code[:n]) {
		n--
	}
	inst, err := x86asm.Decode(code[:n], mode)
	if err != nil {
		return "" // neither a call nor a return: AVX, or a fault to come
	}
	return f.instruction(&inst, r, s, m)
}

// expected reports whether the vCPU is where the last instruction leads, or in
// the handler of an event that interrupted it there. If not, the guest ran on
// unseen: KVM does not step through handlers everywhere, and one may have
// switched threads.
func (f *Follower) expected(r *kvm.Regs, m view) bool {
	if !f.next.known {
		return true
	}
	for _, rip := range f.next.rip {
		if rip == r.RIP {
			return true
		}
		// With and without an error code; the handler's first instruction, often
		// a push, may be done.
		for i := range uint64(3) {
			if saved, ok := m.word(r.RSP + i*m.size); ok && saved == rip {
				return true
			}
		}
	}
	return false
}

func (f *Follower) instruction(inst *x86asm.Inst, r *kvm.Regs, s *kvm.Sregs, m view) string {
	behind := r.RIP + uint64(inst.Len)
	f.next.known = true
	f.next.rip = [3]uint64{r.RIP, behind, behind}
	space := uint64(0)
	if s.SS.DPL == 3 {
		space = s.CR3 &^ 0xfff
	}
	at := func(rsp uint64) slot { return slot{space, m.ss + rsp} }
	if rel, ok := inst.Args[0].(x86asm.Rel); ok {
		f.next.rip[2] = m.mask(behind + uint64(int64(rel)))
	}
	switch inst.Op {
	case x86asm.CALL:
		if f.switched = false; len(f.a.shadow) >= maxShadow {
			clear(f.a.shadow)
		}
		f.a.shadow[at(m.mask(r.RSP-m.size))] = call{m.mask(behind), f.a.epoch}
		return f.branch(inst, r, s, m)
	case x86asm.JMP:
		return f.branch(inst, r, s, m)
	case x86asm.RET:
		found, ok := m.word(r.RSP)
		if !ok {
			f.next.known = false
			return ""
		}
		f.next.rip[2] = found
		want, called := f.a.shadow[at(r.RSP)]
		delete(f.a.shadow, at(r.RSP))
		if f.a.what != AuditIBT && called && want.to != found && want.epoch == f.a.epoch && !f.switched {
			return fmt.Sprintf("the return at %s goes to %s, but its call expects it at %s",
				f.a.elf.Name(r.RIP), f.a.elf.Name(found), f.a.elf.Name(want.to))
		}
	case x86asm.IRET, x86asm.IRETD, x86asm.IRETQ, x86asm.LRET, x86asm.LCALL, x86asm.LJMP, x86asm.INT,
		x86asm.SYSCALL, x86asm.SYSRET, x86asm.SYSENTER, x86asm.SYSEXIT, x86asm.RSM, x86asm.HLT:
		f.next.known, f.Halts = false, inst.Op == x86asm.HLT && s.SS.DPL == 0
		f.switched = f.switched || inst.Op != x86asm.HLT && inst.Op != x86asm.LJMP
	case x86asm.MOV, x86asm.LEA, x86asm.XCHG, x86asm.POP, x86asm.CMOVE, x86asm.CMOVNE:
		for _, arg := range inst.Args[:2] {
			f.loadsRSP = f.loadsRSP || arg == x86asm.RSP || arg == x86asm.ESP
		}
		switch src := inst.Args[1].(type) { // a frame's end is no new stack
		case x86asm.Reg:
			f.loadsRSP = f.loadsRSP && src != x86asm.RBP && src != x86asm.EBP
		case x86asm.Mem:
			if inst.Op == x86asm.LEA && (src.Base == x86asm.RBP || src.Base == x86asm.RSP) {
				f.loadsRSP = false
			}
		}
	}
	return ""
}

// branch checks the target of a near call or jump.
func (f *Follower) branch(inst *x86asm.Inst, r *kvm.Regs, s *kvm.Sregs, m view) string {
	var target uint64
	switch arg := inst.Args[0].(type) {
	case x86asm.Reg:
		target = register(r, arg)
	case x86asm.Mem:
		addr := register(r, arg.Base) + register(r, arg.Index)*uint64(arg.Scale) + uint64(arg.Disp)
		if arg.Base == x86asm.RIP {
			addr += uint64(inst.Len)
		}
		addr = m.mask(addr)
		switch {
		case arg.Segment == x86asm.FS:
			addr += s.FS.Base
		case arg.Segment == x86asm.GS:
			addr += s.GS.Base
		case m.size == 4:
			addr += s.DS.Base
		}
		var ok bool
		if target, ok = m.at(addr); !ok {
			f.next.known = false
			return ""
		}
	default:
		return "" // direct
	}
	target = m.mask(target)
	f.next.rip[2] = target
	for _, p := range inst.Prefix {
		if p&0xff == 0x3e { // notrack
			return ""
		}
	}
	var code [4]byte
	want := endbr64
	if m.size == 4 {
		want = []byte{0xf3, 0x0f, 0x1e, 0xfb}
	}
	if f.a.what == AuditShadowStack || !m.read(s.CS.Base+target, code[:]) || string(code[:]) == string(want) {
		return ""
	}
	kind := "jump"
	if inst.Op == x86asm.CALL {
		kind = "call"
	}
	return fmt.Sprintf("the indirect %s at %s goes to %s, which has no ENDBR%d", kind, f.a.elf.Name(r.RIP), f.a.elf.Name(target), m.size*8)
}

// view is guest memory in words of the code's size.
type view struct {
	read func(linear uint64, p []byte) bool
	size uint64
	ss   uint64
}

func (m view) mask(v uint64) uint64 {
	if m.size == 4 {
		return v & 0xffffffff
	}
	return v
}

// at reads a word at a linear address, word one at a place on the stack.
func (m view) at(linear uint64) (uint64, bool) {
	var b [8]byte
	ok := m.read(linear, b[:m.size])
	return le.Uint64(b[:]), ok
}

func (m view) word(rsp uint64) (uint64, bool) { return m.at(m.ss + rsp) }

// codeMode is the size in bits of the code that a vCPU runs.
func codeMode(s *kvm.Sregs) int {
	const lma, pe = 1 << 10, 1
	switch {
	case s.CR0&pe == 0:
		return 16
	case s.EFER&lma != 0 && s.CS.L != 0:
		return 64
	case s.CS.DB != 0:
		return 32
	}
	return 16
}

// register returns a general register's value, 0 for none.
func register(r *kvm.Regs, reg x86asm.Reg) uint64 {
	all := [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
	switch {
	case reg >= x86asm.RAX && reg <= x86asm.R15:
		return all[reg-x86asm.RAX]
	case reg >= x86asm.EAX && reg <= x86asm.R15L:
		return all[reg-x86asm.EAX] & 0xffffffff
	case reg == x86asm.RIP:
		return r.RIP
	}
	return 0
}

package cet

import (
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// steps is a guest in slow motion: memory from 0, code written by the test, and
// the registers it has before each instruction.
type steps struct {
	t   *testing.T
	mem [0x10000]byte
	f   *Follower
	s   kvm.Sregs
}

func newSteps(t *testing.T, what Audit) *steps {
	g := &steps{t: t, f: NewAuditor(what, nil).Follow()}
	g.s.CR0, g.s.EFER, g.s.CS.L = 1, 1<<10, 1
	return g
}

func (g *steps) read(linear uint64, p []byte) bool {
	return linear < uint64(len(g.mem)) && copy(p, g.mem[linear:]) == len(p)
}

// at puts code at rip and steps to it. Stack words are pairs of place and value.
func (g *steps) at(rip, rsp uint64, code string, stack ...uint64) string {
	copy(g.mem[rip:], code)
	for i := 0; i+1 < len(stack); i += 2 {
		le.PutUint64(g.mem[stack[i]:], stack[i+1])
	}
	return g.f.Step(&kvm.Regs{RIP: rip, RSP: rsp, RAX: 0x3000, RBX: 0x8000, RBP: 0x7000}, &g.s, g.read)
}

func (g *steps) quiet(said string) {
	g.t.Helper()
	if said != "" {
		g.t.Errorf("reported: %s", said)
	}
}

func (g *steps) reports(said, want string) {
	g.t.Helper()
	if !strings.Contains(said, want) {
		g.t.Errorf("said %q, want %q", said, want)
	}
}

const (
	callNear = "\xe8\xfb\x0f\x00\x00" // to 0x1000 behind its own start
	ret      = "\xc3"
	nop      = "\x90"
	callRAX  = "\xff\xd0"
	jmpRAX   = "\xff\xe0"
	movRSP   = "\x48\x89\xdc" // mov %rbx,%rsp
	leave    = "\xc9"
	iretq    = "\x48\xcf"
)

func TestFollowReturns(t *testing.T) {
	g := newSteps(t, AuditAll)
	g.quiet(g.at(0x1000, 0x7000, callNear))
	g.quiet(g.at(0x2000, 0x6ff8, ret, 0x6ff8, 0x1005))
	g.quiet(g.at(0x1005, 0x7000, callNear))
	g.quiet(g.at(0x2005, 0x6ff8, nop))
	g.reports(g.at(0x2006, 0x6ff8, ret, 0x6ff8, 0x4000), "the return at 0x2006 goes to 0x4000, but its call expects it at 0x100a")

	g = newSteps(t, AuditIBT)
	g.quiet(g.at(0x1000, 0x7000, callNear))
	g.quiet(g.at(0x2000, 0x6ff8, ret, 0x6ff8, 0x4000))
}

// A scheduler switches stacks, longjmp unwinds, a new thread returns to where
// nothing called from, and later calls use the same places again.
func TestFollowSwitches(t *testing.T) {
	g := newSteps(t, AuditAll)
	g.quiet(g.at(0x1000, 0x7000, callNear))                   // thread A calls the scheduler
	g.quiet(g.at(0x2000, 0x6ff8, movRSP))                     // which switches
	g.quiet(g.at(0x2003, 0x8000, ret, 0x8000, 0x5000))        // to thread B, new
	g.quiet(g.at(0x5000, 0x8008, callNear))                   // B calls it again, at the same place
	g.quiet(g.at(0x6000, 0x8000, movRSP))                     //
	g.quiet(g.at(0x6003, 0x6ff8, ret, 0x6ff8, 0x1005))        // back to A
	g.quiet(g.at(0x1005, 0x7000, callNear))                   // A calls, B's call is still open
	g.quiet(g.at(0x2005, 0x6ff8, movRSP))                     //
	g.quiet(g.at(0x2008, 0x8000, ret, 0x8000, 0x7777))        // B was replaced by a new thread on its stack
	g.quiet(g.at(0x7777, 0x8008, callNear))                   //
	g.reports(g.at(0x8777, 0x8000, ret, 0x8000, 1), "0x777c") // whose own call is checked

	g = newSteps(t, AuditAll)
	g.quiet(g.at(0x1000, 0x7000, callNear))
	g.quiet(g.at(0x2000, 0x6800, leave)) // a frame's end is no switch
	g.reports(g.at(0x2001, 0x6ff8, ret, 0x6ff8, 0x4000), "0x1005")
}

// An interrupt whose handler is stepped through is followed; after one that was
// not, what the calls before it put where is not certain.
func TestFollowInterrupts(t *testing.T) {
	g := newSteps(t, AuditAll)
	g.quiet(g.at(0x1000, 0x7000, callNear))
	g.quiet(g.at(0x2000, 0x6ff8, nop))
	g.quiet(g.at(0x3000, 0x6fc8, nop, 0x6fc8, 0x2001)) // frame on the stack
	g.quiet(g.at(0x3001, 0x6fc8, iretq))
	g.quiet(g.at(0x2001, 0x6ff8, nop))
	g.reports(g.at(0x2002, 0x6ff8, ret, 0x6ff8, 0x4000), "")
	g = newSteps(t, AuditAll)
	g.quiet(g.at(0x1000, 0x7000, callNear))
	g.quiet(g.at(0x2000, 0x6ff8, nop))
	g.quiet(g.at(0x5000, 0x6ff8, nop)) // from nowhere
	g.quiet(g.at(0x5001, 0x6ff8, ret, 0x6ff8, 0x4000))
	g.quiet(g.at(0x4000, 0x7000, callNear))
	g.reports(g.at(0x5000, 0x6ff8, ret, 0x6ff8, 0x4444), "0x4005")
}

func TestFollowBranches(t *testing.T) {
	g := newSteps(t, AuditAll)
	copy(g.mem[0x3000:], endbr64)
	g.quiet(g.at(0x1000, 0x7000, callRAX))
	g.quiet(g.at(0x1000, 0x7000, jmpRAX))
	copy(g.mem[0x3000:], nop)
	g.reports(g.at(0x1000, 0x7000, jmpRAX), "the indirect jump at 0x1000 goes to 0x3000, which has no ENDBR64")
	g.quiet(g.at(0x1000, 0x7000, "\x3e"+jmpRAX)) // notrack
	le.PutUint64(g.mem[0x1100:], 0x3456)
	g.reports(g.at(0x1000, 0x7000, "\xff\x15\xfa\x00\x00\x00"), "the indirect call at 0x1000 goes to 0x3456") // call *0xfa(%rip)
	g.quiet(g.at(0x1000, 0x7000, "\xff\x25\x00\x00\x00\x70"))                                                 // jmp through what is not mapped

	g = newSteps(t, AuditShadowStack)
	g.quiet(g.at(0x1000, 0x7000, jmpRAX))
	g.s.CR0 = 0 // real mode is left alone
	g.quiet(g.at(0x1000, 0x7000, ret))
}

// Whatever a guest runs and wherever its registers point, the audit goes on.
func FuzzFollow(f *testing.F) {
	f.Add([]byte(callRAX+ret+jmpRAX+movRSP+iretq), uint64(0x7000), uint64(0x1000))
	f.Fuzz(func(t *testing.T, code []byte, rsp, rip uint64) {
		g := newSteps(t, AuditAll)
		copy(g.mem[0x1000:], code)
		for i := range min(len(code), 64) {
			g.s.CS.L = uint8(i & 1)
			g.s.CS.DB = uint8(i >> 1 & 1)
			r := kvm.Regs{RIP: rip + uint64(i), RSP: rsp, RAX: rip, RBX: rsp}
			g.f.Step(&r, &g.s, g.read)
			Explain(&State{Enabled: true, SCET: 0x805, SSP: rsp}, &r, &g.s, g.read, nil)
		}
	})
}

// The states are those that the CET lab's KVM left behind.
func TestExplain(t *testing.T) {
	on := func(scet uint64, ssp uint64) *State { return &State{Enabled: true, SCET: scet, SSP: ssp} }
	for _, c := range []struct {
		name  string
		state *State
		rip   uint64
		rsp   uint64
		say   string
	}{
		{"IBT", on(0x804, 0), 0x3000, 0xa000, "IBT: an indirect branch went to 0x3000, which has no ENDBR64; it was called from 0x1000"},
		{"IBT, waiting at ENDBR64", on(0x804, 0), 0x2000, 0xa008, ""},
		{"return", on(1, 0x5000), 0x2004, 0xa008, "shadow stack: the return at 0x2004 found 0x4444 on the stack, expected 0x1002"},
		{"return that matches", on(1, 0x5000), 0x2004, 0xa000, ""},
		{"return, handled", on(1, 0x4fe8), 0x2010, 0x6f00, "shadow stack: the return at 0x2004 found 0x4444 on the stack, expected 0x1002"},
		{"IBT, handled", on(4, 0), 0x2010, 0x7f00, "IBT: an indirect branch went to 0x3000, which has no ENDBR64; it was called from 0x1000"},
		{"a page fault, handled", on(4, 0), 0x2010, 0xb000, ""},
		{"off", &State{SCET: 0x805}, 0x3000, 0xa000, ""},
	} {
		g := newSteps(t, AuditAll)
		g.s.CS.Selector = 8
		copy(g.mem[0x1000:], callRAX)
		copy(g.mem[0x2000:], string(endbr64)+ret)
		copy(g.mem[0x3000:], nop)
		for at, words := range map[int][]uint64{
			0x4fe8: {0x5000, 0x2004, 8, 0x1002}, // SSP, LIP, CS as the fault pushed them
			0xa000: {0x1002, 0x4444},
			0x6f80: {1, 0x2004, 8, 0x46, 0xa008, 0x10},
			0xb080: {14, 3, 0x3000, 8, 0x46, 0xa000, 0x10}, // with its vector
			0x7f80: {3, 0x3000, 8, 0x46, 0xa000, 0x10},
		} {
			for i, w := range words {
				le.PutUint64(g.mem[at+8*i:], w)
			}
		}
		got := Explain(c.state, &kvm.Regs{RIP: c.rip, RSP: c.rsp}, &g.s, g.read, nil)
		if c.say == "" && got != "" || !strings.Contains(got, c.say) {
			t.Errorf("%s: %q, want %q", c.name, got, c.say)
		}
	}
}

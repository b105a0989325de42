package cet

import (
	"bytes"

	"golang.org/x/arch/x86/x86asm"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// How far a post-mortem looks up the stacks for the frame that a
// control-protection fault left: handlers print before they give up.
const (
	maxFrames     = 16 << 10 // bytes of the stack
	maxShadowScan = 4 << 10  // bytes of the shadow stack
)

// Error codes of #CP (Intel SDM vol. 3, 6.15).
const (
	cpNearRet   = 1
	cpFarRet    = 2
	cpENDBR     = 3
	cpMask      = 0x7fff
	cpuLongMode = 64

	pageFault         = 14
	controlProtection = 21
)

// Explain says in words which control-protection fault a stopped vCPU died of,
// or "" if it was none: from the state as the fault left it, when nothing could
// handle it (triple fault), else from the handler's frame on the stack. read
// copies guest memory at a linear address; elf may be nil.
func Explain(s *State, r *kvm.Regs, x *kvm.Sregs, read func(linear uint64, p []byte) bool, elf *ELF) string {
	if !s.Enabled || codeMode(x) != cpuLongMode {
		return ""
	}
	m := view{read: read, size: 8}
	p := postmortem{s, m, elf}
	control := s.SCET
	if x.SS.DPL == 3 {
		control = s.UCET
	}
	if control&enableIBT != 0 && control&waitENDBR != 0 && p.bare(r.RIP) {
		return p.noENDBR(r.RIP, r.RSP)
	}
	if control&enableShadowStack != 0 && p.returns(r.RIP) {
		if want, ok := m.at(s.SSP); ok {
			if found, ok := m.at(r.RSP); ok && found != want {
				return p.mismatch(r.RIP, found, want, true)
			}
		}
	}
	for at := r.RSP &^ 7; at-r.RSP < maxFrames || at < r.RSP; at += 8 {
		var f [6]uint64 // error code, RIP, CS, RFLAGS, RSP, SS
		for i := range f {
			var ok bool
			if f[i], ok = m.at(at + uint64(i)*8); !ok {
				return ""
			}
		}
		code, rip, cs, flags, rsp := f[0], f[1], f[2], f[3], f[4]
		if code&^0x8000 == 0 || code&cpMask > cpENDBR || code>>16 != 0 || cs>>16 != 0 || f[5]>>16 != 0 || flags&2 == 0 || flags>>22 != 0 {
			continue
		}
		if cs != uint64(x.CS.Selector) && cs&3 != 3 {
			continue
		}
		switch code & cpMask {
		case cpENDBR:
			// A page fault's error code may be 3 too. It leaves CR2; handlers often
			// push the vector; and a call can be told by its return address.
			below, _ := m.at(at - 8)
			ret, _ := m.at(rsp)
			_, called := p.callBefore(ret)
			if p.bare(rip) && below != pageFault && (x.CR2 == 0 || called || below == controlProtection) {
				return p.noENDBR(rip, rsp)
			}
		case cpNearRet, cpFarRet:
			if p.returns(rip) {
				found, _ := m.at(rsp)
				want, known := p.expected(rip, cs)
				return p.mismatch(rip, found, want, known)
			}
		}
	}
	return ""
}

type postmortem struct {
	s   *State
	m   view
	elf *ELF
}

const died = "control-protection fault (vector 21): "

func (p postmortem) noENDBR(target, rsp uint64) string {
	text := died + "IBT: an indirect branch went to " + p.elf.Name(target) + ", which has no ENDBR64"
	if ret, ok := p.m.at(rsp); ok {
		if from, ok := p.callBefore(ret); ok {
			text += "; it was called from " + p.elf.Name(from)
		}
	}
	return text
}

func (p postmortem) mismatch(rip, found, want uint64, known bool) string {
	text := died + "shadow stack: the return at " + p.elf.Name(rip) + " found " + p.elf.Name(found) + " on the stack"
	if known {
		text += ", expected " + p.elf.Name(want)
	}
	return text
}

// expected finds the return address on the shadow stack at the time of a fault.
// Its delivery pushed CS, the address of the instruction and SSP there (Intel
// SDM vol. 3, 6.14.2), or for a fault in ring 3 left SSP in PL3_SSP.
func (p postmortem) expected(rip, cs uint64) (uint64, bool) {
	if cs&3 == 3 {
		return p.m.at(p.s.PLSSP[3])
	}
	for at := p.s.SSP; at-p.s.SSP < maxShadowScan; at += 8 {
		lip, ok := p.m.at(at + 8)
		if !ok {
			break
		}
		if saved, _ := p.m.at(at + 16); lip == rip && saved == cs {
			ssp, _ := p.m.at(at)
			return p.m.at(ssp)
		}
	}
	return 0, false
}

// bare reports whether there is code at an address, other than ENDBR64.
func (p postmortem) bare(addr uint64) bool {
	var b [4]byte
	return p.m.read(addr, b[:]) && !bytes.Equal(b[:], endbr64)
}

// returns reports whether the instruction at an address is a return.
func (p postmortem) returns(addr uint64) bool {
	var b [4]byte
	if !p.m.read(addr, b[:]) {
		return false
	}
	inst, err := x86asm.Decode(b[:], cpuLongMode)
	return err == nil && (inst.Op == x86asm.RET || inst.Op == x86asm.LRET || inst.Op == x86asm.IRETQ)
}

// callBefore returns the indirect call that ends at an address.
func (p postmortem) callBefore(addr uint64) (uint64, bool) {
	for n := uint64(2); n <= 8; n++ {
		b := make([]byte, n)
		if !p.m.read(addr-n, b) {
			continue
		}
		inst, err := x86asm.Decode(b, cpuLongMode)
		if _, direct := inst.Args[0].(x86asm.Rel); err == nil && inst.Op == x86asm.CALL && uint64(inst.Len) == n && !direct {
			return addr - n, true
		}
	}
	return 0, false
}

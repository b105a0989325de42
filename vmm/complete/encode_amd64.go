package complete

// The general registers that a re-encoded instruction may name: rax, rcx, rdx
// stand for themselves, because some instructions use them unnamed; the others
// are renamed to rbx, rsi and, without a memory operand, rdi. With one, rdi
// points to the scratch area. rsp, rbp and r8 to r15 are never named.
type renaming struct {
	guest [3]uint8
	n     int
}

var spare = [3]uint8{RBX, RSI, RDI}

// host returns the host's register for guest register r.
func (m *renaming) host(r uint8) uint8 {
	if r <= RDX {
		return r
	}
	for i := range m.n {
		if m.guest[i] == r {
			return spare[i]
		}
	}
	m.guest[m.n] = r
	m.n++
	return spare[m.n-1]
}

// code is one re-encoded instruction.
type code struct {
	b [16]byte
	n int
}

func (k *code) put(b byte) {
	k.b[k.n] = b
	k.n++
}

// encode builds the instruction to run from the decoded fields.
func (c *Completer) encode(k *code, regs *renaming) {
	in := &c.in
	f := in.form
	*k, *regs = code{}, renaming{}
	if in.mapNo == 0 { // x87
		if f&mMask == mEnv && in.opBytes == 2 {
			k.put(0x66)
		}
		k.put(in.op)
		if in.mem {
			k.put(in.reg&7<<3 | RDI)
		} else {
			k.put(0xC0 | in.reg&7<<3 | in.rm&7)
		}
		return
	}
	reg, rm, v := in.reg, in.rm, in.vvvv
	switch f.reg() {
	case 1:
		reg = regs.host(reg)
	case 0, 3:
		reg &= 7
	}
	switch {
	case in.mem:
		rm = RDI
	case f.rm() == 1:
		rm = regs.host(rm)
	case f.rm() == 3:
		rm &= 7
	}
	if f&vvMask == vvG {
		v = regs.host(v)
	}
	rexR, rexB := reg&8, rm&8
	switch {
	case in.evex:
		k.put(0x62)
		k.put(^(rexR<<4|rexB<<2|reg&16|rm&16<<2)&0xF0 | in.mapNo)
		k.put(in.wBit() | ^v&15<<3 | 4 | in.pp)
		k.put(in.p2&^8 | ^v&16>>1)
	case in.vex:
		k.put(0xC4)
		k.put(^(rexR<<4|rexB<<2)&0xA0 | 0x40 | in.mapNo)
		k.put(in.wBit() | ^v&15<<3 | in.ll<<2 | in.pp)
	default:
		if f&opSize != 0 && in.opBytes == 2 || f&opSize == 0 && in.pp == 1 {
			k.put(0x66)
		}
		if in.pp > 1 {
			k.put([...]byte{2: 0xF3, 3: 0xF2}[in.pp])
		}
		rex := rexR>>1 | rexB>>3
		if in.w {
			rex |= 8
		}
		if rex != 0 {
			k.put(0x40 | rex)
		}
		k.put(0x0F)
		if in.mapNo > 1 {
			k.put([...]byte{2: 0x38, 3: 0x3A}[in.mapNo])
		}
	}
	k.put(in.op)
	if in.hasModRM || in.mod == 3 {
		m := byte(0xC0)
		if in.mem {
			m = 0
		}
		k.put(m | reg&7<<3 | rm&7)
	}
	if f&imm != 0 {
		k.put(in.imm)
	}
}

func (in *inst) wBit() byte {
	if in.w {
		return 0x80
	}
	return 0
}

package complete

import "encoding/binary"

const maxLen = 15 // bytes of an instruction (SDM vol. 2, 2.3.11)

// inst is one decoded instruction.
type inst struct {
	raw  [maxLen]byte
	n    int // bytes used of raw
	have int // bytes fetched into raw

	mode     uint8 // 16, 32 or 64
	opBytes  uint8 // operand size in bytes: 2, 4 or 8
	adBytes  uint8 // address size in bytes
	seg      int8  // override, or -1
	pp       uint8 // mandatory prefix: 0 none, 1 66, 2 F3, 3 F2
	p66      bool
	lock     bool
	rex      bool
	vex      bool
	w        bool
	l        bool
	r, x, b  uint8 // 8 or 0
	vvvv     uint8
	k512     bool // EVEX, or VEX on mask registers
	evex     bool
	ll       uint8 // EVEX.L'L
	bcast, z bool
	aaa      uint8 // EVEX: mask register
	mapNo    uint8 // 0: one-byte opcodes, 1: 0F, 2: 0F38, 3: 0F3A
	op       uint8
	hasModRM bool
	mod      uint8
	reg, rm  uint8 // with the extension bits, for what is a register
	imm      uint8
	form     form

	mem  bool
	vsib bool
	off  uint64 // effective address, without the index when vsib
	idx  uint8  // vsib: index register
	scl  uint8  // vsib: shift
	sseg uint8  // segment of the memory operand
}

// decodeEnd says how decoding ended.
type decodeEnd uint8

const (
	decoded   decodeEnd = iota
	faulted             // c.fault holds it
	notOnList           // c.why holds the reason
)

// decode reads the instruction at RIP. The bytes come from the guest's page
// tables, a second page only when the instruction reaches it.
func (c *Completer) decode() decodeEnd {
	in, cpu := &c.in, c.cpu
	*in = inst{seg: -1}
	switch {
	case cpu.long():
		in.mode, in.opBytes, in.adBytes = 64, 4, 8
	case cpu.Seg[CS].DB && cpu.protected():
		in.mode, in.opBytes, in.adBytes = 32, 4, 4
	default:
		in.mode, in.opBytes, in.adBytes = 16, 2, 2
		if cpu.Seg[CS].DB {
			in.mode, in.opBytes, in.adBytes = 32, 4, 4
		}
	}
	var rex uint8
	var rep uint8
	var b byte
prefixes:
	for {
		var ok bool
		if b, ok = c.next(); !ok {
			return faulted
		}
		switch b {
		case 0x66:
			in.p66 = true
		case 0x67:
			in.adBytes = 4
			if in.mode == 32 {
				in.adBytes = 2
			}
		case 0xF0:
			in.lock = true
		case 0xF3:
			rep = 2
		case 0xF2:
			rep = 3
		case 0x26, 0x2E, 0x36, 0x3E:
			if in.mode != 64 {
				in.seg = int8(b >> 3 & 3)
			}
		case 0x64, 0x65:
			in.seg = int8(b - 0x60)
		default:
			if in.mode == 64 && b&0xF0 == 0x40 {
				rex = b
				continue
			}
			break prefixes
		}
		rex = 0 // only a REX directly before the opcode counts
	}
	in.pp = rep
	if rep == 0 && in.p66 {
		in.pp = 1
	}
	in.r, in.x, in.b = rex<<1&8, rex<<2&8, rex<<3&8
	in.w = rex&8 != 0
	in.rex = rex != 0
	switch {
	case in.w:
		in.opBytes = 8
	case in.p66 && in.mode == 16:
		in.opBytes = 4
	case in.p66:
		in.opBytes = 2
	}

	if b == 0xC5 || b == 0xC4 {
		b1, ok := c.next()
		if !ok {
			return faulted
		}
		if in.mode != 64 && b1 < 0xC0 || !c.cpu.protected() {
			return c.refuse("not an instruction that completion knows (lds, les)")
		}
		return c.decodeVEX(b, b1, in.pp != 0 || rex != 0)
	}
	if b == 0x62 {
		return c.decodeEVEX(in.pp != 0 || rex != 0)
	}
	in.op = b
	var ok bool
	if b != 0x0F {
		switch {
		case b == 0x9B:
			in.form = hX87Wait<<hand | legacyAny
			return decoded
		case b >= 0xD8 && b <= 0xDF:
			if !c.modRM() {
				return faulted
			}
			in.form = x87Form(in)
			if in.form == 0 {
				return c.refuse("reserved or undocumented x87 encoding")
			}
			return decoded
		}
		return c.refuse("a one-byte opcode that KVM's emulator is to know")
	}
	in.mapNo = 1
	if in.op, ok = c.next(); !ok {
		return faulted
	}
	t := &map1
	switch in.op {
	case 0x38:
		in.mapNo, t = 2, &map2
	case 0x3A:
		in.mapNo, t = 3, &map3
	}
	if in.mapNo > 1 {
		if in.op, ok = c.next(); !ok {
			return faulted
		}
	}
	f := t[in.pp][in.op]
	if none := t[0][in.op]; f == 0 && none.anyPrefix() {
		f = none
	}
	if f.legacy() == 0 {
		return c.refuse("opcode not on the list")
	}
	return c.finish(f)
}

// decodeVEX reads what follows C4 or C5 and its first payload byte (SDM vol. 2, 2.3.5).
func (c *Completer) decodeVEX(b, b1 byte, prefixed bool) decodeEnd {
	in := &c.in
	in.vex, in.w = true, false
	in.r, in.x, in.b = ^b1>>4&8, 0, 0
	in.mapNo = 1
	b2 := b1
	var ok bool
	if b == 0xC4 {
		in.x, in.b = ^b1>>3&8, ^b1>>2&8
		in.mapNo = b1 & 31
		if b2, ok = c.next(); !ok {
			return faulted
		}
		in.w = b2&0x80 != 0
	}
	in.vvvv, in.l, in.pp = ^b2>>3&15, b2&4 != 0, b2&3
	if in.mode != 64 {
		in.r, in.x, in.b = 0, 0, 0
		in.vvvv &= 7
	}
	if in.op, ok = c.next(); !ok {
		return faulted
	}
	f := kForm(in)
	in.k512 = f != 0
	switch {
	case f != 0:
	case in.mapNo == 1:
		f = map1[in.pp][in.op]
	case in.mapNo == 2:
		f = map2[in.pp][in.op]
	case in.mapNo == 3:
		f = map3[in.pp][in.op]
	}
	if f.vex() == 0 {
		return c.refuse("VEX opcode not on the list")
	}
	if prefixed || in.lock {
		c.raise(vecUD)
		return faulted
	}
	return c.finish(f)
}

// finish reads ModRM, SIB, displacement and immediate.
func (c *Completer) finish(f form) decodeEnd {
	in := &c.in
	in.form = f
	if in.mode != 64 && f&w64 != 0 {
		in.w = false
	}
	in.vsib = f.hand() == hGather
	if h := f.hand(); h != hVZero && h != hUD || in.op != 0x77 && in.op != 0x0B {
		if !c.modRM() {
			return faulted
		}
	}
	if f&imm != 0 {
		var ok bool
		if in.imm, ok = c.next(); !ok {
			return faulted
		}
		if in.mem && in.mode == 64 && c.ripRelative() {
			in.off++ // RIP-relative counts from the end of the instruction
		}
		if f&is4 != 0 && in.mode != 64 {
			in.imm &= 0x7F
		}
	}
	if in.mem {
		in.off = c.wrap(in.off)
	}
	return decoded
}

// next fetches one byte of the instruction.
func (c *Completer) next() (byte, bool) {
	in := &c.in
	if in.n == maxLen {
		c.raiseErr(vecGP, 0)
		return 0, false
	}
	if in.n == in.have && !c.fetch() {
		return 0, false
	}
	in.n++
	return in.raw[in.n-1], true
}

// number fetches a little-endian number of n bytes, sign-extended.
func (c *Completer) number(n int) (int64, bool) {
	var buf [8]byte
	for i := range n {
		b, ok := c.next()
		if !ok {
			return 0, false
		}
		buf[i] = b
	}
	v := int64(binary.LittleEndian.Uint64(buf[:]))
	shift := 64 - 8*n
	return v << shift >> shift, true
}

func (c *Completer) ripRelative() bool { return c.in.mod == 0 && c.in.rm&7 == 5 }

// modRM reads ModRM, SIB and displacement and computes the effective address
// (SDM vol. 2, 2.1.5). An RIP-relative one is right when no immediate follows.
func (c *Completer) modRM() bool {
	in, gpr := &c.in, &c.cpu.GPR
	m, ok := c.next()
	if !ok {
		return false
	}
	in.hasModRM = true
	in.mod, in.reg, in.rm = m>>6, m>>3&7|in.r, m&7|in.b
	if in.mod == 3 {
		return true
	}
	in.mem, in.sseg = true, DS
	var disp int64
	if in.adBytes == 2 {
		bx, bp, si, di := gpr[RBX], gpr[RBP], gpr[RSI], gpr[RDI]
		in.off = [8]uint64{bx + si, bx + di, bp + si, bp + di, si, di, bp, bx}[m&7]
		if k := m & 7; k == 2 || k == 3 || k == 6 && in.mod != 0 {
			in.sseg = SS
		}
		switch {
		case in.mod == 0 && m&7 == 6:
			in.off = 0
			disp, ok = c.number(2)
		case in.mod == 1:
			disp, ok = c.number(1)
			if in.evex {
				disp *= int64(in.size())
			}
		case in.mod == 2:
			disp, ok = c.number(2)
		}
	} else {
		base := in.rm
		noBase := in.mod == 0 && m&7 == 5
		rip := noBase && in.mode == 64
		if m&7 == 4 {
			var sib byte
			if sib, ok = c.next(); !ok {
				return false
			}
			base = sib&7 | in.b
			noBase = in.mod == 0 && sib&7 == 5
			index := sib>>3&7 | in.x
			in.idx, in.scl = index, sib>>6
			if index != 4 && !in.vsib {
				in.off = gpr[index] << (sib >> 6)
			}
		} else if in.vsib {
			c.raise(vecUD)
			return false
		}
		if !noBase {
			in.off += gpr[base]
			if base == RSP || base == RBP {
				in.sseg = SS
			}
		}
		switch {
		case in.mod == 1:
			disp, ok = c.number(1)
			if in.evex { // disp8*N (SDM vol. 2, 2.7.5)
				disp *= int64(in.size())
			}
		case in.mod == 2 || noBase:
			disp, ok = c.number(4)
		}
		if rip {
			in.off += c.cpu.RIP + uint64(in.n)
		}
	}
	if !ok {
		return false
	}
	in.off += uint64(disp)
	if in.seg >= 0 {
		in.sseg = uint8(in.seg)
	}
	in.off = c.wrap(in.off)
	return true
}

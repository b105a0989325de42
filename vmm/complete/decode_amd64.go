package complete

const maxLen = 15 // bytes of an instruction (SDM vol. 2, 2.3.11)

// inst is one decoded instruction.
type inst struct {
	raw   [maxLen]byte
	n     int  // bytes used of raw
	have  int  // bytes fetched into raw
	short bool // a byte could not be fetched: c.fault or c.why has the reason

	mode     uint8 // 16, 32 or 64
	opBytes  uint8 // operand size in bytes: 2, 4 or 8
	adBytes  uint8 // address size in bytes
	seg      int8  // override, or -1
	pp       uint8 // mandatory prefix: 0 none, 1 66, 2 F3, 3 F2
	lock     bool
	rex      bool
	vex      bool
	w        bool
	ll       uint8 // vector length of VEX and EVEX: 16 << ll bytes
	r, x, b  uint8 // 8 or 0
	vvvv     uint8
	k512     bool // EVEX, or VEX on mask registers
	evex     bool
	p2       uint8 // EVEX: the last payload byte
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

// x87Byte is the ModRM byte by which the list has escape opcodes.
func (in *inst) x87Byte() byte {
	if in.mem {
		return in.reg & 7 << 3
	}
	return 0xC0 | in.reg&7<<3 | in.rm&7
}

// row finds the opcode.
func (in *inst) row(maps *[4]table) form {
	if int(in.mapNo) >= len(maps) {
		return 0
	}
	return maps[in.mapNo][in.pp][in.op]
}

// decode reads the instruction at RIP. The bytes come from the guest's page
// tables, a second page only when the instruction reaches it. On false c.why
// says why it is not on the list, or c.fault holds what to raise.
func (c *Completer) decode() bool {
	in, cpu := &c.in, c.cpu
	*in = inst{seg: -1}
	switch {
	case cpu.long():
		in.mode, in.opBytes, in.adBytes = 64, 4, 8
	case cpu.Seg[CS].DB:
		in.mode, in.opBytes, in.adBytes = 32, 4, 4
	default:
		in.mode, in.opBytes, in.adBytes = 16, 2, 2
	}
	var rex, b byte
	p66 := false
prefixes:
	for {
		b = c.next()
		switch b {
		case 0x66:
			p66 = true
		case 0x67:
			in.adBytes = 4
			if in.mode == 32 {
				in.adBytes = 2
			}
		case 0xF0:
			in.lock = true
		case 0xF3:
			in.pp = 2
		case 0xF2:
			in.pp = 3
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
	if in.short {
		return false
	}
	if p66 && in.pp == 0 {
		in.pp = 1
	}
	in.r, in.x, in.b = rex<<1&8, rex<<2&8, rex<<3&8
	in.w = rex&8 != 0
	in.rex = rex != 0
	switch {
	case in.w:
		in.opBytes = 8
	case p66 && in.mode == 16:
		in.opBytes = 4
	case p66:
		in.opBytes = 2
	}
	in.op = b
	prefixed := in.pp != 0 || in.rex || in.lock
	switch {
	case b == 0xC4, b == 0xC5:
		return c.decodeVEX(b, prefixed)
	case b == 0x62:
		return c.decodeEVEX(prefixed)
	case b == 0x9B:
		in.form = hX87Wait<<hand | legacyAny
		return true
	case b >= 0xD8 && b <= 0xDF:
		if !c.modRM() {
			return false
		}
		in.form = c.list.x87[b&7][in.x87Byte()]
		return in.form != 0 || c.deny("reserved or undocumented x87 encoding")
	case b != 0x0F:
		return c.deny("a one-byte opcode that KVM's emulator is to know")
	}
	in.mapNo, in.op = 1, c.next()
	switch in.op {
	case 0x38:
		in.mapNo, in.op = 2, c.next()
	case 0x3A:
		in.mapNo, in.op = 3, c.next()
	}
	if in.short {
		return false
	}
	f := in.row(&c.list.plain)
	if none := c.list.plain[1][0][in.op]; f == 0 && in.mapNo == 1 && none.anyPrefix() {
		f = none
	}
	if f.legacy() == 0 {
		return c.deny("opcode not on the list")
	}
	return c.finish(f)
}

// decodeVEX reads what follows C4 or C5 (SDM vol. 2, 2.3.5).
func (c *Completer) decodeVEX(b byte, prefixed bool) bool {
	in := &c.in
	b1 := c.next()
	if !in.short && (in.mode != 64 && b1 < 0xC0 || !c.cpu.protected()) {
		return c.deny("not an instruction that completion knows (lds, les)")
	}
	in.vex, in.mapNo = true, 1
	b2 := b1 & 0x7F
	if b == 0xC4 {
		in.x, in.b = ^b1>>3&8, ^b1>>2&8
		in.mapNo = b1 & 31
		b2 = c.next()
	}
	in.r, in.w = ^b1>>4&8, b2&0x80 != 0
	in.vvvv, in.ll, in.pp = ^b2>>3&15, b2>>2&1, b2&3
	in.op = c.next()
	if in.short {
		return false
	}
	f := in.row(&c.list.plain)
	if f.vex() == 0 {
		return c.deny("VEX opcode not on the list")
	}
	return c.finishVEX(f, prefixed)
}

// finishVEX is finish for VEX and EVEX, which allow no other prefix.
func (c *Completer) finishVEX(f form, prefixed bool) bool {
	in := &c.in
	in.k512 = f.vex() == f512
	if prefixed {
		return c.raise(vecUD)
	}
	if in.mode != 64 {
		in.r, in.x, in.b = 0, 0, 0
		in.vvvv &= 7
	}
	return c.finish(f)
}

// finish reads ModRM, SIB, displacement and immediate.
func (c *Completer) finish(f form) bool {
	in := &c.in
	in.form = f
	if in.mode != 64 && f&w64 != 0 {
		in.w = false
	}
	h := f.hand()
	in.vsib = h == hGather
	if h != hVZero && h != hUD || in.op != 0x77 && in.op != 0x0B {
		if !c.modRM() {
			return false
		}
	}
	if f&imm != 0 {
		in.imm = c.next()
		if in.mem && in.mode == 64 && in.mod == 0 && in.rm&7 == 5 {
			in.off = c.wrap(in.off + 1) // RIP-relative counts from the end of the instruction
		}
		if f&is4 != 0 && in.mode != 64 {
			in.imm &= 0x7F
		}
	}
	return !in.short
}

// next fetches one byte of the instruction, or sets in.short and returns 0.
func (c *Completer) next() byte {
	in := &c.in
	switch {
	case in.short:
		return 0
	case in.n == maxLen:
		c.raiseErr(vecGP, 0)
		in.short = true
		return 0
	case in.n == in.have && !c.fetch():
		in.short = true
		return 0
	}
	in.n++
	return in.raw[in.n-1]
}

// number fetches a little-endian number of n bytes, sign-extended.
func (c *Completer) number(n int) int64 {
	var v uint64
	for i := range n {
		v |= uint64(c.next()) << (8 * i)
	}
	shift := 64 - 8*n
	return int64(v<<shift) >> shift
}

// modRM reads ModRM, SIB and displacement and computes the effective address
// (SDM vol. 2, 2.1.5). An RIP-relative one is right when no immediate follows.
func (c *Completer) modRM() bool {
	in, gpr := &c.in, &c.cpu.GPR
	m := c.next()
	in.hasModRM = true
	in.mod, in.reg, in.rm = m>>6, m>>3&7|in.r, m&7|in.b
	if in.mod == 3 || in.short {
		return !in.short
	}
	in.mem, in.sseg = true, DS
	far, base, noBase := 4, in.rm, in.mod == 0 && m&7 == 5 // far: bytes of a long displacement
	rip := noBase && in.mode == 64
	switch {
	case in.adBytes == 2:
		bx, bp, si, di := gpr[RBX], gpr[RBP], gpr[RSI], gpr[RDI]
		far, noBase = 2, in.mod == 0 && m&7 == 6
		if !noBase {
			in.off = [8]uint64{bx + si, bx + di, bp + si, bp + di, si, di, bp, bx}[m&7]
			if k := m & 7; k == 2 || k == 3 || k == 6 {
				in.sseg = SS
			}
		}
	case m&7 == 4:
		sib := c.next()
		base, noBase = sib&7|in.b, in.mod == 0 && sib&7 == 5
		in.idx, in.scl = sib>>3&7|in.x, sib>>6
		if in.idx != 4 && !in.vsib {
			in.off = gpr[in.idx] << in.scl
		}
	case in.vsib && !in.short:
		return c.raise(vecUD)
	}
	if in.adBytes != 2 && !noBase {
		in.off += gpr[base]
		if base == RSP || base == RBP {
			in.sseg = SS
		}
	}
	switch {
	case in.mod == 1 && in.evex: // disp8*N (SDM vol. 2, 2.7.5)
		in.off += uint64(c.number(1) * int64(in.size()))
	case in.mod == 1:
		in.off += uint64(c.number(1))
	case in.mod == 2 || noBase:
		in.off += uint64(c.number(far))
	}
	if rip {
		in.off += c.cpu.RIP + uint64(in.n)
	}
	if in.seg >= 0 {
		in.sseg = uint8(in.seg)
	}
	in.off = c.wrap(in.off)
	return !in.short
}

package complete

// AVX-512: EVEX encodings and the VEX encodings that work on mask registers, as
// far as string functions and simple vector code use them (SDM vol. 2, 2.7).
// Not on the list: embedded rounding, gathers and scatters, compressing and
// narrowing moves, and masked memory operands that do not match their register
// element by element.

// decodeEVEX reads what follows 62.
func (c *Completer) decodeEVEX(prefixed bool) bool {
	in := &c.in
	p0 := c.next()
	if !in.short && (in.mode != 64 && p0 < 0xC0 || !c.cpu.protected()) {
		return c.deny("not an instruction that completion knows (bound)")
	}
	p1, p2 := c.next(), c.next()
	in.vex, in.evex = true, true
	in.mapNo, in.pp = p0&7, p1&3
	in.r = ^p0>>4&8 | ^p0&16
	in.x, in.b = ^p0>>3&8, ^p0>>2&8
	in.w = p1&0x80 != 0
	in.vvvv = ^p1>>3&15 | ^p2<<1&16
	in.p2, in.z, in.ll, in.bcast, in.aaa = p2, p2&0x80 != 0, p2>>5&3, p2&0x10 != 0, p2&7
	in.op = c.next()
	if in.short {
		return false
	}
	if p0&8 != 0 || p1&4 == 0 || in.ll == 3 {
		return c.deny("reserved EVEX encoding")
	}
	f := in.row(&c.list.evex)
	if f == 0 {
		return c.deny("EVEX opcode not on the list")
	}
	if !c.finishVEX(f, prefixed) {
		return false
	}
	if !in.mem && f.rm() == 2 { // X is the fifth bit of a vector register
		in.rm |= in.x << 1
	}
	if in.bcast && !in.mem { // in the register form the b bit chooses rounding
		return c.deny("EVEX with embedded rounding")
	}
	return true
}

// element returns the element size in bytes that masks and broadcasts count in.
func (in *inst) element() int {
	w := 1
	if in.w {
		w = 2
	}
	return [...]int{4 * w, elem1 >> elemShift: 1, elem2 >> elemShift: 2, elemW >> elemShift: 4 * w, elemB >> elemShift: w}[in.form&elems>>elemShift]
}

// misfits512 reports whether what only AVX-512 has is not as the row wants it.
// Every condition under which the host would raise #UD has to be met.
func (in *inst) misfits512() bool {
	f := in.form
	maskDest := f.reg() == 3
	return maskDest && in.reg > 7 || f.rm() == 3 && !in.mem && in.b != 0 || !in.evex && f&vvMask != 0 && in.vvvv > 7 ||
		f.reg() == 1 && in.reg > 15 ||
		in.bcast && f&bcst == 0 ||
		in.z && (in.aaa == 0 || maskDest || in.mem && f&store != 0) ||
		in.aaa != 0 && f&elems == 0
}

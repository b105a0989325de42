package complete

// x87Form returns the form of an escape opcode D8 to DF (SDM vol. 2, A.5), zero
// for reserved and undocumented encodings.
func x87Form(in *inst) form {
	const run = hX87<<hand | legacyAny
	g := in.reg & 7
	if in.mem {
		type r = [8]form
		f := [8]r{
			{m4, m4, m4, m4, m4, m4, m4, m4},
			{m4, 0, m4 | store, m4 | store, hX87Env << hand, m2, hX87Env << hand, m2 | store},
			{m4, m4, m4, m4, m4, m4, m4, m4},
			{m4, m4 | store, m4 | store, m4 | store, 0, m10, 0, m10 | store},
			{m8, m8, m8, m8, m8, m8, m8, m8},
			{m8, m8 | store, m8 | store, m8 | store, hX87Env << hand, 0, hX87Env << hand, m2 | store},
			{m2, m2, m2, m2, m2, m2, m2, m2},
			{m2, m2 | store, m2 | store, m2 | store, m10, m8, m10 | store, m8 | store},
		}[in.op&7][g]
		switch {
		case f == 0:
			return 0
		case f.hand() == 0:
			return f | run
		}
		return f | legacyAny
	}
	// One bit for each register form C0 to FF.
	known := [8]uint64{
		^uint64(0),
		0xffff | 1<<16 | 0xffff_7f33<<32,
		0xffffffff | 1<<0x29,
		0xffffffff | 1<<0x22 | 1<<0x23 | 0xffff<<0x28,
		0xffff | 0xffffffff<<32,
		0xff | 0xffff<<16 | 0xffff<<32,
		0xffff | 1<<0x19 | 0xffffffff<<32,
		0xff | 1<<0x20 | 0xffff<<0x28,
	}[in.op&7]
	if known>>(g<<3|in.rm&7)&1 == 0 {
		return 0
	}
	return run
}

// x87Clear reports whether no unmasked x87 exception is pending; a waiting
// instruction raises #MF for one (SDM vol. 1, 8.6 and 8.7).
func (c *Completer) x87Clear() bool {
	if !c.settle(xX87) {
		return false
	}
	x := c.cpu.XSAVE
	if le.Uint16(x[xFSW:])&^le.Uint16(x[xFCW:])&0x3f != 0 {
		return c.raise(vecMF)
	}
	return true
}

// x87 runs an escape instruction on the host.
func (c *Completer) x87() bool {
	in := &c.in
	g := in.reg & 7
	// fnclex, fninit, fnstcw, fnstsw m16, fnstsw ax do not wait.
	noWait := !in.mem && in.op == 0xDB && g == 4 || !in.mem && in.op == 0xDF && g == 4 ||
		in.mem && in.op == 0xD9 && g == 7 || in.mem && in.op == 0xDD && g == 7
	loadCW := in.mem && in.op == 0xD9 && g == 5
	if !c.fpuReady() || !noWait && !c.x87Clear() || !c.settle(xX87) {
		return false
	}
	if in.mem && in.form&store == 0 && !c.area(in.size(), 1, accRead) ||
		in.mem && in.form&store != 0 && !c.area(in.size(), 1, accWrite) {
		return false
	}
	var data []byte
	if in.mem {
		data = c.exec.operand(in.size())
		// A store that an unmasked exception suppresses leaves memory as it is.
		if in.form&store == 0 || le.Uint16(c.cpu.XSAVE[xFCW:])&0x3f != 0x3f {
			c.read(&c.op, 0, data)
		}
	}
	if !c.runHost() {
		return false
	}
	if in.mem && in.form&store != 0 {
		c.write(&c.op, 0, data)
	}
	if !noWait && !loadCW {
		c.x87Pointers()
	}
	return true
}

// x87Pointers replaces the addresses of the host's code and scratch area, which
// the instruction has left as the last x87 instruction and operand, by the guest's.
func (c *Completer) x87Pointers() {
	in, x := &c.in, c.cpu.XSAVE
	if c.exec.isCode(le.Uint64(x[xFIP:])) {
		le.PutUint64(x[xFIP:], c.cpu.RIP)
		modrm := uint16(in.mod<<6 | in.reg&7<<3 | in.rm&7)
		le.PutUint16(x[xFOP:], uint16(in.op&7)<<8|modrm)
	}
	if c.exec.isScratch(le.Uint64(x[xFDP:])) {
		le.PutUint64(x[xFDP:], in.off)
	}
}

// x87Env does fldenv, fnstenv, frstor and fnsave in the protected-mode formats
// (SDM vol. 1, 8.1.10): control, status, tag, instruction pointer, selector and
// opcode, operand pointer, selector, in 32-bit or 16-bit fields.
func (c *Completer) x87Env() bool {
	in := &c.in
	if !c.cpu.protected() {
		return c.deny("x87 environment in real-address mode")
	}
	x := c.cpu.XSAVE
	w, n := 4, 28
	if in.opBytes == 2 {
		w, n = 2, 14
	}
	total, regs := n, in.op == 0xDD
	if regs {
		total += 80
	}
	b := c.buf[:total]
	field := func(i int) []byte { return b[i*w:] }
	if in.reg&7 == 4 { // fldenv, frstor
		if !c.fpuReady() || !c.x87Clear() || !c.area(total, 1, accRead) {
			return false
		}
		c.read(&c.op, 0, b)
		copy(x[xFCW:], field(0)[:2])
		le.PutUint16(x[xFCW:], le.Uint16(x[xFCW:])&0x1f7f|0x40)
		sw := le.Uint16(field(1))
		c.x87Rotate(int(sw >> 11 & 7))
		le.PutUint16(x[xFSW:], sw)
		x[xFTW] = 0
		tags := le.Uint16(field(2))
		for i := range 8 {
			if tags>>(2*i)&3 != 3 {
				x[xFTW] |= 1 << i
			}
		}
		clear(x[xFOP:xMXCSR])
		copy(x[xFIP:], field(3)[:w])
		copy(x[xFDP:], field(5)[:w])
		if w == 4 {
			le.PutUint16(x[xFOP:], le.Uint16(field(4)[2:])&0x7ff)
		}
		if regs {
			for i := range 8 {
				copy(x[xST+16*i:][:10], b[n+10*i:])
			}
		}
		c.x87Summary()
		c.cpu.FPUChanged = true
		return true
	}
	if !c.fpuReady() || !c.settle(xX87) || !c.area(total, 1, accWrite) {
		return false
	}
	clear(b)
	if w == 4 {
		for _, i := range []int{0, 1, 2, 6} {
			le.PutUint16(field(i)[2:], 0xffff)
		}
		le.PutUint16(field(4)[2:], le.Uint16(x[xFOP:])&0x7ff)
	}
	copy(field(0)[:2], x[xFCW:])
	copy(field(1)[:2], x[xFSW:])
	le.PutUint16(field(2), c.x87Tags())
	copy(field(3)[:w], x[xFIP:])
	copy(field(5)[:w], x[xFDP:])
	if regs {
		for i := range 8 {
			copy(b[n+10*i:][:10], x[xST+16*i:])
		}
	}
	c.write(&c.op, 0, b)
	if regs { // and initialize
		c.x87Rotate(0)
		clear(x[:xMXCSR])
		le.PutUint16(x[xFCW:], fcwInit)
	} else { // and mask
		x[xFCW] |= 0x3f
		c.x87Summary()
	}
	c.cpu.FPUChanged = true
	return true
}

// x87Summary makes the status word's error summary and busy bits follow its
// exception flags.
func (c *Completer) x87Summary() {
	x := c.cpu.XSAVE
	sw := le.Uint16(x[xFSW:]) &^ 0x8080
	if sw&^le.Uint16(x[xFCW:])&0x3f != 0 {
		sw |= 0x8080
	}
	le.PutUint16(x[xFSW:], sw)
}

// x87Tags returns the full tag word: 0 valid, 1 zero, 2 special, 3 empty.
func (c *Completer) x87Tags() uint16 {
	x := c.cpu.XSAVE
	top := int(le.Uint16(x[xFSW:]) >> 11 & 7)
	var tags uint16
	for i := range 8 {
		tag := uint16(3)
		if x[xFTW]>>i&1 != 0 {
			st := x[xST+16*((i-top)&7):]
			exp, man := le.Uint16(st[8:])&0x7fff, le.Uint64(st)
			switch {
			case exp == 0x7fff || exp != 0 && man>>63 == 0 || exp == 0 && man != 0:
				tag = 2
			case exp == 0:
				tag = 1
			default:
				tag = 0
			}
		}
		tags |= tag << (2 * i)
	}
	return tags
}

// enterMMX does what every MMX instruction does to the x87 state: no register is
// empty and the stack's top is 0, so that register i lies at place i of the
// image (SDM vol. 1, 9.5.1).
func (c *Completer) enterMMX() {
	x := c.cpu.XSAVE
	c.x87Rotate(0)
	le.PutUint16(x[xFSW:], le.Uint16(x[xFSW:])&^0x3800)
	x[xFTW] = 0xff
	c.cpu.FPUChanged = true
}

// x87Rotate reorders the image's registers, which begin with the stack's top,
// for a new top.
func (c *Completer) x87Rotate(top int) {
	x := c.cpu.XSAVE
	by := top - int(le.Uint16(x[xFSW:])>>11&7)
	var old [128]byte
	copy(old[:], x[xST:])
	for i := range 8 {
		copy(x[xST+16*i:][:16], old[16*((i+by)&7):])
	}
}

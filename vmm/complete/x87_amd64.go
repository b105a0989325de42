package complete

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
	// fnclex, fninit, fnstcw, fnstsw m16, fnstsw ax, fnstenv, fnsave do not wait.
	noWait := !in.mem && (in.op == 0xDB || in.op == 0xDF) && g == 4 ||
		in.mem && (in.op == 0xD9 || in.op == 0xDD) && g >= 6
	control := in.mem && in.op&^4 == 0xD9 && (g == 4 || g == 5) // fldcw, fldenv, frstor
	if in.form&mMask == mEnv && !c.cpu.protected() {
		return c.deny("x87 environment in real-address mode")
	}
	if !c.fpuReady() || !noWait && !c.x87Clear() || !c.settle(xX87) {
		return false
	}
	acc := in.access()
	var data []byte
	if in.mem {
		if !c.area(in.size(), 1, acc) {
			return false
		}
		data = c.exec.operand(in.size())
		// A store that an unmasked exception suppresses leaves memory as it is.
		if acc == accRead || le.Uint16(c.cpu.XSAVE[xFCW:])&0x3f != 0x3f {
			c.read(0, data)
		}
	}
	if !c.runHost() {
		return false
	}
	if in.mem && acc == accWrite {
		c.write(0, data)
	}
	if !noWait && !control {
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

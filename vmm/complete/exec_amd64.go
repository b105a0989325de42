package complete

// Running an instruction on the host. No instruction of the list can fault
// there, by construction:
//   - its bytes are encoded here, from a row of the table, and the row's operands,
//     lengths, feature bit and the host's XCR0 have been checked (step, step512):
//     no #UD, no #NM;
//   - it names no general register but rax, rbx, rcx, rdx, rsi and rdi, and no
//     memory but [rdi], 64-byte aligned in a page of its own that is larger than
//     any operand: no #PF, no #GP, no #AC. Rows with other memory operands
//     (gathers, images) are done in Go;
//   - MXCSR has all exceptions masked: no #XM. What would have been raised is
//     read off its flags afterwards;
//   - a waiting x87 or MMX instruction only runs when no unmasked exception is
//     pending, and one it leaves pending is stored by XSAVE and wiped out by
//     FNINIT, neither of which waits: no #MF;
//   - of RFLAGS only the arithmetic flags are loaded: no #DB, no #AC;
//   - the image for XRSTOR is put together here: its header names only
//     components that the host has enabled, its MXCSR is as above.
//
// The Go runtime sees an assembly function. A signal may arrive at any point:
// rsp is the goroutine's stack throughout, the handler finds g by TLS, the
// kernel saves and restores the FPU state, and the runtime does not preempt at
// a program counter it does not know.

// runFrame is what the trampoline reads and writes; the assembly knows the offsets.
type runFrame struct {
	rax, rcx, rdx, rbx, rsi, rdi uint64 // 0 ... 40
	flags                        uint64 // 48
	code                         uintptr
	state                        uintptr // 64: the 64-byte aligned XSAVE area
	components                   uint64  // 72: what of it to load and store; 0: nothing
	mxcsr                        uint32  // 80: the host's
	fcw                          uint16  // 84: the host's
	fresh                        uint8   // 86: the code was written since it last ran
	avx                          uint8   // 87: the host has AVX
}

// run loads the guest's state, runs one instruction and stores the state.
//
//go:noescape
func run(f *runFrame)

//go:noescape
func cpuidex(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

func xgetbv() uint64

func hostCPUID(leaf, subleaf uint32) [4]uint32 {
	a, b, c, d := cpuidex(leaf, subleaf)
	return [4]uint32{a, b, c, d}
}

// hostState is the components of the FPU state that the instruction needs.
func (c *Completer) hostState() uint64 {
	in := &c.in
	f := in.form
	h := f.hand()
	var s uint64
	switch {
	case in.k512, in.vex && (f.usesV() || h == hVZero):
		s = c.vectorState()
	case f.usesV():
		s = xSSE
	}
	if f.usesM() || h == hX87 || h == hVZero && !in.vex {
		s |= xX87
	}
	return s
}

// runHost runs the decoded instruction on the host with the guest's registers
// and the scratch area as its memory operand, and takes over the
// registers it leaves. On false nothing but exception flags and the MMX state has
// changed.
func (c *Completer) runHost() bool {
	in, cpu, e := &c.in, c.cpu, &c.exec
	components := c.hostState()
	if components&^c.hostXCR0 != 0 {
		return c.deny("the host has not enabled the registers it uses")
	}
	if !c.settle(components) {
		return false
	}
	var k code
	var regs renaming
	c.encode(&k, &regs)
	r := e.frame
	r.rax, r.rcx, r.rdx = cpu.GPR[RAX], cpu.GPR[RCX], cpu.GPR[RDX]
	host := [3]*uint64{&r.rbx, &r.rsi, &r.rdi}
	for i := range regs.n {
		*host[i] = cpu.GPR[regs.guest[i]]
	}
	if in.mem || in.form.hand() == hMask {
		r.rdi = uint64(e.scratchAddr())
	}
	r.flags = cpu.RFLAGS & flagArith
	r.components = components
	e.place(&k)
	mxcsr := c.mxcsr()
	if components != 0 {
		c.toHost(components, mxcsr)
	}

	run(r)

	vector := components&xSSE != 0
	if vector {
		raised := le.Uint32(e.state[xMXCSR:]) & 0x3f
		if unmasked := raised &^ (mxcsr >> 7); in.form&fp != 0 && unmasked != 0 {
			if unmasked&7 != 0 { // found before computing: nothing was computed
				raised &= 7
			}
			c.setMXCSR(mxcsr | raised)
			if components&xX87 != 0 && e.state[xFTW] == 0xff && le.Uint16(e.state[xFSW:])&0x3800 == 0 {
				c.enterMMX() // which comes before the exception
			}
			if cpu.CR4&cr4OSXMMEXCPT == 0 {
				return c.raise(vecUD)
			}
			return c.raise(vecXM)
		}
		mxcsr |= raised
	}
	if components != 0 {
		c.fromHost(components)
	}
	if vector {
		c.setMXCSR(mxcsr)
	}
	cpu.GPR[RAX], cpu.GPR[RCX], cpu.GPR[RDX] = r.rax, r.rcx, r.rdx
	for i := range regs.n {
		cpu.GPR[regs.guest[i]] = *host[i]
	}
	cpu.RFLAGS = cpu.RFLAGS&^flagArith | r.flags&flagArith
	return true
}

// toHost copies components of the guest's image to the host's XSAVE area.
func (c *Completer) toHost(components uint64, mxcsr uint32) {
	s, x := c.exec.state, c.cpu.XSAVE
	copy(s[:xXMMEnd], x)
	clear(s[xBV:xHeaderEnd])
	le.PutUint64(s[xBV:], components)
	// All exceptions masked, none raised; rounding, DAZ and FTZ as the guest has
	// them. FTZ only works on masked underflow; with underflow unmasked it is
	// set here, because then even an exact tiny result has to be noticed. (The
	// precision flag beside an unmasked overflow or underflow, which goes by the
	// result with an unbounded exponent, may be set too often.)
	v := mxcsr&0xe040 | mxcsrInit
	if mxcsr&(1<<11) == 0 {
		v |= 1 << 15
	}
	le.PutUint32(s[xMXCSR:], v)
	// An error summary without a pending exception would be believed.
	if sw := le.Uint16(s[xFSW:]); sw&^le.Uint16(s[xFCW:])&0x3f == 0 {
		le.PutUint16(s[xFSW:], sw&^0x8080)
	}
	for i := 2; i < 8; i++ { // the rest of them
		if components>>i&1 != 0 {
			from, end := c.component(i)
			copy(s[from:end], x[from:end])
		}
	}
}

// fromHost copies components of the host's XSAVE area back to the guest's image.
func (c *Completer) fromHost(components uint64) {
	s, x := c.exec.state, c.cpu.XSAVE
	if components&xX87 != 0 {
		copy(x[:xMXCSR], s)
		copy(x[xST:xXMM], s[xST:])
	}
	for i := 1; i < 8; i++ {
		if components>>i&1 != 0 {
			from, end := c.component(i)
			copy(x[from:end], s[from:end])
		}
	}
	c.cpu.FPUChanged = true
}

package complete

import "encoding/binary"

// State components (SDM vol. 1, 13.1).
const (
	xX87 = 1 << 0
	xSSE = 1 << 1
	xAVX = 1 << 2
	x512 = 7 << 5 // opmask, ZMM_Hi256, Hi16_ZMM
)

// Places in an XSAVE image (SDM vol. 1, 13.4.1 and 13.4.2).
const (
	xFCW       = 0
	xFSW       = 2
	xFTW       = 4
	xFOP       = 6
	xFIP       = 8
	xFDP       = 16
	xMXCSR     = 24
	xMXCSRMask = 28
	xST        = 32
	xXMM       = 160
	xXMMEnd    = 416
	xBV        = 512
	xCompBV    = 520
	xHeaderEnd = 576

	mxcsrInit = 0x1f80
	fcwInit   = 0x37f
)

var le = binary.LittleEndian

// settle makes components of the guest's image valid that its XSTATE_BV says
// are in their initial state, so that their bytes can be used as they are.
func (c *Completer) settle(components uint64) bool {
	x := c.cpu.XSAVE
	bv := le.Uint64(x[xBV:])
	for i := 2; i < 32; i++ {
		if components>>i&1 == 0 {
			continue
		}
		off, end := c.component(i)
		if off < xHeaderEnd || end > len(x) {
			return c.deny("the XSAVE image is too short for the instruction's registers")
		}
		if bv>>i&1 == 0 {
			clear(x[off:end])
		}
	}
	if components&^bv&xX87 != 0 {
		clear(x[:xMXCSR])
		clear(x[xST:xXMM])
		le.PutUint16(x[xFCW:], fcwInit)
	}
	if components&^bv&xSSE != 0 {
		clear(x[xXMM:xXMMEnd])
	}
	le.PutUint64(x[xBV:], bv|components)
	return true
}

// component returns where component i >= 2 lies in the standard format.
func (c *Completer) component(i int) (off, end int) {
	return int(c.guest.xOff[i]), int(c.guest.xOff[i] + c.guest.xSize[i])
}

// vectorState is the components a VEX instruction reads or clears: bits above
// the vector length become zero in all that the guest has enabled.
func (c *Completer) vectorState() uint64 { return xSSE | xAVX | c.cpu.XCR0&c.hostXCR0&x512 }

// vector reads ymm register i.
func (c *Completer) vector(i uint8, v *[32]byte) bool {
	if !c.settle(xSSE | xAVX) {
		return false
	}
	off, _ := c.component(2)
	copy(v[:16], c.cpu.XSAVE[xXMM+16*int(i):])
	copy(v[16:], c.cpu.XSAVE[off+16*int(i):])
	return true
}

// setVector writes ymm register i and clears what lies above it.
func (c *Completer) setVector(i uint8, v *[32]byte) bool {
	if !c.settle(c.vectorState()) {
		return false
	}
	x := c.cpu.XSAVE
	off, _ := c.component(2)
	copy(x[xXMM+16*int(i):][:16], v[:16])
	copy(x[off+16*int(i):][:16], v[16:])
	if c.vectorState()&(1<<6) != 0 {
		off, _ := c.component(6)
		clear(x[off+32*int(i):][:32])
	}
	c.cpu.FPUChanged = true
	return true
}

// fpuReady checks for fxsave and its kin, which know neither #UD nor #MF.
func (c *Completer) fpuReady() bool {
	if c.cpu.CR0&(cr0EM|cr0TS) != 0 {
		return c.raise(vecNM)
	}
	return true
}

// area translates an n-byte memory image aligned to align bytes.
func (c *Completer) area(n int, align uint64, acc access) bool {
	lin, ok := c.linear(c.in.sseg, c.in.off, n, acc == accWrite)
	if !ok {
		return false
	}
	if lin%align != 0 {
		return c.raiseErr(vecGP, 0)
	}
	return c.prepare(&c.op, lin, n, acc)
}

// xmmBytes returns how many bytes of the XMM registers exist in this mode, and
// of the same number of YMM halves.
func (c *Completer) xmmBytes() int {
	if c.in.mode == 64 {
		return 256
	}
	return 128
}

// legacyOut writes the x87 part of an FXSAVE image to b: the image holds 64-bit
// pointers, the 32-bit forms have a selector (always 0) above 32 bits.
func (c *Completer) legacyOut(b []byte) {
	x := c.cpu.XSAVE
	copy(b[:xMXCSR], x)
	copy(b[xST:xXMM], x[xST:])
	b[xFTW+1] = 0
	if !c.in.w {
		le.PutUint32(b[xFIP+4:], 0)
		le.PutUint32(b[xFDP+4:], 0)
	}
	for i := xST + 10; i < xXMM; i += 16 {
		clear(b[i : i+6])
	}
}

// legacyIn is the reverse of legacyOut.
func (c *Completer) legacyIn(b []byte) {
	x := c.cpu.XSAVE
	copy(x[:xMXCSR], b)
	copy(x[xST:xXMM], b[xST:])
	x[xFTW+1] = 0
	c.x87Summary()
	if !c.in.w {
		le.PutUint32(x[xFIP+4:], 0)
		le.PutUint32(x[xFDP+4:], 0)
	}
}

// fxsave (SDM vol. 2, FXSAVE). Bytes 416 to 511 are left alone.
func (c *Completer) fxsave() bool {
	if !c.fpuReady() || !c.area(512, 16, accWrite) || !c.settle(xX87|xSSE) {
		return false
	}
	b := c.buf[:xXMMEnd]
	c.legacyOut(b)
	copy(b[xMXCSR:], c.cpu.XSAVE[xMXCSR:xMXCSR+4])
	le.PutUint32(b[xMXCSRMask:], c.mxcsrMask)
	n := xXMM
	if !c.fastFX() {
		n += copy(b[xXMM:], c.cpu.XSAVE[xXMM:xXMM+c.xmmBytes()])
	}
	c.write(&c.op, 0, b[:n])
	return true
}

// fastFX reports whether EFER.FFXSR has fxsave and fxrstor leave XMM alone.
func (c *Completer) fastFX() bool {
	return c.in.mode == 64 && c.cpu.CPL == 0 && c.cpu.EFER&eferFFXSR != 0
}

func (c *Completer) fxrstor() bool {
	if !c.fpuReady() || !c.area(512, 16, accRead) {
		return false
	}
	b := c.buf[:xXMMEnd]
	c.read(&c.op, 0, b)
	mxcsr := le.Uint32(b[xMXCSR:])
	if mxcsr&^c.mxcsrMask != 0 {
		return c.raiseErr(vecGP, 0)
	}
	if !c.settle(xX87 | xSSE) {
		return false
	}
	c.legacyIn(b)
	c.setMXCSR(mxcsr)
	if !c.fastFX() {
		copy(c.cpu.XSAVE[xXMM:xXMM+c.xmmBytes()], b[xXMM:])
	}
	return true
}

func (c *Completer) mxcsr() uint32 { return le.Uint32(c.cpu.XSAVE[xMXCSR:]) }

func (c *Completer) setMXCSR(v uint32) {
	le.PutUint32(c.cpu.XSAVE[xMXCSR:], v)
	c.cpu.FPUChanged = true
}

// ldmxcsr and stmxcsr.
func (c *Completer) controlWord(load bool) bool {
	if c.in.vex && (c.in.l || c.in.vvvv != 0) {
		return c.raise(vecUD)
	}
	if !c.unitsReady(true, false) {
		return false
	}
	acc := accWrite
	if load {
		acc = accRead
	}
	if !c.area(4, 1, acc) || !c.settle(xSSE) {
		return false
	}
	b := c.buf[:4]
	if !load {
		le.PutUint32(b, c.mxcsr())
		c.write(&c.op, 0, b)
		return true
	}
	c.read(&c.op, 0, b)
	v := le.Uint32(b)
	if v&^c.mxcsrMask != 0 {
		return c.raiseErr(vecGP, 0)
	}
	c.setMXCSR(v)
	return true
}

// xsaveReady checks for the XSAVE family and returns the requested components.
func (c *Completer) xsaveReady() (uint64, bool) {
	cpu := c.cpu
	if cpu.CR4&cr4OSXSAVE == 0 {
		return 0, c.raise(vecUD)
	}
	if cpu.CR0&cr0TS != 0 {
		return 0, c.raise(vecNM)
	}
	return cpu.XCR0 & (cpu.GPR[RDX]<<32 | cpu.GPR[RAX]&0xffffffff), true
}

// layout returns the offset of each component of an image and its length:
// standard, or compacted when compBV names the components it holds (SDM vol. 1, 13.4.3).
func (c *Completer) layout(components, compBV uint64, off *[32]int) (int, bool) {
	end := xHeaderEnd
	for i := 2; i < 32; i++ {
		held := components
		if compBV != 0 {
			held = compBV
		}
		if held>>i&1 == 0 {
			continue
		}
		if c.guest.xSize[i] == 0 {
			return 0, c.deny("an XSAVE component the host does not know")
		}
		at := int(c.guest.xOff[i])
		if compBV != 0 {
			at = end
			if c.guest.xAlign>>i&1 != 0 {
				at = (at + 63) &^ 63
			}
		}
		off[i] = at
		if components>>i&1 != 0 || compBV != 0 {
			end = max(end, at+int(c.guest.xSize[i]))
		}
	}
	if components>>32 != 0 || end > maxOperand {
		return 0, c.deny("an XSAVE image larger than completion knows")
	}
	return end, true
}

// xsave does xsave, xsaveopt and xsavec (SDM vol. 1, 13.7, 13.9 and 13.10).
func (c *Completer) xsave(opt, compact bool) bool {
	want, ok := c.xsaveReady()
	if !ok {
		return false
	}
	x := c.cpu.XSAVE
	inUse := le.Uint64(x[xBV:])
	if c.mxcsr() != mxcsrInit {
		if compact || inUse&xSSE != 0 {
			inUse |= xSSE
		}
	}
	compBV := uint64(0)
	if compact {
		compBV = want | 1<<63
	}
	var at [32]int
	n, ok := c.layout(want, compBV&^(1<<63), &at)
	if compact && compBV<<1 == 0 {
		n = xHeaderEnd
	}
	if !ok || !c.area(n, 64, accWrite) {
		return false
	}
	put := want
	if opt || compact {
		put &= inUse
	}
	if !c.settle(put) {
		return false
	}
	le.PutUint64(x[xBV:], inUse) // settle has marked what was only made readable
	b := c.buf[:]
	if put&xX87 != 0 {
		c.legacyOut(b)
		c.write(&c.op, 0, b[:xMXCSR])
		c.write(&c.op, xST, b[xST:xXMM])
	}
	if compact && put&xSSE != 0 || !compact && want&(xSSE|xAVX) != 0 {
		copy(b[xMXCSR:], x[xMXCSR:xMXCSR+4])
		le.PutUint32(b[xMXCSRMask:], c.mxcsrMask)
		c.write(&c.op, xMXCSR, b[xMXCSR:xST])
	}
	if put&xSSE != 0 {
		copy(b, x[xXMM:xXMM+c.xmmBytes()])
		c.write(&c.op, xXMM, b[:c.xmmBytes()])
	}
	for i := 2; i < 32; i++ {
		if put>>i&1 == 0 {
			continue
		}
		from, end := c.component(i)
		if i == 2 && c.in.mode != 64 {
			end = from + c.xmmBytes()
		}
		c.write(&c.op, at[i], x[from:end])
	}
	h := b[:16]
	c.read(&c.op, xBV, h[:8])
	bv := le.Uint64(h)&^want | inUse&want
	if compact {
		bv = inUse & want
	}
	le.PutUint64(h, bv)
	le.PutUint64(h[8:], compBV)
	if compact {
		c.write(&c.op, xBV, h)
	} else {
		c.write(&c.op, xBV, h[:8])
	}
	return true
}

// xrstor (SDM vol. 1, 13.8). The image is validated here and then becomes part
// of the guest's image; the host processor never reads it as it is.
func (c *Completer) xrstor() bool {
	want, ok := c.xsaveReady()
	if !ok || !c.area(xHeaderEnd, 64, accRead) {
		return false
	}
	b := c.buf[:]
	c.read(&c.op, 0, b[:xHeaderEnd])
	bv, compBV := le.Uint64(b[xBV:]), le.Uint64(b[xCompBV:])
	compact := compBV>>63 != 0
	bad := bv&^c.cpu.XCR0 != 0
	from := xCompBV + 16
	if compact {
		from = xCompBV + 8
		bad = bad || !c.has(fXSAVEC) || compBV&^(1<<63)&^c.cpu.XCR0 != 0 || bv&^compBV != 0
		compBV &^= 1 << 63
	} else {
		bad = bad || compBV != 0 || le.Uint64(b[xCompBV+8:]) != 0
	}
	for _, v := range b[from:xHeaderEnd] {
		bad = bad || compact && v != 0
	}
	mxcsr := le.Uint32(b[xMXCSR:])
	loadMXCSR := want&(xSSE|xAVX) != 0
	if compact {
		loadMXCSR = want&xSSE != 0
		if bv&xSSE == 0 {
			mxcsr = mxcsrInit
		}
	}
	if bad || loadMXCSR && mxcsr&^c.mxcsrMask != 0 {
		return c.raiseErr(vecGP, 0)
	}
	var at [32]int
	load := want & bv
	n, ok := c.layout(load, compBV, &at)
	if !ok || !c.area(n, 64, accRead) || !c.settle(want) {
		return false
	}
	c.read(&c.op, xHeaderEnd, b[xHeaderEnd:n])
	x := c.cpu.XSAVE
	if load&xX87 != 0 {
		c.legacyIn(b)
	}
	if load&xSSE != 0 {
		copy(x[xXMM:xXMM+c.xmmBytes()], b[xXMM:])
	}
	for i := 2; i < 32; i++ {
		if load>>i&1 == 0 {
			continue
		}
		from, end := c.component(i)
		if i == 2 && c.in.mode != 64 {
			end = from + c.xmmBytes()
		}
		copy(x[from:end], b[at[i]:])
	}
	// What the image leaves out goes to its initial state.
	le.PutUint64(x[xBV:], le.Uint64(x[xBV:])&^(want&^bv))
	c.cpu.FPUChanged = true
	if loadMXCSR {
		c.setMXCSR(mxcsr)
	}
	return c.settle(want &^ bv & (xX87 | xSSE))
}

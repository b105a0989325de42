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
	for i := 1; i < 32; i++ {
		if components>>i&1 == 0 {
			continue
		}
		off, end := c.component(i)
		if off == 0 || end > len(x) {
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
	le.PutUint64(x[xBV:], bv|components)
	return true
}

// component returns where component i >= 1 lies in the standard format.
func (c *Completer) component(i int) (off, end int) {
	if i == 1 {
		return xXMM, xXMMEnd
	}
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
	return c.prepare(lin, n, acc)
}

// legacy copies the x87 part of an image, from the guest's state or to it. The
// image holds 64-bit pointers; the 32-bit forms have a selector (always 0) above
// 32 bits.
func (c *Completer) legacy(dst, src []byte) {
	copy(dst[:xMXCSR], src)
	copy(dst[xST:xXMM], src[xST:])
	dst[xFTW+1] = 0
	if !c.in.w {
		le.PutUint32(dst[xFIP+4:], 0)
		le.PutUint32(dst[xFDP+4:], 0)
	}
	for i := xST + 10; i < xXMM; i += 16 {
		clear(dst[i : i+6])
	}
}

// layout is where an image has its components.
type layout [32]int

// save copies components of the guest's state to the image b, load the other way.
func (c *Completer) save(b []byte, components uint64, at *layout) {
	if components&xX87 != 0 {
		c.legacy(b, c.cpu.XSAVE)
	}
	for i := 1; i < 32; i++ {
		if components>>i&1 != 0 {
			copy(b[at[i]:], c.part(i))
		}
	}
}

func (c *Completer) load(b []byte, components uint64, at *layout) {
	if components&xX87 != 0 {
		c.legacy(c.cpu.XSAVE, b)
		c.x87Summary()
	}
	for i := 1; i < 32; i++ {
		if components>>i&1 != 0 {
			copy(c.part(i), b[at[i]:])
		}
	}
	c.cpu.FPUChanged = true
}

// part returns component i >= 1 of the guest's state as far as it exists in this
// mode: 32-bit code has eight of the XMM and YMM registers.
func (c *Completer) part(i int) []byte {
	from, end := c.component(i)
	if i <= 2 && c.in.mode != 64 {
		end = from + 128
	}
	return c.cpu.XSAVE[from:end]
}

// fxComponents is what fxsave and fxrstor move: EFER.FFXSR has them leave XMM alone.
func (c *Completer) fxComponents() uint64 {
	if c.in.mode == 64 && c.cpu.CPL == 0 && c.cpu.EFER&eferFFXSR != 0 {
		return xX87
	}
	return xX87 | xSSE
}

// fxsave (SDM vol. 2, FXSAVE). Bytes 416 to 511 are left alone.
func (c *Completer) fxsave() bool {
	if !c.fpuReady() || !c.area(512, 16, accWrite) || !c.settle(xX87|xSSE) {
		return false
	}
	b := c.buf[:512]
	c.read(0, b)
	c.save(b, c.fxComponents(), &layout{1: xXMM})
	c.putMXCSR(b)
	c.write(0, b)
	return true
}

func (c *Completer) fxrstor() bool {
	if !c.fpuReady() || !c.area(512, 16, accRead) {
		return false
	}
	b := c.buf[:512]
	c.read(0, b)
	mxcsr := le.Uint32(b[xMXCSR:])
	if mxcsr&^c.mxcsrMask != 0 {
		return c.raiseErr(vecGP, 0)
	}
	if !c.settle(xX87 | xSSE) {
		return false
	}
	c.load(b, c.fxComponents(), &layout{1: xXMM})
	c.setMXCSR(mxcsr)
	return true
}

func (c *Completer) putMXCSR(image []byte) {
	le.PutUint32(image[xMXCSR:], c.mxcsr())
	le.PutUint32(image[xMXCSRMask:], c.mxcsrMask)
}

func (c *Completer) mxcsr() uint32 { return le.Uint32(c.cpu.XSAVE[xMXCSR:]) }

func (c *Completer) setMXCSR(v uint32) {
	le.PutUint32(c.cpu.XSAVE[xMXCSR:], v)
	c.cpu.FPUChanged = true
}

// ldmxcsr and stmxcsr.
func (c *Completer) controlWord(load bool) bool {
	if c.in.vex && (c.in.ll != 0 || c.in.vvvv != 0) {
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
		c.write(0, b)
		return true
	}
	c.read(0, b)
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

// place finds the components of an image and its length: standard, or
// compacted when compBV names the components it holds (SDM vol. 1, 13.4.3).
func (c *Completer) place(components, compBV uint64, at *layout) (int, bool) {
	held, end := components|compBV, xHeaderEnd
	at[1] = xXMM
	for i := 2; i < 32; i++ {
		if held>>i&1 == 0 {
			continue
		}
		if c.guest.xSize[i] == 0 {
			return 0, c.deny("an XSAVE component the host does not know")
		}
		at[i] = int(c.guest.xOff[i])
		if compBV != 0 {
			at[i] = end
			if c.guest.xAlign>>i&1 != 0 {
				at[i] = (end + 63) &^ 63
			}
		}
		end = max(end, at[i]+int(c.guest.xSize[i]))
	}
	if components>>32 != 0 || end > maxOperand {
		return 0, c.deny("an XSAVE image larger than completion knows")
	}
	return end, true
}

// compacted marks XCOMP_BV of the compacted format.
const compacted = 1 << 63

// xsave does xsave, xsaveopt and xsavec (SDM vol. 1, 13.7, 13.9 and 13.10).
func (c *Completer) xsave(opt, compact bool) bool {
	want, ok := c.xsaveReady()
	if !ok {
		return false
	}
	x := c.cpu.XSAVE
	inUse := le.Uint64(x[xBV:])
	if c.mxcsr() != mxcsrInit && compact {
		inUse |= xSSE
	}
	compBV := uint64(0)
	if compact {
		compBV = want
	}
	var at layout
	n, ok := c.place(want, compBV, &at)
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
	b := c.buf[:n]
	c.read(0, b)
	c.save(b, put, &at)
	if compact && put&xSSE != 0 || !compact && want&(xSSE|xAVX) != 0 {
		c.putMXCSR(b)
	}
	bv := le.Uint64(b[xBV:])&^want | inUse&want
	if compact {
		bv = inUse & want
		le.PutUint64(b[xCompBV:], compBV|compacted)
	}
	le.PutUint64(b[xBV:], bv)
	c.write(0, b)
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
	c.read(0, b[:xHeaderEnd])
	bv, compBV := le.Uint64(b[xBV:]), le.Uint64(b[xCompBV:])
	compact := compBV&compacted != 0
	compBV &^= compacted
	bad := bv&^c.cpu.XCR0 != 0
	if compact {
		bad = bad || !c.has(fXSAVEC) || compBV&^c.cpu.XCR0 != 0 || bv&^compBV != 0
		for _, v := range b[xCompBV+8 : xHeaderEnd] {
			bad = bad || v != 0
		}
	} else {
		bad = bad || compBV != 0 || le.Uint64(b[xCompBV+8:]) != 0
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
	var at layout
	n, ok := c.place(want&bv, compBV, &at)
	if !ok || !c.area(n, 64, accRead) || !c.settle(want) {
		return false
	}
	c.read(xHeaderEnd, b[xHeaderEnd:n])
	c.load(b, want&bv, &at)
	// What the image leaves out goes to its initial state.
	x := c.cpu.XSAVE
	le.PutUint64(x[xBV:], le.Uint64(x[xBV:])&^(want&^bv))
	if loadMXCSR {
		c.setMXCSR(mxcsr)
	}
	return c.settle(want &^ bv & (xX87 | xSSE))
}

package complete

// group15 is 0F AE.
func (c *Completer) group15() bool {
	in := &c.in
	g := in.reg & 7
	if in.vex {
		if !in.mem || in.pp != 0 || g != 2 && g != 3 {
			return c.deny("VEX 0f ae form not on the list")
		}
		return c.controlWord(g == 2)
	}
	switch {
	case !in.mem && in.pp == 0 && g >= 5: // lfence, mfence, sfence: the way here has ordered everything
		return true
	case !in.mem && in.pp == 2 && g < 4:
		return c.segmentBase(g)
	case in.mem && in.pp == 0:
		switch g {
		case 0:
			return c.fxsave()
		case 1:
			return c.fxrstor()
		case 2, 3:
			return c.controlWord(g == 2)
		case 4:
			return c.xsave(false, false)
		case 5:
			return c.xrstor()
		case 6:
			if !c.has(fXSAVEOPT) {
				return c.raise(vecUD)
			}
			return c.xsave(true, false)
		default:
			return c.area(1, 1, accRead) // clflush
		}
	case in.mem && in.pp == 1 && g >= 6: // clwb, clflushopt
		return c.area(1, 1, accRead)
	}
	return c.deny("0f ae form not on the list")
}

// group9 is 0F C7.
func (c *Completer) group9() bool {
	in := &c.in
	g := in.reg & 7
	switch {
	case in.mem && g == 1:
		return c.compareExchange()
	case in.lock:
		return c.raise(vecUD)
	case in.mem && g == 4 && in.pp == 0:
		if !c.has(fXSAVEC) {
			return c.raise(vecUD)
		}
		return c.xsave(false, true)
	case !in.mem && g >= 6 && in.pp < 2:
		feature := uint(fRDRAND)
		if g == 7 {
			feature = fRDSEED
		}
		if !c.has(feature) {
			return c.raise(vecUD)
		}
		in.form = rmG | opSize | legacyAny
		return c.runHost()
	}
	return c.deny("0f c7 form not on the list")
}

// group1 is 0F 01, of which only xgetbv is not privileged and not the
// emulator's (SDM vol. 2, XGETBV).
func (c *Completer) group1() bool {
	in, cpu := &c.in, c.cpu
	if in.mem || in.mod<<6|in.reg&7<<3|in.rm&7 != 0xD0 || in.pp != 0 {
		return c.deny("0f 01 form not on the list")
	}
	if cpu.CR4&cr4OSXSAVE == 0 {
		return c.raise(vecUD)
	}
	v := cpu.XCR0
	switch ecx := uint32(cpu.GPR[RCX]); {
	case ecx == 1 && c.has(fXGETBV1):
		v &= le.Uint64(cpu.XSAVE[xBV:])
		if cpu.XCR0&xSSE != 0 && c.mxcsr() != mxcsrInit {
			v |= xSSE
		}
	case ecx != 0:
		return c.raiseErr(vecGP, 0)
	}
	cpu.GPR[RAX], cpu.GPR[RDX] = v&0xffffffff, v>>32
	return true
}

// segmentBase does rdfsbase, rdgsbase, wrfsbase and wrgsbase.
func (c *Completer) segmentBase(g uint8) bool {
	in, cpu := &c.in, c.cpu
	if in.mode != 64 || cpu.CR4&cr4FSGSBASE == 0 || !c.has(fFSGSBASE) {
		return c.raise(vecUD)
	}
	base := &cpu.Seg[FS+g&1].Base
	width := ^uint64(0)
	if !in.w {
		width = 0xffffffff
	}
	if g < 2 {
		cpu.GPR[in.rm] = *base & width
		return true
	}
	v := cpu.GPR[in.rm] & width
	if !c.canonical(v) {
		return c.raiseErr(vecGP, 0)
	}
	*base, cpu.SegChanged = v, true
	return true
}

// compareExchange does cmpxchg8b and cmpxchg16b. On RAM it is one atomic
// instruction whether locked or not; only an operand across cache lines, which
// only cmpxchg8b may have, and one that the bus has are not.
func (c *Completer) compareExchange() bool {
	in, cpu := &c.in, c.cpu
	n, align := 8, uint64(1)
	width := uint64(0xffffffff)
	if in.w {
		if !c.has(fCX16) {
			return c.raise(vecUD)
		}
		n, align, width = 16, 16, ^uint64(0)
	}
	if !c.area(n, align, accWrite) {
		return false
	}
	g := &cpu.GPR
	want := [2]uint64{g[RAX] & width, g[RDX] & width}
	next := [2]uint64{g[RBX] & width, g[RCX] & width}
	got := want
	ram := c.op.pieces[0].ram
	switch {
	case n == 16 && ram != nil:
		got[0], got[1] = swap16(ram, want, next)
	case n == 8 && ram != nil && c.op.count == 1 && c.op.lin%64 <= 56:
		old := swap8(ram, want[1]<<32|want[0], next[1]<<32|next[0])
		got = [2]uint64{old & width, old >> 32}
	default:
		b := c.buf[:n]
		c.read(0, b)
		lo, hi := b[:n/2], b[n/2:]
		got = [2]uint64{number(lo), number(hi)}
		if got == want {
			putNumber(lo, next[0])
			putNumber(hi, next[1])
			c.write(0, b)
		}
	}
	if got == want {
		cpu.RFLAGS |= flagZF
		return true
	}
	cpu.RFLAGS &^= flagZF
	g[RAX], g[RDX] = got[0], got[1]
	return true
}

// number and putNumber are for 4 and 8 bytes, little-endian.
func number(b []byte) uint64 {
	if len(b) == 4 {
		return uint64(le.Uint32(b))
	}
	return le.Uint64(b)
}

func putNumber(b []byte, v uint64) {
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}

// gather does the AVX2 gathers: element by element from the lowest, clearing
// the mask as it goes, so that a fault leaves what was done (SDM vol. 2, VPGATHERDD).
func (c *Completer) gather() bool {
	in := &c.in
	if in.reg == in.vvvv || in.reg == in.idx || in.vvvv == in.idx {
		return c.raise(vecUD)
	}
	var dst, mask, index [32]byte
	if !c.vector(in.reg, &dst) || !c.vector(in.vvvv, &mask) || !c.vector(in.idx, &index) {
		return false
	}
	size, isize := 4, 4
	if in.w {
		size = 8
	}
	if in.op&1 != 0 {
		isize = 8
	}
	n := 16 << in.ll / max(size, isize)
	ok := true
	for i := range n {
		m, d := mask[i*size:(i+1)*size], dst[i*size:(i+1)*size]
		if m[size-1]&0x80 != 0 {
			shift := 64 - 8*isize
			ix := int64(number(index[i*isize:][:isize])) << shift >> shift
			var lin uint64
			lin, ok = c.linear(in.sseg, c.wrap(in.off+uint64(ix)<<in.scl), size, false)
			if ok = ok && c.prepare(lin, size, accRead); !ok {
				break
			}
			c.read(0, c.buf[:size])
			copy(d, c.buf[:size])
		}
		clear(m)
	}
	if c.why != "" {
		return false
	}
	if ok {
		clear(mask[:])
		clear(dst[n*size:])
	}
	return c.setVector(in.reg, &dst) && c.setVector(in.vvvv, &mask) && ok
}

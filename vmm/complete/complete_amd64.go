package complete

import (
	"fmt"

	"golang.org/x/arch/x86/x86asm"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Bus answers accesses to guest physical addresses that are not RAM: data is
// 1, 2, 4 or 8 bytes, naturally aligned. devices.Bus is one. The results are
// not looked at: Read leaves 0xff in data nobody serves.
type Bus interface {
	Read(addr uint64, data []byte) bool
	Write(addr uint64, data []byte) bool
}

// Completer completes instructions of one vCPU. It must be used by one
// goroutine at a time, locked to its thread while in [Completer.Complete].
type Completer struct {
	mem       *memory.Guest
	bus       Bus
	guest     features // what the guest may use, never more than the host has
	hostXCR0  uint64
	mxcsrMask uint32
	compacts  bool // the host has XSAVEC, so its kernel saves in the compacted format
	cpu       *CPU
	in        inst
	op        operand
	fault     Fault
	why       string
	onBus     bool // an operand was not RAM
	list      *opcodes
	exec      execArea
	buf       [maxOperand]byte // memory image being built or read
}

// New maps the completer's scratch and code pages. The guest sees the host's CPUID.
func New(mem *memory.Guest, bus Bus) (*Completer, error) {
	if hostCPUID(1, 0)[2]>>27&1 == 0 {
		return nil, fmt.Errorf("instruction completion: the host does not use XSAVE")
	}
	c := &Completer{mem: mem, bus: bus, guest: readFeatures(), hostXCR0: xgetbv()}
	if off, size := c.guest.xOff, c.guest.xSize; max(off[2]+size[2], off[5]+size[5], off[6]+size[6], off[7]+size[7]) > stateSize {
		return nil, fmt.Errorf("instruction completion: the host's XSAVE area is larger than %d bytes", stateSize)
	}
	c.compacts = c.has(fXSAVEC)
	if c.hostXCR0&xAVX == 0 {
		c.guest.has &^= 1<<fAVX | 1<<fAVX2 | 1<<fFMA | 1<<fF16C
	}
	var err error
	if c.list, err = opcodeList(); err != nil {
		return nil, fmt.Errorf("instruction completion: %w", err)
	}
	if err = c.exec.open(); err != nil {
		return nil, fmt.Errorf("instruction completion: map its pages: %w", err)
	}
	c.mxcsrMask = c.exec.mxcsrMask()
	return c, nil
}

// Close unmaps the completer's pages.
func (c *Completer) Close() error { return c.exec.close() }

// maxAhead bounds the instructions of one Complete, so that interrupts and a
// stop of the VM wait no longer than some 20 us.
const maxAhead = 64

// Complete completes the instruction at cpu.RIP, and those behind it as long as
// they are on the list too, and tells in res how that ended. A KVM that refuses
// one SSE instruction refuses the next, and the way through KVM_RUN and the
// state's ioctls costs as much as dozens of completions; after an access to the
// bus, which any KVM refuses, it stops.
//
// On Done and Faulted the caller writes the state back and, because KVM has
// queued #UD for the instruction it refused, replaces the pending exception of
// KVM_GET_VCPU_EVENTS by the fault, or by none. It allocates nothing unless the
// first instruction is not on the list.
func (c *Completer) Complete(cpu *CPU, res *Result) {
	*res = Result{}
	c.cpu, c.onBus = cpu, false
	defer func() { c.cpu = nil }()
	for {
		listed := c.complete(res)
		if !listed && res.Count > 0 { // KVM's turn
			res.Outcome, res.Fault, res.Reason = Done, Fault{}, ""
			return
		}
		if res.Outcome == NotOnList {
			res.Asm = disassemble(c.in.raw[:c.in.have], int(c.in.mode))
		}
		if res.Outcome != Done || c.onBus || res.Count >= maxAhead {
			return
		}
	}
}

// complete does one instruction. It reports whether there was one that is on
// the list.
func (c *Completer) complete(res *Result) (listed bool) {
	cpu, in := c.cpu, &c.in
	c.fault, c.why = Fault{}, ""
	ok := false
	if len(cpu.XSAVE) < xHeaderEnd {
		c.why = "the XSAVE image is too short"
	} else {
		if c.compacts && le.Uint64(cpu.XSAVE[xBV:])&xSSE == 0 {
			// The kernel has saved with XSAVES, which does not store an MXCSR in
			// its initial state: KVM_GET_XSAVE returns an older one.
			le.PutUint32(cpu.XSAVE[xMXCSR:], mxcsrInit)
		}
		listed = c.decode()
		ok = listed && c.step()
	}
	res.Bytes, res.Len = in.raw, in.have
	switch {
	case c.why != "":
		res.Outcome, res.Reason = NotOnList, c.why
		return false
	case !ok:
		res.Outcome, res.Fault = Faulted, c.fault
		return listed
	}
	res.Count++
	res.Len = in.n
	cpu.RIP += uint64(in.n)
	if in.mode != 64 {
		cpu.RIP &= 0xffffffff
	}
	cpu.RFLAGS &^= flagRF
	if cpu.RFLAGS&flagTF != 0 { // single step: a trap behind the instruction
		res.Outcome, res.Fault = Faulted, Fault{Vector: vecDB}
	}
	return true
}

func disassemble(b []byte, mode int) string {
	i, err := x86asm.Decode(b, mode)
	if err != nil {
		return "not disassembled: " + err.Error()
	}
	return x86asm.IntelSyntax(i, 0, nil)
}

// raise notes an exception and returns false for the caller to return.
func (c *Completer) raise(vector uint8) bool {
	c.fault = Fault{Vector: vector}
	return false
}

func (c *Completer) raiseErr(vector uint8, code uint32) bool {
	c.fault = Fault{Vector: vector, HasError: true, ErrorCode: code}
	return false
}

// deny notes why the instruction is not on the list.
func (c *Completer) deny(why string) bool {
	c.why = why
	return false
}

func (c *Completer) has(feature uint) bool { return c.guest.has>>feature&1 != 0 }

// step checks the decoded instruction as the processor does before it executes
// it, #UD before #NM before the rest (SDM vol. 3, 6.9), and executes it.
func (c *Completer) step() bool {
	in := &c.in
	f := in.form
	h := f.hand()
	if in.lock && h != hGroup9 {
		return c.raise(vecUD)
	}
	if e := f.ext(); e != 0 && e>>(in.reg&7)&1 == 0 {
		return c.raise(vecUD)
	}
	if in.vex {
		if in.misfits() || in.k512 && in.misfits512() || !c.has(f.vex()) || in.ll == 1 && !c.has(f.vex256()) {
			return c.raise(vecUD)
		}
		// The register forms of the first broadcasts came with AVX2.
		if in.mapNo == 2 && in.op&0xFE == 0x18 && !in.mem && !c.has(fAVX2) {
			return c.raise(vecUD)
		}
	} else if !c.has(f.legacy()) {
		if f&opSize != 0 && f.legacy() != fMOVBE {
			return c.deny("the guest's processor lacks it and executes another instruction") // bsr for lzcnt
		}
		return c.raise(vecUD)
	}
	if h == hNone || h == hMask || h == hGather {
		if in.mem && f&mMask == 0 || !in.mem && f.rm() == 0 {
			return c.raise(vecUD)
		}
		if in.mapNo == 1 && in.op == 0x2A && in.pp == 1 && in.mem {
			// cvtpi2pd from memory leaves the x87 state alone (SDM vol. 2).
			f = f&^rmM | rmV
			in.form = f
		}
		if !c.unitsReady(f.usesV() || in.k512, f.usesM()) {
			return false
		}
		if in.mode != 64 { // eight registers
			in.reg &= 7
			in.rm &= 7
		}
	}
	switch h {
	case hNone:
		return c.runForm()
	case hHint:
		if in.op == 0x1E && in.pp == 2 && c.cpu.CR4&cr4CET != 0 {
			return c.deny("rdssp or endbr with CET enabled")
		}
		return true
	case hUD:
		return c.raise(vecUD)
	case hMask: // the memory operand goes without saying, at rDI
		in.sseg, in.off = DS, c.wrap(c.cpu.GPR[RDI])
		if in.seg >= 0 {
			in.sseg = uint8(in.seg)
		}
		if f.usesM() {
			return c.runMasked(8, accWrite)
		}
		return c.runMasked(16, accWrite)
	case hGather:
		return c.gather()
	case hX87:
		return c.x87()
	case hX87Wait:
		if c.cpu.CR0&(cr0MP|cr0TS) == cr0MP|cr0TS {
			return c.raise(vecNM)
		}
		return c.x87Clear()
	case hGroup15:
		return c.group15()
	case hGroup9:
		return c.group9()
	case hGroup1:
		return c.group1()
	case hVZero:
		return c.unitsReady(in.vex, !in.vex) && c.runHost()
	}
	return c.deny("no handler")
}

// misfits reports whether VEX.L, W or vvvv are not as the row wants them.
func (in *inst) misfits() bool {
	f := in.form
	used := f&vvMask != 0 && (f&vvReg == 0 || !in.mem)
	return in.ll != 0 && f&l0 != 0 || in.ll == 0 && f&l1 != 0 || in.ll != 2 && f&l2 != 0 ||
		in.w && f&w0 != 0 || !in.w && f&w1 != 0 || !used && in.vvvv != 0
}

// unitsReady checks that the guest may use xmm and mmx registers now (SDM
// vol. 3, 2.5, 13.1 and 12.1; AVX: vol. 2, 2.4).
func (c *Completer) unitsReady(v, m bool) bool {
	cpu, state := c.cpu, uint64(xSSE|xAVX)
	if c.in.k512 {
		state |= x512
	}
	switch {
	case v && c.in.vex && (cpu.CR4&cr4OSXSAVE == 0 || cpu.XCR0&state != state):
		return c.raise(vecUD)
	case v && !c.in.vex && (cpu.CR4&cr4OSFXSR == 0 || cpu.CR0&cr0EM != 0), m && cpu.CR0&cr0EM != 0:
		return c.raise(vecUD)
	case (v || m) && cpu.CR0&cr0TS != 0:
		return c.raise(vecNM)
	}
	return !m || c.x87Clear()
}

// size returns the bytes of the memory operand.
func (in *inst) size() int {
	if in.bcast {
		return in.element()
	}
	vl, word, dup, env := 16<<in.ll, 4, 8, 28
	if in.w {
		word = 8
	}
	if vl == 32 {
		dup = 32
	}
	if in.opBytes == 2 {
		env = 14
	}
	if in.op == 0xDD {
		env += 80
	}
	return [...]int{
		m1 >> mShift: 1, m2 >> mShift: 2, m4 >> mShift: 4, m8 >> mShift: 8, m10 >> mShift: 10, m16 >> mShift: 16,
		mVL >> mShift: vl, mVL2 >> mShift: vl / 2, mVL4 >> mShift: vl / 4, mVL8 >> mShift: vl / 8, mDup >> mShift: dup,
		mOp >> mShift: int(in.opBytes), mW >> mShift: word, mEnv >> mShift: env, mK >> mShift: [...]int{2, 8, 1, 4}[in.pp<<1&2|in.wBit()>>7],
	}[in.form&mMask>>mShift]
}

// access is how the memory operand is accessed.
func (in *inst) access() access {
	if in.form&store != 0 {
		return accWrite
	}
	return accRead
}

// runForm executes a row of the table on the host.
func (c *Completer) runForm() bool {
	in := &c.in
	f := in.form
	if !in.mem {
		if f.rm() == 1 && f&mMask == m1 && f.reg() == 1 {
			return c.runByteSource()
		}
		return c.runHost()
	}
	n := in.size()
	acc := in.access()
	if f&(maskVV|maskVS) != 0 || in.aaa != 0 {
		return c.runMasked(n, acc)
	}
	lin, ok := c.linear(in.sseg, in.off, n, acc == accWrite)
	if !ok {
		return false
	}
	if (f&alV != 0 || f&al != 0 && !in.vex) && n >= 16 && lin%uint64(n) != 0 {
		return c.raiseErr(vecGP, 0)
	}
	if !c.prepare(lin, n, acc) {
		return false
	}
	data := c.exec.operand(n)
	if acc == accRead {
		c.read(0, data)
	}
	if !c.runHost() {
		return false
	}
	if acc == accWrite {
		c.write(0, data)
	}
	return true
}

// runByteSource executes crc32 with a byte register, which may be ah to bh and
// so cannot be renamed: the byte goes through the scratch area.
func (c *Completer) runByteSource() bool {
	in := &c.in
	v := c.cpu.GPR[in.rm]
	if in.rm >= 4 && !in.rex {
		v = c.cpu.GPR[in.rm-4] >> 8
	}
	data := c.exec.operand(1)
	data[0] = byte(v)
	in.mem = true
	return c.runHost()
}

// runMasked executes a vector load or store that touches only the elements
// whose mask element has its sign set, in vvvv or for maskmovq and maskmovdqu
// in ModRM.rm, or for EVEX those with a bit in the mask register; a page
// without such an element is not accessed at all (SDM vol. 2, VMASKMOV).
func (c *Completer) runMasked(n int, acc access) bool {
	in := &c.in
	size := 4
	var mask [32]byte
	var bits uint64
	ok := true
	switch {
	case in.k512 && (in.form&whole != 0 || in.form&mMask != mVL):
		return c.deny("EVEX with a masked memory operand of this shape")
	case in.k512:
		if ok = c.settle(c.vectorState()); !ok {
			break
		}
		size = in.element()
		k, _ := c.component(5)
		bits = le.Uint64(c.cpu.XSAVE[k+8*int(in.aaa):])
		if in.bcast && bits<<(64-(16<<in.ll)/size) != 0 {
			bits = 1 // any element reads the one
		}
	case in.form.usesM(): // x87Clear has settled the registers
		size = 1
		top := le.Uint16(c.cpu.XSAVE[xFSW:]) >> 11 & 7
		copy(mask[:8], c.cpu.XSAVE[xST+16*((uint16(in.rm)-top)&7):])
	case in.form.hand() == hMask:
		size = 1
		ok = c.settle(xSSE)
		copy(mask[:16], c.cpu.XSAVE[xXMM+16*int(in.rm):])
	default:
		if in.form&maskVV != 0 && in.w || in.form&maskVS != 0 && in.op&1 != 0 {
			size = 8
		}
		ok = c.vector(in.vvvv, &mask)
	}
	if !ok {
		return false
	}
	active := func(i int) bool {
		if in.k512 {
			return bits>>(i/size)&1 != 0
		}
		return mask[i+size-1]&0x80 != 0
	}
	lo, hi := n, 0
	for i := 0; i < n; i += size {
		if active(i) {
			lo, hi = min(lo, i), i+size
		}
	}
	data := c.exec.operand(n)
	if lo < hi {
		if in.k512 && in.form&alV != 0 {
			if lin, ok := c.linear(in.sseg, in.off, n, acc == accWrite); !ok || lin%uint64(n) != 0 {
				return c.raiseErr(vecGP, 0)
			}
		}
		off := in.off + uint64(lo)
		lin, ok := c.linear(in.sseg, c.wrap(off), hi-lo, acc == accWrite)
		if !ok || !c.prepare(lin, hi-lo, acc) {
			return false
		}
	}
	for i := lo; acc == accRead && i < hi; i += size {
		if active(i) {
			c.read(i-lo, data[i:i+size])
		}
	}
	if !c.runHost() {
		return false
	}
	for i := lo; acc == accWrite && i < hi; i += size {
		if active(i) {
			c.write(i-lo, data[i:i+size])
		}
	}
	return true
}

// wrap cuts an offset to the address size.
func (c *Completer) wrap(off uint64) uint64 {
	switch c.in.adBytes {
	case 2:
		return uint64(uint16(off))
	case 4:
		return uint64(uint32(off))
	}
	return off
}

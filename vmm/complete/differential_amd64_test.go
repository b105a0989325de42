package complete

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// sample is one instruction with what its input has to look like.
type sample struct {
	name string
	code []byte
	fix  func(r *rand.Rand, cpu *CPU, data []byte) // after the random fill
}

const dataLen = 4 * page

// assembler builds an instruction at random from a row of the table.
type assembler struct {
	r              *rand.Rand
	row            form
	mapNo, pp, op  uint8
	vex, l, w, mem bool
	fixed          []byte // instead of mapNo and op
	ext            int    // ModRM.reg, or -1
	vsib           bool
	m32            bool // for 32-bit code
	evex, z, bcast bool
	k              bool // on mask registers
	ll, aaa        uint8
}

var specialFloats = []uint64{
	0, 1 << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
	0x7ff8000000000000, 0x7ff0000000000001, 1, 0x000fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
	0x3f8000003f800000, 0x7f800000ff800000, 0x7fc000007f800001, 0x0000000100000000, 0x007fffff00800000,
	0x7f7fffff80000000, 0x4000000040400000, 0x3e8000003f000000, 0x41e0000000000000, 0xc1e0000000000000,
	0x4f000000cf000000, 0x3fe0000000000000, 0x4008000000000000, 0x7c00fc0003ff0001,
}

func randomWord(r *rand.Rand) uint64 {
	switch r.IntN(5) {
	case 0:
		return specialFloats[r.IntN(len(specialFloats))]
	case 1:
		return math.Float64bits(r.NormFloat64() * math.Pow(2, float64(r.IntN(80)-40)))
	case 2:
		a := uint64(math.Float32bits(float32(r.NormFloat64())))
		return a | uint64(math.Float32bits(float32(r.NormFloat64()*1000)))<<32
	case 3:
		return uint64(r.IntN(512)) - 256
	}
	return r.Uint64()
}

func randomFill(r *rand.Rand, b []byte) {
	for i := 0; i+8 <= len(b); i += 8 {
		le.PutUint64(b[i:], randomWord(r))
	}
}

// build returns the instruction and where its operand is expected to be.
func (a *assembler) build(cpu *CPU) []byte {
	r := a.r
	var out []byte
	reg, rm, vvvv := uint8(r.IntN(16)), uint8(r.IntN(16)), uint8(0)
	if a.evex {
		if a.row.reg() == 2 {
			reg |= uint8(r.IntN(2)) << 4
		}
		if !a.mem && a.row.rm() == 2 {
			rm |= uint8(r.IntN(2)) << 4
		}
	}
	if a.row.reg() == 3 && (a.evex || a.k) {
		reg &= 7
	}
	if !a.mem && a.row.rm() == 3 && (a.evex || a.k) {
		rm &= 7
	}
	if a.m32 {
		reg, rm = reg&7, rm&7
	}
	if a.ext >= 0 {
		reg = uint8(a.ext)
	}
	if a.row&vvMask != 0 && (a.row&vvReg == 0 || !a.mem) {
		vvvv = uint8(r.IntN(16))
		if a.evex && a.row&vvMask == vvV {
			vvvv |= uint8(r.IntN(2)) << 4
		}
		if a.m32 || a.k {
			vvvv &= 7
		}
	}
	seg := a.mem && r.IntN(6) == 0
	if seg {
		out = append(out, 0x65)
	}
	ad32 := a.mem && !a.vsib && !a.m32 && r.IntN(8) == 0
	if ad32 {
		out = append(out, 0x67)
	}
	// The operand: mostly aligned, sometimes not, sometimes across a page.
	target := uint64(testData + 64*(1+r.IntN(100)))
	switch r.IntN(8) {
	case 0:
		target += uint64(r.IntN(64))
	case 1:
		target = testData + 2*page - uint64(r.IntN(40))
	}
	ripAt := -1
	var modrm []byte
	index := uint8(4)
	if !a.mem {
		modrm = []byte{0xC0 | reg&7<<3 | rm&7}
	} else {
		at := target
		if seg {
			at -= cpu.Seg[GS].Base
		}
		kind := r.IntN(4)
		if a.vsib {
			kind = 3
		}
		switch kind {
		case 0: // RIP-relative; with 67 and a segment it would wrap
			if !ad32 && !seg && !a.m32 {
				ripAt = len(modrm)
				modrm = []byte{reg&7<<3 | 5, 0, 0, 0, 0}
				rm = 0
				break
			}
			fallthrough
		case 1: // absolute
			rm = 4
			modrm = le.AppendUint32([]byte{reg&7<<3 | 4, 0x25}, uint32(at))
		case 2: // base and disp32
			disp := r.Int32()>>8 | 1
			cpu.GPR[rm] = at - uint64(int64(disp))
			if ad32 {
				cpu.GPR[rm] |= 0xabcd << 32
				cpu.GPR[rm] = cpu.GPR[rm]&^0xffffffff | uint64(uint32(at)-uint32(disp))
			}
			modrm = []byte{0x80 | reg&7<<3 | rm&7}
			if rm&7 == 4 {
				modrm = append(modrm, 0x24)
			}
			modrm = le.AppendUint32(modrm, uint32(disp))
		case 3: // base, scaled index and disp8
			for index == 4 || index == rm && !a.vsib || a.vsib && (index == reg || index == vvvv) {
				index = uint8(r.IntN(16))
				if a.m32 {
					index &= 7
				}
			}
			for a.vsib && (vvvv == reg || vvvv == index) {
				vvvv = uint8(r.IntN(16))
				if a.m32 {
					vvvv &= 7
				}
			}
			scale := uint8(r.IntN(4))
			disp := int8(r.IntN(256) - 128)
			rest := at - uint64(int64(disp))
			if a.evex {
				in := inst{form: a.row, k512: true, ll: a.ll, w: a.w, bcast: a.bcast}
				disp /= 32
				rest = at - uint64(int64(disp)*int64(in.size()))
			}
			if !a.vsib {
				cpu.GPR[index] = uint64(r.IntN(1 << 20))
				rest -= cpu.GPR[index] << scale
			}
			if ad32 {
				rest = uint64(uint32(rest)) | 0x77<<32
			}
			cpu.GPR[rm] = rest
			modrm = []byte{0x44 | reg&7<<3, scale<<6 | index&7<<3 | rm&7, byte(disp)}
		}
	}
	// A KVM without virtualization emulates ring 3 when the stack is not canonical.
	cpu.GPR[RSP] &= 1<<46 - 1
	if a.m32 {
		low32(cpu)
	}
	x := uint8(0)
	if index != 4 {
		x = index & 8
	}
	switch {
	case a.evex:
		out = append(out, 0x62, ^(reg&8<<4|x<<3|rm&8<<2|reg&16|rm&16<<2)&0xF0|a.mapNo)
		b1, b2 := ^vvvv&15<<3|4|a.pp, a.ll<<5|^vvvv&16>>1|a.aaa
		if a.w {
			b1 |= 0x80
		}
		if a.z {
			b2 |= 0x80
		}
		if a.bcast {
			b2 |= 0x10
		}
		out = append(out, b1, b2, a.op)
	case a.vex:
		b1 := ^(reg&8<<4|x<<3|rm&8<<2)&0xE0 | a.mapNo
		b2 := ^vvvv&15<<3 | a.pp
		if a.w {
			b2 |= 0x80
		}
		if a.l {
			b2 |= 4
		}
		if a.mapNo == 1 && !a.w && x == 0 && rm&8 == 0 && r.IntN(2) == 0 {
			out = append(out, 0xC5, ^(reg&8<<4)&0x80|b2&0x7f)
		} else {
			out = append(out, 0xC4, b1, b2)
		}
		out = append(out, a.op)
	default:
		if a.row&opSize != 0 && a.pp > 1 && r.IntN(3) == 0 {
			out = append(out, 0x66)
		}
		switch a.pp {
		case 1:
			out = append(out, 0x66)
		case 2:
			out = append(out, 0xF3)
		case 3:
			out = append(out, 0xF2)
		}
		rex := reg&8>>1 | x>>2 | rm&8>>3
		if a.w {
			rex |= 8
		}
		if rex != 0 || r.IntN(8) == 0 && !a.m32 {
			out = append(out, 0x40|rex)
		}
		if a.fixed != nil {
			out = append(out, a.fixed...)
		} else {
			out = append(out, 0x0F)
			switch a.mapNo {
			case 2:
				out = append(out, 0x38)
			case 3:
				out = append(out, 0x3A)
			}
			out = append(out, a.op)
		}
	}
	at := len(out)
	out = append(out, modrm...)
	if a.row&imm != 0 {
		out = append(out, byte(r.Uint32()))
		if a.m32 && a.row&is4 != 0 {
			out[len(out)-1] &= 0x7f // there are eight registers
		}
	}
	if ripAt >= 0 {
		le.PutUint32(out[at+1:], uint32(target-(testCode+uint64(len(out)))))
	}
	return out
}

var hostFeatures = sync.OnceValue(func() features { return readFeatures() })

// randomCPU fills the registers.
func randomCPU(r *rand.Rand) *CPU {
	cpu := testCPU()
	cpu.CPL = 3
	for i := range cpu.GPR {
		cpu.GPR[i] = randomWord(r)
	}
	cpu.GPR[RSP] &= 1<<46 - 1
	cpu.RFLAGS = 2 | r.Uint64()&flagArith
	cpu.Seg[GS].Base = uint64(r.IntN(0x8000))
	cpu.Seg[FS].Base = r.Uint64() >> 20
	x := cpu.XSAVE
	randomFill(r, x[xXMM:xXMMEnd])
	for i := 2; i < 8; i++ {
		if cpu.XCR0>>i&1 != 0 {
			f := hostFeatures()
			randomFill(r, x[f.xOff[i]:f.xOff[i]+f.xSize[i]])
		}
	}
	mxcsr := uint32(mxcsrInit)
	switch r.IntN(4) {
	case 0:
		mxcsr |= r.Uint32() & 0xe07f
	case 1:
		mxcsr = r.Uint32() & 0xffff
	}
	le.PutUint32(x[xMXCSR:], mxcsr)
	for i := range 8 {
		st := x[xST+16*i:]
		le.PutUint64(st, randomWord(r)|1<<63)
		le.PutUint16(st[8:], uint16(0x3fff+r.IntN(40)-20))
		if r.IntN(4) == 0 {
			le.PutUint64(st, r.Uint64())
			le.PutUint16(st[8:], uint16([]uint32{0, 0x7fff, 0xffff, 0x8000, r.Uint32()}[r.IntN(5)]))
		}
		if r.IntN(8) == 0 {
			le.PutUint64(st, 0)
			le.PutUint16(st[8:], 0)
		}
	}
	fcw := uint16(r.Uint32())&0xf00 | fcwInit
	if r.IntN(6) == 0 {
		fcw = uint16(r.Uint32())&0xf3f | 0x40
	}
	fsw := uint16(r.Uint32()) & 0x7f7f
	if fcw&0x3f != 0x3f && r.IntN(4) != 0 {
		fsw &^= 0x7f
	}
	if fsw&^fcw&0x3f != 0 {
		fsw |= 0x8080
	}
	le.PutUint16(x[xFCW:], fcw)
	le.PutUint16(x[xFSW:], fsw)
	x[xFTW] = byte(r.Uint32() | r.Uint32())
	return cpu
}

// low32 makes the state one of 32-bit code.
func low32(cpu *CPU) {
	for i := range cpu.GPR {
		cpu.GPR[i] &= 0xffffffff
		if i >= 8 {
			cpu.GPR[i] = 0 // whether they survive 32-bit code is undefined
		}
	}
	cpu.Seg[CS].L, cpu.Seg[CS].DB = false, true
	cpu.Seg[FS].Base &= 0xffffffff
}

func clone(c *CPU) *CPU {
	d := *c
	d.XSAVE = bytes.Clone(c.XSAVE)
	return &d
}

// differ compares what the processor and completion made of one instruction.
func differ(native, done *CPU, x87Pointers bool) string {
	if native.GPR != done.GPR {
		for i := range native.GPR {
			if native.GPR[i] != done.GPR[i] {
				return fmt.Sprintf("register %d: processor %#x, completion %#x", i, native.GPR[i], done.GPR[i])
			}
		}
	}
	if a, b := native.RFLAGS&^flagRF, done.RFLAGS&^flagRF; a != b {
		return fmt.Sprintf("flags: processor %#x, completion %#x", a, b)
	}
	if native.RIP != done.RIP {
		return fmt.Sprintf("rip: processor %#x, completion %#x", native.RIP, done.RIP)
	}
	if native.Seg[FS].Base != done.Seg[FS].Base || native.Seg[GS].Base != done.Seg[GS].Base {
		return "segment bases"
	}
	f := hostFeatures()
	for _, x := range []*CPU{native, done} {
		bv := le.Uint64(x.XSAVE[xBV:])
		if bv&xX87 == 0 {
			clear(x.XSAVE[:xMXCSR])
			clear(x.XSAVE[xST:xXMM])
			le.PutUint16(x.XSAVE[xFCW:], fcwInit)
		}
		if bv&xSSE == 0 {
			clear(x.XSAVE[xXMM:xXMMEnd])
			if f.has>>fXSAVEC&1 != 0 {
				le.PutUint32(x.XSAVE[xMXCSR:], mxcsrInit)
			}
		}
		for i := 2; i < 8; i++ {
			if x.XCR0>>i&1 != 0 && bv>>i&1 == 0 {
				clear(x.XSAVE[f.xOff[i] : f.xOff[i]+f.xSize[i]])
			}
		}
		if !x87Pointers {
			clear(x.XSAVE[xFOP:xMXCSR])
		}
		for i := range 8 {
			clear(x.XSAVE[xST+16*i+10 : xST+16*i+16])
		}
	}
	for _, p := range []struct {
		name      string
		from, end int
	}{
		{"fcw", xFCW, xFSW}, {"fsw", xFSW, xFTW}, {"ftw", xFTW, xFOP}, {"fop", xFOP, xFIP}, {"fip", xFIP, xFDP}, {"fdp", xFDP, xMXCSR},
		{"mxcsr", xMXCSR, xMXCSRMask}, {"st", xST, xXMM}, {"xmm", xXMM, xXMMEnd},
		{"ymm", int(f.xOff[2]), int(f.xOff[2] + f.xSize[2])},
		{"k", int(f.xOff[5]), int(f.xOff[5] + f.xSize[5])},
		{"zmm", int(f.xOff[6]), int(f.xOff[6] + f.xSize[6])},
		{"zmm16", int(f.xOff[7]), int(f.xOff[7] + f.xSize[7])},
	} {
		a, b := native.XSAVE[p.from:p.end], done.XSAVE[p.from:p.end]
		for i := range a {
			if a[i] != b[i] {
				lo := i &^ 15
				hi := min(lo+16, len(a))
				return fmt.Sprintf("%s+%d: processor % x, completion % x", p.name, lo, a[lo:hi], b[lo:hi])
			}
		}
	}
	return ""
}

// differential holds a guest, a completer over the same memory, and the counts.
type differential struct {
	t     *testing.T
	r     *rand.Rand
	mem   *memory.Guest
	c     *Completer
	guest *ring3
	data  []byte // the guest's operand memory

	ran, faults, failed int
	native32            bool // the guest's 32-bit code runs on the processor
	missing             map[string]bool
}

func newDifferential(t *testing.T) *differential {
	mem := testMemory(t)
	d := &differential{
		t: t, r: rand.New(rand.NewPCG(1, 2)), mem: mem, c: testCompleter(t, mem, &testBus{}),
		guest: newRing3(t, mem), missing: map[string]bool{},
	}
	var err error
	if d.data, err = mem.Slice(testData, dataLen); err != nil {
		t.Fatal(err)
	}
	// A KVM without virtualization emulates 32-bit code: vxorps is #UD there.
	probe, code := testCPU(), []byte{0xC5, 0xF8, 0x57, 0xC0, 0xF4}
	low32(probe)
	if err := mem.Write(testCode, code); err != nil {
		t.Fatal(err)
	}
	d.native32 = d.guest.run(probe, len(code)-1).Outcome == Done
	return d
}

// compare runs one instruction both ways from the same state.
func (d *differential) compare(name string, cpu *CPU, code []byte, fix func(r *rand.Rand, cpu *CPU, data []byte)) {
	t := d.t
	t.Helper()
	start := make([]byte, dataLen)
	randomFill(d.r, start)
	if fix != nil {
		fix(d.r, cpu, start)
	}
	if err := d.mem.Write(testCode, append(bytes.Clone(code), 0xF4)); err != nil {
		t.Fatal(err)
	}
	native, done := clone(cpu), clone(cpu)
	copy(d.data, start)
	var want Result
	if cpu.Seg[CS].L || d.native32 {
		want = d.guest.run(native, len(code))
	} else { // completion of 64-bit code, which is compared with the processor, with 32-bit addresses
		native.Seg[CS].L, native.Seg[CS].DB = true, false
		if err := d.mem.Write(testCode-1, []byte{0x67}); err != nil {
			t.Fatal(err)
		}
		native.RIP--
		if d.c.Complete(native, &want); want.Outcome == Faulted {
			native.RIP++
		}
		want.Bytes, want.Len = [15]byte{}, 0
	}
	wantData := bytes.Clone(d.data)
	copy(d.data, start)
	var got Result
	d.c.Complete(done, &got)
	if want.Fault.Vector == vecUD && got.Fault == (Fault{Vector: vecGP, HasError: true}) {
		// A KVM without virtualization hands #GP to its emulator, which does not
		// know the instruction.
		want = got
	}
	if m := le.Uint32(native.XSAVE[xMXCSR:]); got.Fault.Vector == vecXM && m>>3&^(m>>10)&3 != 0 {
		// The precision flag beside an unmasked overflow or underflow is not exact.
		le.PutUint32(native.XSAVE[xMXCSR:], m|1<<5)
		le.PutUint32(done.XSAVE[xMXCSR:], le.Uint32(done.XSAVE[xMXCSR:])|1<<5)
	}
	d.ran++
	if want.Outcome == Faulted {
		d.faults++
	}
	var problem string
	switch {
	case got.Outcome != want.Outcome || got.Fault != want.Fault:
		problem = fmt.Sprintf("processor: %v at %#x, completion: %v", want.String(), native.RIP, got.String())
	default:
		problem = differ(native, done, false)
		if problem == "" && !bytes.Equal(d.data, wantData) {
			for i := range wantData {
				if d.data[i] != wantData[i] {
					lo := i &^ 15
					problem = fmt.Sprintf("memory at data+%#x: processor % x, completion % x", lo, wantData[lo:lo+32], d.data[lo:lo+32])
					break
				}
			}
		}
	}
	if problem != "" {
		if d.failed++; d.failed > 60 {
			t.Fatal("too many differences")
		}
		t.Errorf("%s (% x, mxcsr %#x fcw %#x fsw %#x): %s", name, code, le.Uint32(cpu.XSAVE[xMXCSR:]),
			le.Uint16(cpu.XSAVE[xFCW:]), le.Uint16(cpu.XSAVE[xFSW:]), problem)
	}
}

// TestDifferentialTable runs every row of the opcode maps in every shape.
func TestDifferentialTable(t *testing.T) {
	t.Run("64", func(t *testing.T) { differentialTable(t, false, 6) })
	t.Run("32", func(t *testing.T) { differentialTable(t, true, 2) })
}

func differentialTable(t *testing.T, m32 bool, rounds int) {
	d := newDifferential(t)
	if testing.Short() {
		rounds = 1
	}
	for m := range uint8(4) {
		tab := &d.c.list.plain[m]
		for pp := range tab {
			for op, row := range tab[pp] {
				h := row.hand()
				if row == 0 || row.vex() == f512 || h != hNone && h != hGather && h != hMask { // mask registers: TestDifferential512
					continue
				}
				a := assembler{r: d.r, row: row, mapNo: m, pp: uint8(pp), op: uint8(op), ext: -1, m32: m32}
				for shape := range 16 {
					a.vex, a.l, a.w, a.mem = shape&1 != 0, shape&2 != 0, shape&4 != 0, shape&8 != 0
					feature := row.legacy()
					if a.vex {
						feature = row.vex()
						if a.l {
							feature = row.vex256()
						}
					}
					if feature == 0 || !d.c.has(feature) || a.l && !a.vex || a.vex && (a.l && row&l0 != 0 || !a.l && row&l1 != 0 || a.w && row&w0 != 0 || !a.w && row&w1 != 0) ||
						m32 && a.w && (!a.vex || row&w64 != 0 && !d.native32) || a.mem && row&mMask == 0 || !a.mem && row.rm() == 0 {
						continue
					}
					a.vsib = h == hGather
					for range rounds {
						if e := row.ext(); e != 0 {
							for a.ext = d.r.IntN(8); e>>a.ext&1 == 0; {
								a.ext = d.r.IntN(8)
							}
						}
						cpu := randomCPU(d.r)
						name := fmt.Sprintf("map %d pp %d op %02x vex %v l %v w %v mem %v", m, pp, op, a.vex, a.l, a.w, a.mem)
						var fix func(r *rand.Rand, cpu *CPU, data []byte)
						if h == hGather {
							for i := range 16 {
								f := hostFeatures()
								for j := range 2 {
									x := cpu.XSAVE[xXMM:]
									if j == 1 {
										x = cpu.XSAVE[f.xOff[2]:]
									}
									wide := op&1 != 0
									for k := 0; k < 16; k += 4 {
										v := uint32(d.r.IntN(64))
										if wide && k&4 != 0 {
											v = 0
										}
										if i%2 == 1 && d.r.IntN(2) == 0 && !wide { // a mask, when it is one
											v = -v
										}
										le.PutUint32(x[16*i+k:], v)
									}
								}
							}
						}
						code := a.build(cpu)
						if h == hMask {
							cpu.GPR[RDI] = testData + uint64(d.r.IntN(2*page))
						}
						d.compare(name, cpu, code, fix)
					}
				}
			}
		}
	}
	t.Logf("%d instructions, %d of them faulted", d.ran, d.faults)
}

// TestDifferential512 runs every EVEX row and the mask register instructions.
func TestDifferential512(t *testing.T) {
	d := newDifferential(t)
	if !d.c.has(f512) {
		t.Skip("no AVX-512")
	}
	rounds := 2
	if testing.Short() {
		rounds = 1
	}
	run := func(a assembler) {
		name := fmt.Sprintf("map %d pp %d op %02x evex %v ll %d w %v mem %v k%d z %v broadcast %v", a.mapNo, a.pp, a.op, a.evex, a.ll, a.w, a.mem, a.aaa, a.z, a.bcast)
		for range rounds {
			if e := a.row.ext(); e != 0 {
				for a.ext = d.r.IntN(8); e>>a.ext&1 == 0; {
					a.ext = d.r.IntN(8)
				}
			}
			cpu := randomCPU(d.r)
			d.compare(name, cpu, a.build(cpu), nil)
		}
	}
	for m := range uint8(4) {
		tab := &d.c.list.evex[m]
		for pp := range tab {
			for op, row := range tab[pp] {
				if row == 0 {
					continue
				}
				for shape := range 3 * 2 * 2 * 2 * 3 {
					a := assembler{r: d.r, row: row, mapNo: m, pp: uint8(pp), op: uint8(op), ext: -1, evex: true}
					a.ll = uint8(shape % 3)
					a.w, a.mem, a.bcast = shape/3&1 != 0, shape/6&1 != 0, shape/12&1 != 0
					if mask := shape / 24; mask > 0 {
						a.aaa, a.z = uint8(1+d.r.IntN(7)), mask == 2
					}
					if a.w && row&w0 != 0 || !a.w && row&w1 != 0 || a.ll != 0 && row&l0 != 0 || a.ll == 0 && row&l1 != 0 || a.ll != 2 && row&l2 != 0 ||
						a.mem && row&mMask == 0 || !a.mem && row.rm() == 0 || a.bcast && (!a.mem || row&bcst == 0) ||
						a.aaa != 0 && (row&elems == 0 || a.mem && (row&whole != 0 || row&mMask != mVL)) || a.z && (row.reg() == 3 || a.mem && row&store != 0) {
						continue
					}
					run(a)
				}
			}
		}
	}
	rounds *= 4
	for _, m := range []uint8{1, 3} {
		for n := range 4 * 2 * 2 * 2 * 256 {
			a := assembler{r: d.r, mapNo: m, pp: uint8(n & 3), op: uint8(n >> 5), ext: -1, vex: true, k: true, w: n&4 != 0, l: n&8 != 0, mem: n&16 != 0}
			a.row = d.c.list.plain[m][a.pp][a.op]
			if row := a.row; row.vex() != f512 || a.w && row&w0 != 0 || a.l && row&l0 != 0 || !a.l && row&l1 != 0 || a.mem && row&mMask == 0 || !a.mem && row.rm() == 0 {
				continue
			}
			run(a)
		}
	}
	t.Logf("%d instructions, %d of them faulted", d.ran, d.faults)
}

// TestDifferentialX87 runs every escape opcode.
func TestDifferentialX87(t *testing.T) {
	d := newDifferential(t)
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	for op := range uint8(8) {
		for ext := range 8 {
			for rm := -1; rm < 8; rm++ {
				in := inst{op: 0xD8 + op, reg: uint8(ext), mem: rm < 0}
				if rm >= 0 {
					in.rm = uint8(rm)
				}
				f := d.c.list.x87[op][in.x87Byte()]
				if f == 0 {
					continue
				}
				n := rounds
				if rm >= 0 {
					n = rounds / 4
				}
				for i := range n {
					cpu := randomCPU(d.r)
					code := []byte{in.op, 0xC0 | byte(ext)<<3 | in.rm}
					if rm < 0 {
						a := assembler{r: d.r, fixed: []byte{in.op}, ext: ext, mem: true, m32: i%4 == 0}
						code = a.build(cpu)
					}
					d.compare(fmt.Sprintf("x87 %02x /%d rm %d", in.op, ext, rm), cpu, code, nil)
				}
			}
		}
	}
	for range rounds {
		d.compare("fwait", randomCPU(d.r), []byte{0x9B}, nil)
	}
	t.Logf("%d instructions, %d of them faulted", d.ran, d.faults)
}

// TestDifferentialByHand runs what is not run on the host.
func TestDifferentialByHand(t *testing.T) {
	d := newDifferential(t)
	align := func(r *rand.Rand, cpu *CPU, n uint64) {
		cpu.GPR[RSI] = testData + uint64(r.IntN(64))*n
	}
	operand := func(cpu *CPU, data []byte) []byte { return data[cpu.GPR[RSI]-testData:] }
	mxcsr := func(r *rand.Rand, p []byte) {
		v := r.Uint32() & 0xffff
		if r.IntN(8) == 0 {
			v = r.Uint32()
		}
		le.PutUint32(p, v)
	}
	image := func(r *rand.Rand, cpu *CPU, data []byte) {
		align(r, cpu, 64)
		p := operand(cpu, data)
		mxcsr(r, p[xMXCSR:])
		le.PutUint16(p[xFCW:], uint16(r.Uint32())&0x1f7f|0x40)
		h := p[xBV:xHeaderEnd]
		clear(h)
		cpu.GPR[RAX], cpu.GPR[RDX] = r.Uint64(), r.Uint64()
		bv := r.Uint64() & cpu.XCR0
		if r.IntN(2) == 0 { // compacted
			comp := r.Uint64() & cpu.XCR0
			le.PutUint64(h[8:], comp|1<<63)
			bv &= comp
		}
		if r.IntN(8) == 0 {
			h[r.IntN(64)] ^= 1 << r.IntN(8)
		}
		le.PutUint64(h, le.Uint64(h)^bv)
	}
	inUse := func(r *rand.Rand, cpu *CPU, data []byte) {
		image(r, cpu, data)
		bv := cpu.XCR0 & (r.Uint64() | 7) // whether AVX counts as in use is the processor's affair
		le.PutUint64(cpu.XSAVE[xBV:], bv)
		f := hostFeatures()
		for i := 2; i < 8; i++ {
			if cpu.XCR0&^bv>>i&1 != 0 {
				clear(cpu.XSAVE[f.xOff[i] : f.xOff[i]+f.xSize[i]])
			}
		}
	}
	exchange := func(n int) func(r *rand.Rand, cpu *CPU, data []byte) {
		return func(r *rand.Rand, cpu *CPU, data []byte) {
			align(r, cpu, uint64(n))
			if r.IntN(6) == 0 {
				cpu.GPR[RSI] += uint64(r.IntN(64))
			}
			if r.IntN(2) == 0 {
				p := operand(cpu, data)
				if n == 16 {
					cpu.GPR[RAX], cpu.GPR[RDX] = le.Uint64(p), le.Uint64(p[8:])
				} else {
					cpu.GPR[RAX] = cpu.GPR[RAX]&^0xffffffff | uint64(le.Uint32(p))
					cpu.GPR[RDX] = cpu.GPR[RDX]&^0xffffffff | uint64(le.Uint32(p[4:]))
				}
			}
		}
	}
	any64 := func(r *rand.Rand, cpu *CPU, data []byte) {
		cpu.GPR[RSI] = testData + uint64(r.IntN(2*page))
		p := operand(cpu, data)
		if cpu.GPR[RBX] = r.Uint64(); r.IntN(4) > 0 {
			cpu.GPR[RBX] >>= 17
		}
		le.PutUint16(p, le.Uint16(p)&0x1f7f|0x40)
	}
	ldmxcsr := func(r *rand.Rand, cpu *CPU, data []byte) {
		any64(r, cpu, data)
		mxcsr(r, operand(cpu, data))
	}
	xcr := func(r *rand.Rand, cpu *CPU, data []byte) {
		inUse(r, cpu, data)
		cpu.GPR[RCX] = uint64(r.IntN(3)) | r.Uint64()<<32
	}
	for _, s := range []sample{
		{"fxsave", []byte("\x0f\xae\x06"), image}, {"fxsave64", []byte("\x48\x0f\xae\x06"), image},
		{"fxrstor", []byte("\x0f\xae\x0e"), image}, {"fxrstor64", []byte("\x48\x0f\xae\x0e"), image},
		{"ldmxcsr", []byte("\x0f\xae\x16"), ldmxcsr}, {"stmxcsr", []byte("\x0f\xae\x1e"), any64},
		{"vldmxcsr", []byte("\xc5\xf8\xae\x16"), ldmxcsr}, {"vstmxcsr", []byte("\xc5\xf8\xae\x1e"), any64},
		{"xsave", []byte("\x0f\xae\x26"), image}, {"xsave64", []byte("\x48\x0f\xae\x26"), image},
		{"xsave64, in use", []byte("\x48\x0f\xae\x26"), inUse},
		{"xsavec", []byte("\x0f\xc7\x26"), inUse}, {"xsavec64", []byte("\x48\x0f\xc7\x26"), inUse},
		{"xrstor", []byte("\x0f\xae\x2e"), image}, {"xrstor64", []byte("\x48\x0f\xae\x2e"), image},
		{"xrstor, any address", []byte("\x0f\xae\x2e"), any64},
		{"cmpxchg8b", []byte("\x0f\xc7\x0e"), exchange(8)}, {"lock cmpxchg8b", []byte("\xf0\x0f\xc7\x0e"), exchange(8)},
		{"cmpxchg16b", []byte("\x48\x0f\xc7\x0e"), exchange(16)}, {"lock cmpxchg16b", []byte("\xf0\x48\x0f\xc7\x0e"), exchange(16)},
		{"fnstenv", []byte("\xd9\x36"), any64}, {"fnstenv16", []byte("\x66\xd9\x36"), any64},
		{"fldenv", []byte("\xd9\x26"), any64}, {"fldenv16", []byte("\x66\xd9\x26"), any64},
		{"fnsave", []byte("\xdd\x36"), any64}, {"fnsave16", []byte("\x66\xdd\x36"), any64},
		{"frstor", []byte("\xdd\x26"), any64}, {"frstor16", []byte("\x66\xdd\x26"), any64},
		{"rdfsbase", []byte("\xf3\x48\x0f\xae\xc3"), any64}, {"rdfsbase32", []byte("\xf3\x0f\xae\xc3"), any64},
		{"rdgsbase", []byte("\xf3\x48\x0f\xae\xcb"), any64},
		{"wrfsbase", []byte("\xf3\x48\x0f\xae\xd3"), any64}, {"wrfsbase32", []byte("\xf3\x0f\xae\xd3"), any64},
		{"wrgsbase", []byte("\xf3\x48\x0f\xae\xdb"), any64},
		{"xgetbv", []byte("\x0f\x01\xd0"), xcr},
		{"lfence", []byte("\x0f\xae\xe8"), nil}, {"mfence", []byte("\x0f\xae\xf0"), nil}, {"sfence", []byte("\x0f\xae\xf8"), nil},
		{"clflush", []byte("\x0f\xae\x3e"), any64}, {"clflushopt", []byte("\x66\x0f\xae\x3e"), any64},
		{"prefetch", []byte("\x0f\x18\x0e"), nil}, {"prefetchw", []byte("\x0f\x0d\x0e"), nil}, {"endbr64", []byte("\xf3\x0f\x1e\xfa"), nil},
		{"emms", []byte("\x0f\x77"), nil}, {"vzeroupper", []byte("\xc5\xf8\x77"), nil}, {"vzeroall", []byte("\xc5\xfc\x77"), nil},
		{"ud2", []byte("\x0f\x0b"), nil}, {"lock addps", []byte("\xf0\x0f\x58\xc0"), nil},
	} {
		n := 60
		if testing.Short() {
			n = 15
		}
		for range n {
			d.compare(s.name, randomCPU(d.r), s.code, s.fix)
			if d.native32 && !bytes.ContainsRune(s.code[:2], 0x48) && s.code[len(s.code)-1]>>6 != 3 {
				cpu := randomCPU(d.r)
				low32(cpu)
				d.compare(s.name+", 32-bit code", cpu, s.code, func(r *rand.Rand, cpu *CPU, data []byte) {
					if s.fix != nil {
						s.fix(r, cpu, data)
					}
					low32(cpu)
				})
			}
		}
	}
	t.Logf("%d instructions, %d of them faulted", d.ran, d.faults)
}

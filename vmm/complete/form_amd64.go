package complete

// form describes one row of the allow-list: what the operands of an opcode are,
// how much memory it touches and what it needs. A zero form is not on the list.
type form uint64

const (
	// The register that ModRM.reg names; none means an opcode extension or nothing.
	regG form = 1 // general
	regV form = 2 // xmm, ymm
	regM form = 3 // mmx
	// The register that ModRM.rm names in the register form; none means memory only.
	rmG form = 1 << 2
	rmV form = 2 << 2
	rmM form = 3 << 2
	// Bytes of the memory operand; none means register only.
	m1    form = 1 << 4
	m2    form = 2 << 4
	m4    form = 3 << 4
	m8    form = 4 << 4
	m16   form = 5 << 4
	mVL   form = 6 << 4  // 16 or 32: the vector length
	mVL2  form = 7 << 4  // half of it
	mVL4  form = 8 << 4  // a quarter
	mVL8  form = 9 << 4  // an eighth
	mOp   form = 10 << 4 // the operand size: 2, 4 or 8
	mDup  form = 11 << 4 // 8 at 128 bits, 32 at 256 (movddup)
	mW    form = 12 << 4 // 8 with W, else 4
	m10   form = 13 << 4
	mEnv  form = 14 << 4 // an x87 environment, with DD and the registers: SDM vol. 1, 8.1.10
	mK    form = 15 << 4 // a mask register's: by prefix and W 2, 8, 1 or 4
	mMask form = 15 << 4

	store form = 1 << 8 // memory is written, not read
	// The register that VEX.vvvv names.
	vvV    form = 1 << 9
	vvG    form = 2 << 9
	vvMask form = 3 << 9
	vvReg  form = 1 << 11 // only in the register form
	imm    form = 1 << 12
	fp     form = 1 << 13 // raises SIMD floating-point exceptions
	al     form = 1 << 14 // the legacy form wants its memory operand aligned
	alV    form = 1 << 15 // the VEX form too

	legShift = 16 // feature of the legacy form, 5 bits; 0: there is none
	vexShift = 21 // feature of the VEX form, 5 bits; 0: there is none
	l1Shift  = 26 // feature of the VEX form at 256 bits, 5 bits; 0: as at 128

	l0     form = 1 << 31 // VEX.L must be 0
	l1     form = 1 << 32 // VEX.L must be 1
	w0     form = 1 << 33 // VEX.W must be 0
	w1     form = 1 << 34 // VEX.W must be 1
	opSize form = 1 << 35 // legacy: 66 and W choose 2, 4 or 8 bytes
	is4    form = 1 << 36 // the immediate names a register
	w64    form = 1 << 37 // W counts only in 64-bit mode (general register operand)
	maskVV form = 1 << 38 // memory elements are chosen by the signs in vvvv; element size by W
	maskVS form = 1 << 39 // as maskVV, element size is 4 or 8 by the opcode's low bit

	// AVX-512 rows; regM and rmM stand for mask registers there, l1 for 256 or 512 bits.
	bcst  form = 1 << 53 // memory may be one element for all
	elem1 form = 1 << 54 // element size for masking; none means it is not masked
	elem2 form = 2 << 54
	elemW form = 3 << 54 // 8 with W, else 4
	elemB form = 4 << 54 // 2 with W, else 1
	elems form = 7 << 54
	l2    form = 1 << 57 // 512 bits only
	whole form = 1 << 58 // a masked memory operand is read whole, or not one-to-one: not on the list

	mShift, elemShift = 4, 54

	extShift = 40 // the allowed values of ModRM.reg as 8 bits; 0: all
	hand     = 48 // who does it, 5 bits; 0: the host processor
)

// Features an instruction may need (the CPUID bits they stand for are in
// features_amd64.go).
const (
	fBase = 1 + iota // everything an x86-64 processor has: x87, MMX, SSE, SSE2
	fSSE3
	fSSSE3
	fSSE41
	fSSE42
	fAES
	fPCLMUL
	fGFNI
	fSHA
	fPOPCNT
	fLZCNT
	fBMI1
	fBMI2
	fMOVBE
	fADX
	fAVX
	fAVX2
	fFMA
	fF16C
	fVAES
	fVPCLMUL
	fCX16
	fRDRAND
	fRDSEED
	fFSGSBASE
	fXSAVE
	fXSAVEOPT
	fXSAVEC
	fXGETBV1
	f512 // AVX512F, BW, DQ and VL together

	featureNames = "Base SSE3 SSSE3 SSE41 SSE42 AES PCLMUL GFNI SHA POPCNT LZCNT BMI1 BMI2 MOVBE ADX AVX AVX2 FMA F16C " +
		"VAES VPCLMUL CX16 RDRAND RDSEED FSGSBASE XSAVE XSAVEOPT XSAVEC XGETBV1 512"
)

// What is done in Go.
const (
	hNone    = iota
	hHint    // prefetch and hint nops: nothing
	hMask    // maskmovq, maskmovdqu
	hGather  // vgather*, vpgather*
	hX87Wait // fwait
	hUD      // ud0, ud1, ud2
	hGroup15 // 0f ae: fxsave, xsave and their kin, mxcsr, fences, segment bases
	hGroup9  // 0f c7: cmpxchg8b and 16b, xsavec, rdrand, rdseed
	hGroup1  // 0f 01: xgetbv
	hVZero   // vzeroupper, vzeroall, emms: on the host, without operands
	hX87     // x87 that runs on the host

	handNames = "Hint Mask Gather X87Wait UD Group15 Group9 Group1 VZero X87"
	handMask  = 31
	legacyAny = fBase << legShift
)

func (f form) reg() form    { return f & 3 }
func (f form) rm() form     { return f >> 2 & 3 }
func (f form) legacy() uint { return uint(f>>legShift) & 31 }
func (f form) vex() uint    { return uint(f>>vexShift) & 31 }
func (f form) vex256() uint {
	if l := uint(f>>l1Shift) & 31; l != 0 {
		return l
	}
	return f.vex()
}
func (f form) ext() uint8 { return uint8(f >> extShift) }
func (f form) hand() int  { return int(f>>hand) & handMask }

// usesV and usesM report whether xmm and mmx registers are touched. regM and
// rmM stand for mask registers in AVX-512 rows.
func (f form) usesV() bool { return f.reg() == 2 || f.rm() == 2 || f&vvMask == vvV }
func (f form) usesM() bool { return (f.reg() == 3 || f.rm() == 3) && f.vex() != f512 }

// anyPrefix reports whether the row without a mandatory prefix stands for the
// prefixed opcodes too: groups look at the prefix themselves.
func (f form) anyPrefix() bool {
	switch f.hand() {
	case hHint, hUD, hGroup15, hGroup9, hGroup1:
		return true
	}
	return false
}

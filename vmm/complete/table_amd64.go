package complete

// table is one opcode map: rows by mandatory prefix (none, 66, F3, F2, numbered
// as in VEX.pp) and opcode (SDM vol. 2, appendix A; vol. 2, 2.3 for VEX).
type table [4][256]form

const (
	sA  = fBase<<legShift | fAVX<<vexShift
	sA2 = sA | fAVX2<<l1Shift
	s3A = fSSE3<<legShift | fAVX<<vexShift
	ss3 = fSSSE3<<legShift | fAVX<<vexShift | fAVX2<<l1Shift
	s41 = fSSE41<<legShift | fAVX<<vexShift
	s42 = fSSE42<<legShift | fAVX<<vexShift
	vA  = fAVX << vexShift
	vA2 = fAVX2 << vexShift
	vF  = fFMA << vexShift
	vB1 = fBMI1<<vexShift | l0
	vB2 = fBMI2<<vexShift | l0
	aes = fAES<<legShift | fAES<<vexShift
	gf  = fGFNI<<legShift | fGFNI<<vexShift
	sha = fSHA<<legShift | regV | rmV | m16 // unaligned works on AMD, which does without the check
	i41 = s41 | fAVX2<<l1Shift

	vv  = regV | rmV           // two vector registers, or one and memory
	vvn = regV | rmV | vvV     // and a third in vvvv
	ps  = vvn | mVL | al | sA  // packed float without exceptions
	pf  = ps | fp              // packed float arithmetic
	pi  = vvn | mVL | al | sA2 // packed integers
	p41 = vvn | mVL | al | i41 // packed integers of SSE4.1
	sf4 = vvn | m4 | fp | sA   // scalar single
	sf8 = vvn | m8 | fp | sA   // scalar double
	un  = vv | mVL | al | sA   // one source
	cvt = un | fp              // one source, with exceptions
	mm  = regM | rmM | m8 | legacyAny
	mms = regM | rmM | m8 | fSSSE3<<legShift
	shi = rmV | vvV | imm | sA2 // shift by immediate
	shm = rmM | imm | legacyAny
	fma = vvn | mVL | fp | vF
	fms = vvn | mW | fp | vF
	gpr = regG | rmG
	kk  = regM | rmM | f512<<vexShift // mask registers
	kvk = kk | vvV | l1
)

// map1 is 0F xx.
var map1 = table{
	0: {
		0x01: hGroup1<<hand | legacyAny,
		0x0B: hUD<<hand | legacyAny, 0xB9: hUD<<hand | legacyAny, 0xFF: hUD<<hand | legacyAny,
		0x0D: hHint<<hand | legacyAny, 0x18: hHint<<hand | legacyAny, 0x19: hHint<<hand | legacyAny,
		0x1A: hHint<<hand | legacyAny, 0x1B: hHint<<hand | legacyAny, 0x1C: hHint<<hand | legacyAny,
		0x1D: hHint<<hand | legacyAny, 0x1E: hHint<<hand | legacyAny, 0x1F: hHint<<hand | legacyAny,
		0xAE: hGroup15<<hand | legacyAny | vA, 0xC7: hGroup9<<hand | legacyAny,

		0x10: vv | mVL | sA, 0x11: vv | mVL | store | sA,
		0x12: vvn | m8 | l0 | sA, 0x13: regV | m8 | store | l0 | sA,
		0x14: ps, 0x15: ps,
		0x16: vvn | m8 | l0 | sA, 0x17: regV | m8 | store | l0 | sA,
		0x28: un | alV, 0x29: un | store | alV,
		0x2A: regV | rmM | m8 | fp | legacyAny, 0x2B: regV | mVL | store | al | alV | sA,
		0x2C: regM | rmV | m8 | fp | legacyAny, 0x2D: regM | rmV | m8 | fp | legacyAny,
		0x2E: vv | m4 | fp | sA, 0x2F: vv | m4 | fp | sA,
		0x50: regG | rmV | sA,
		0x51: cvt, 0x52: un, 0x53: un,
		0x54: ps, 0x55: ps, 0x56: ps, 0x57: ps,
		0x58: pf, 0x59: pf, 0x5A: vv | mVL2 | fp | sA, 0x5B: cvt,
		0x5C: pf, 0x5D: pf, 0x5E: pf, 0x5F: pf,
		0x60: regM | rmM | m4 | legacyAny, 0x61: regM | rmM | m4 | legacyAny, 0x62: regM | rmM | m4 | legacyAny,
		0x63: mm, 0x64: mm, 0x65: mm, 0x66: mm, 0x67: mm, 0x68: mm, 0x69: mm, 0x6A: mm, 0x6B: mm,
		0x6E: regM | rmG | mW | w64 | legacyAny, 0x6F: mm,
		0x70: mm | imm,
		0x71: shm | 0x54<<extShift, 0x72: shm | 0x54<<extShift, 0x73: shm | 0x44<<extShift,
		0x74: mm, 0x75: mm, 0x76: mm, 0x77: hVZero<<hand | legacyAny | vA,
		0x7E: regM | rmG | mW | w64 | store | legacyAny, 0x7F: mm | store,
		0xC2: pf | imm, 0xC3: regG | mW | w64 | store | legacyAny,
		0xC4: regM | rmG | m2 | imm | legacyAny, 0xC5: regG | rmM | imm | legacyAny, 0xC6: ps | imm,
		0xD1: mm, 0xD2: mm, 0xD3: mm, 0xD4: mm, 0xD5: mm, 0xD7: regG | rmM | legacyAny,
		0xD8: mm, 0xD9: mm, 0xDA: mm, 0xDB: mm, 0xDC: mm, 0xDD: mm, 0xDE: mm, 0xDF: mm,
		0xE0: mm, 0xE1: mm, 0xE2: mm, 0xE3: mm, 0xE4: mm, 0xE5: mm, 0xE7: regM | m8 | store | legacyAny,
		0xE8: mm, 0xE9: mm, 0xEA: mm, 0xEB: mm, 0xEC: mm, 0xED: mm, 0xEE: mm, 0xEF: mm,
		0xF1: mm, 0xF2: mm, 0xF3: mm, 0xF4: mm, 0xF5: mm, 0xF6: mm,
		0xF7: regM | rmM | hMask<<hand | legacyAny,
		0xF8: mm, 0xF9: mm, 0xFA: mm, 0xFB: mm, 0xFC: mm, 0xFD: mm, 0xFE: mm,

		0x41: kvk, 0x42: kvk, 0x45: kvk, 0x46: kvk, 0x47: kvk, 0x4A: kvk, 0x4B: kvk, 0x44: kk | l0, 0x98: kk | l0, 0x99: kk | l0,
		0x90: kk | mK | l0, 0x91: kk&^rmM | mK | store | l0, 0x92: kk&^rmM | rmG | l0 | w0, 0x93: kk&^regM | regG | l0 | w0,
	},
	1: {
		0x10: vv | mVL | sA, 0x11: vv | mVL | store | sA,
		0x12: regV | vvV | m8 | l0 | sA, 0x13: regV | m8 | store | l0 | sA,
		0x14: ps, 0x15: ps,
		0x16: regV | vvV | m8 | l0 | sA, 0x17: regV | m8 | store | l0 | sA,
		0x28: un | alV, 0x29: un | store | alV,
		0x2A: regV | rmM | m8 | fp | legacyAny, 0x2B: regV | mVL | store | al | alV | sA,
		0x2C: regM | rmV | m16 | al | fp | legacyAny, 0x2D: regM | rmV | m16 | al | fp | legacyAny,
		0x2E: vv | m8 | fp | sA, 0x2F: vv | m8 | fp | sA,
		0x50: regG | rmV | sA, 0x51: cvt,
		0x54: ps, 0x55: ps, 0x56: ps, 0x57: ps,
		0x58: pf, 0x59: pf, 0x5A: cvt, 0x5B: cvt,
		0x5C: pf, 0x5D: pf, 0x5E: pf, 0x5F: pf,
		0x60: pi, 0x61: pi, 0x62: pi, 0x63: pi, 0x64: pi, 0x65: pi, 0x66: pi, 0x67: pi,
		0x68: pi, 0x69: pi, 0x6A: pi, 0x6B: pi, 0x6C: pi, 0x6D: pi,
		0x6E: regV | rmG | mW | w64 | l0 | sA, 0x6F: un | alV,
		0x70: vv | mVL | al | imm | sA2,
		0x71: shi | 0x54<<extShift, 0x72: shi | 0x54<<extShift, 0x73: shi | 0xCC<<extShift,
		0x74: pi, 0x75: pi, 0x76: pi,
		0x7C: vvn | mVL | al | fp | s3A, 0x7D: vvn | mVL | al | fp | s3A,
		0x7E: regV | rmG | mW | w64 | store | l0 | sA, 0x7F: un | store | alV,
		0xC2: pf | imm,
		0xC4: vvn&^rmV | rmG | m2 | imm | l0 | sA, 0xC5: regG | rmV | imm | l0 | sA, 0xC6: ps | imm,
		0xD0: vvn | mVL | al | fp | s3A,
		0xD1: vvn | m16 | al | sA2, 0xD2: vvn | m16 | al | sA2, 0xD3: vvn | m16 | al | sA2,
		0xD4: pi, 0xD5: pi, 0xD6: vv | m8 | store | l0 | sA, 0xD7: regG | rmV | sA2,
		0xD8: pi, 0xD9: pi, 0xDA: pi, 0xDB: pi, 0xDC: pi, 0xDD: pi, 0xDE: pi, 0xDF: pi,
		0xE0: pi, 0xE1: vvn | m16 | al | sA2, 0xE2: vvn | m16 | al | sA2, 0xE3: pi, 0xE4: pi, 0xE5: pi,
		0xE6: cvt, 0xE7: regV | mVL | store | al | alV | sA,
		0xE8: pi, 0xE9: pi, 0xEA: pi, 0xEB: pi, 0xEC: pi, 0xED: pi, 0xEE: pi, 0xEF: pi,
		0xF1: vvn | m16 | al | sA2, 0xF2: vvn | m16 | al | sA2, 0xF3: vvn | m16 | al | sA2,
		0xF4: pi, 0xF5: pi, 0xF6: pi,
		0xF7: vv | l0 | hMask<<hand | sA,
		0xF8: pi, 0xF9: pi, 0xFA: pi, 0xFB: pi, 0xFC: pi, 0xFD: pi, 0xFE: pi,

		0x41: kvk, 0x42: kvk, 0x45: kvk, 0x46: kvk, 0x47: kvk, 0x4A: kvk, 0x4B: kvk | w0, 0x44: kk | l0, 0x98: kk | l0, 0x99: kk | l0,
		0x90: kk | mK | l0, 0x91: kk&^rmM | mK | store | l0, 0x92: kk&^rmM | rmG | l0 | w0, 0x93: kk&^regM | regG | l0 | w0,
	},
	2: {
		0x10: vvn | vvReg | m4 | sA, 0x11: vvn | vvReg | m4 | store | sA,
		0x12: vv | mVL | al | s3A, 0x16: vv | mVL | al | s3A,
		0x2A: regV | vvV | rmG | mW | w64 | fp | sA,
		0x2C: regG | rmV | m4 | w64 | fp | sA, 0x2D: regG | rmV | m4 | w64 | fp | sA,
		0x51: sf4, 0x52: vvn | m4 | sA, 0x53: vvn | m4 | sA,
		0x58: sf4, 0x59: sf4, 0x5A: sf4, 0x5B: cvt, 0x5C: sf4, 0x5D: sf4, 0x5E: sf4, 0x5F: sf4,
		0x6F: vv | mVL | sA, 0x70: vv | mVL | al | imm | sA2,
		0x7E: vv | m8 | l0 | sA, 0x7F: vv | mVL | store | sA,
		0xB8: gpr | mOp | opSize | fPOPCNT<<legShift,
		0xBC: gpr | mOp | opSize | fBMI1<<legShift, 0xBD: gpr | mOp | opSize | fLZCNT<<legShift,
		0xC2: sf4 | imm, 0xD6: regV | rmM | legacyAny, 0xE6: vv | mVL2 | sA,
	},
	3: {
		0x10: vvn | vvReg | m8 | sA, 0x11: vvn | vvReg | m8 | store | sA,
		0x12: vv | mDup | s3A,
		0x2A: regV | vvV | rmG | mW | w64 | fp | sA,
		0x2C: regG | rmV | m8 | w64 | fp | sA, 0x2D: regG | rmV | m8 | w64 | fp | sA,
		0x51: sf8, 0x58: sf8, 0x59: sf8, 0x5A: sf8, 0x5C: sf8, 0x5D: sf8, 0x5E: sf8, 0x5F: sf8,
		0x70: vv | mVL | al | imm | sA2,
		0x7C: vvn | mVL | al | fp | s3A, 0x7D: vvn | mVL | al | fp | s3A,
		0xC2: sf8 | imm, 0xD0: vvn | mVL | al | fp | s3A,
		0xD6: regM | rmV | legacyAny, 0xE6: cvt, 0xF0: regV | mVL | s3A,
		0x92: kk&^rmM | rmG | l0 | w64, 0x93: kk&^regM | regG | l0 | w64,
	},
}

// map2 is 0F 38 xx.
var map2 = table{
	0: {
		0x00: mms, 0x01: mms, 0x02: mms, 0x03: mms, 0x04: mms, 0x05: mms, 0x06: mms, 0x07: mms,
		0x08: mms, 0x09: mms, 0x0A: mms, 0x0B: mms, 0x1C: mms, 0x1D: mms, 0x1E: mms,
		0xC8: sha, 0xC9: sha, 0xCA: sha, 0xCB: sha, 0xCC: sha, 0xCD: sha,
		0xF0: regG | mOp | opSize | fMOVBE<<legShift, 0xF1: regG | mOp | opSize | store | fMOVBE<<legShift,
		0xF2: gpr | vvG | mW | w64 | vB1, 0xF3: rmG | vvG | mW | w64 | 0x0E<<extShift | vB1,
		0xF5: gpr | vvG | mW | w64 | vB2, 0xF7: gpr | vvG | mW | w64 | vB1,
	},
	1: {
		0x00: vvn | mVL | al | ss3, 0x01: vvn | mVL | al | ss3, 0x02: vvn | mVL | al | ss3, 0x03: vvn | mVL | al | ss3,
		0x04: vvn | mVL | al | ss3, 0x05: vvn | mVL | al | ss3, 0x06: vvn | mVL | al | ss3, 0x07: vvn | mVL | al | ss3,
		0x08: vvn | mVL | al | ss3, 0x09: vvn | mVL | al | ss3, 0x0A: vvn | mVL | al | ss3, 0x0B: vvn | mVL | al | ss3,
		0x0C: vvn | mVL | w0 | vA, 0x0D: vvn | mVL | w0 | vA, 0x0E: vv | mVL | w0 | vA, 0x0F: vv | mVL | w0 | vA,
		0x10: vv | m16 | al | fSSE41<<legShift, 0x14: vv | m16 | al | fSSE41<<legShift, 0x15: vv | m16 | al | fSSE41<<legShift,
		0x13: vv | mVL2 | fp | w0 | fF16C<<vexShift, 0x16: vvn | mVL | w0 | l1 | vA2, 0x17: vv | mVL | al | s41,
		0x18: vv | m4 | w0 | vA, 0x19: vv | m8 | w0 | l1 | vA, 0x1A: regV | m16 | w0 | l1 | vA,
		0x1C: vv | mVL | al | ss3, 0x1D: vv | mVL | al | ss3, 0x1E: vv | mVL | al | ss3,
		0x20: vv | mVL2 | i41, 0x21: vv | mVL4 | i41, 0x22: vv | mVL8 | i41,
		0x23: vv | mVL2 | i41, 0x24: vv | mVL4 | i41, 0x25: vv | mVL2 | i41,
		0x28: p41, 0x29: p41, 0x2A: regV | mVL | al | alV | i41, 0x2B: p41,
		0x2C: regV | vvV | mVL | maskVS | w0 | vA, 0x2D: regV | vvV | mVL | maskVS | w0 | vA,
		0x2E: regV | vvV | mVL | maskVS | store | w0 | vA, 0x2F: regV | vvV | mVL | maskVS | store | w0 | vA,
		0x30: vv | mVL2 | i41, 0x31: vv | mVL4 | i41, 0x32: vv | mVL8 | i41,
		0x33: vv | mVL2 | i41, 0x34: vv | mVL4 | i41, 0x35: vv | mVL2 | i41,
		0x36: vvn | mVL | w0 | l1 | vA2, 0x37: vvn | mVL | al | s42 | fAVX2<<l1Shift,
		0x38: p41, 0x39: p41, 0x3A: p41, 0x3B: p41, 0x3C: p41, 0x3D: p41, 0x3E: p41, 0x3F: p41,
		0x40: p41, 0x41: vv | m16 | al | l0 | s41,
		0x45: vvn | mVL | vA2, 0x46: vvn | mVL | w0 | vA2, 0x47: vvn | mVL | vA2,
		0x58: vv | m4 | w0 | vA2, 0x59: vv | m8 | w0 | vA2, 0x5A: regV | m16 | w0 | l1 | vA2,
		0x78: vv | m1 | w0 | vA2, 0x79: vv | m2 | w0 | vA2,
		0x8C: regV | vvV | mVL | maskVV | vA2, 0x8E: regV | vvV | mVL | maskVV | store | vA2,
		0x90: regV | vvV | m8 | hGather<<hand | vA2, 0x91: regV | vvV | m8 | hGather<<hand | vA2,
		0x92: regV | vvV | m8 | hGather<<hand | vA2, 0x93: regV | vvV | m8 | hGather<<hand | vA2,
		0x96: fma, 0x97: fma, 0x98: fma, 0x99: fms, 0x9A: fma, 0x9B: fms, 0x9C: fma, 0x9D: fms, 0x9E: fma, 0x9F: fms,
		0xA6: fma, 0xA7: fma, 0xA8: fma, 0xA9: fms, 0xAA: fma, 0xAB: fms, 0xAC: fma, 0xAD: fms, 0xAE: fma, 0xAF: fms,
		0xB6: fma, 0xB7: fma, 0xB8: fma, 0xB9: fms, 0xBA: fma, 0xBB: fms, 0xBC: fma, 0xBD: fms, 0xBE: fma, 0xBF: fms,
		0xCF: vvn | mVL | al | w0 | gf,
		0xDB: vv | m16 | al | l0 | aes, 0xDC: vvn | mVL | al | aes | fVAES<<l1Shift, 0xDD: vvn | mVL | al | aes | fVAES<<l1Shift,
		0xDE: vvn | mVL | al | aes | fVAES<<l1Shift, 0xDF: vvn | mVL | al | aes | fVAES<<l1Shift,
		0xF0: regG | mOp | opSize | fMOVBE<<legShift, 0xF1: regG | mOp | opSize | store | fMOVBE<<legShift,
		0xF6: gpr | mW | w64 | fADX<<legShift, 0xF7: gpr | vvG | mW | w64 | vB2,
	},
	2: {
		0xF5: gpr | vvG | mW | w64 | vB2, 0xF6: gpr | mW | w64 | fADX<<legShift, 0xF7: gpr | vvG | mW | w64 | vB2,
	},
	3: {
		0xF0: gpr | m1 | w64 | fSSE42<<legShift, 0xF1: gpr | mOp | opSize | fSSE42<<legShift,
		0xF5: gpr | vvG | mW | w64 | vB2, 0xF6: gpr | vvG | mW | w64 | vB2, 0xF7: gpr | vvG | mW | w64 | vB2,
	},
}

// map3 is 0F 3A xx.
var map3 = table{
	0: {0x0F: mms | imm, 0xCC: sha | imm},
	1: {
		0x00: vv | mVL | imm | w1 | l1 | vA2, 0x01: vv | mVL | imm | w1 | l1 | vA2, 0x02: vvn | mVL | imm | w0 | vA2,
		0x04: vv | mVL | imm | w0 | vA, 0x05: vv | mVL | imm | w0 | vA, 0x06: vvn | mVL | imm | w0 | l1 | vA,
		0x08: vv | mVL | al | imm | fp | s41, 0x09: vv | mVL | al | imm | fp | s41,
		0x0A: vvn | m4 | imm | fp | s41, 0x0B: vvn | m8 | imm | fp | s41,
		0x0C: vvn | mVL | al | imm | s41, 0x0D: vvn | mVL | al | imm | s41, 0x0E: p41 | imm, 0x0F: vvn | mVL | al | imm | ss3,
		0x14: regV | rmG | m1 | store | imm | l0 | s41, 0x15: regV | rmG | m2 | store | imm | l0 | s41,
		0x16: regV | rmG | mW | w64 | store | imm | l0 | s41, 0x17: regV | rmG | m4 | store | imm | l0 | s41,
		0x18: vvn | m16 | imm | w0 | l1 | vA, 0x19: vv | m16 | store | imm | w0 | l1 | vA,
		0x1D: vv | mVL2 | store | imm | fp | w0 | fF16C<<vexShift,
		0x20: regV | vvV | rmG | m1 | imm | l0 | s41, 0x21: vvn | m4 | imm | l0 | s41,
		0x22: regV | vvV | rmG | mW | w64 | imm | l0 | s41,
		0x30: kk | imm | l0, 0x31: kk | imm | l0, 0x32: kk | imm | l0, 0x33: kk | imm | l0,
		0x38: vvn | m16 | imm | w0 | l1 | vA2, 0x39: vv | m16 | store | imm | w0 | l1 | vA2,
		0x40: vvn | mVL | al | imm | fp | s41, 0x41: vvn | m16 | al | imm | fp | l0 | s41, 0x42: p41 | imm,
		0x44: vvn | mVL | al | imm | fPCLMUL<<legShift | fPCLMUL<<vexShift | fVPCLMUL<<l1Shift,
		0x46: vvn | mVL | imm | w0 | l1 | vA2,
		0x4A: vvn | mVL | imm | is4 | w0 | vA, 0x4B: vvn | mVL | imm | is4 | w0 | vA, 0x4C: vvn | mVL | imm | is4 | w0 | vA | fAVX2<<l1Shift,
		0x60: vv | m16 | imm | l0 | s42, 0x61: vv | m16 | imm | l0 | s42, 0x62: vv | m16 | imm | l0 | s42, 0x63: vv | m16 | imm | l0 | s42,
		0xCE: vvn | mVL | al | imm | w1 | gf, 0xCF: vvn | mVL | al | imm | w1 | gf,
		0xDF: vv | m16 | al | imm | l0 | aes,
	},
	3: {0xF0: gpr | mW | w64 | imm | fBMI2<<vexShift | l0},
}

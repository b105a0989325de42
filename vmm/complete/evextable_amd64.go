package complete

// Rows of EVEX opcodes. A vector length below 512 bits and the byte and word
// forms are covered by requiring all of AVX512F, BW, DQ and VL.
const (
	eD   = vvn | mVL | elemW | bcst // three operands, doublewords or quadwords
	eD0  = eD | w0                  // doublewords only
	eD1  = eD | w1                  // quadwords only
	eB   = vvn | mVL | elem1        // bytes
	eH   = vvn | mVL | elem2        // words
	eU   = vv | mVL | elemW | bcst  // two operands
	eKD  = regM | rmV | vvV | mVL | elemW | bcst
	eKB  = regM | rmV | vvV | mVL | elem1
	eKH  = regM | rmV | vvV | mVL | elem2
	eKBW = regM | rmV | vvV | mVL | elemB
	eS0  = vvn | m4 | elemW | w0 | fp
	eS1  = vvn | m8 | elemW | w1 | fp
	eX   = elem1 | whole // pmovsx and pmovzx: the size does not matter
)

var evex1 = table{
	0: {
		0x10: vv | mVL | elemW | w0, 0x11: vv | mVL | elemW | store | w0, 0x28: vv | mVL | elemW | alV | w0, 0x29: vv | mVL | elemW | store | alV | w0,
		0x14: eD0 | whole, 0x15: eD0 | whole, 0x2B: regV | mVL | store | alV | w0,
		0x51: eU | fp | w0, 0x54: eD0, 0x55: eD0, 0x56: eD0, 0x57: eD0,
		0x58: eD0 | fp, 0x59: eD0 | fp, 0x5C: eD0 | fp, 0x5D: eD0 | fp, 0x5E: eD0 | fp, 0x5F: eD0 | fp,
		0xC2: eKD | imm | w0 | fp, 0xC6: eD0 | imm | whole,
	},
	1: {
		0x10: vv | mVL | elemW | w1, 0x11: vv | mVL | elemW | store | w1, 0x28: vv | mVL | elemW | alV | w1, 0x29: vv | mVL | elemW | store | alV | w1,
		0x14: eD1 | whole, 0x15: eD1 | whole, 0x2B: regV | mVL | store | alV | w1,
		0x51: eU | fp | w1, 0x54: eD1, 0x55: eD1, 0x56: eD1, 0x57: eD1,
		0x58: eD1 | fp, 0x59: eD1 | fp, 0x5C: eD1 | fp, 0x5D: eD1 | fp, 0x5E: eD1 | fp, 0x5F: eD1 | fp,
		0x60: eB | whole, 0x61: eH | whole, 0x62: eD0 | whole, 0x68: eB | whole, 0x69: eH | whole, 0x6A: eD0 | whole, 0x6C: eD1 | whole, 0x6D: eD1 | whole,
		0x64: eKB, 0x65: eKH, 0x66: eKD | w0, 0x74: eKB, 0x75: eKH, 0x76: eKD | w0,
		0x6E: regV | rmG | mW | w64 | l0, 0x7E: regV | rmG | mW | w64 | store | l0,
		0x6F: vv | mVL | elemW | alV, 0x7F: vv | mVL | elemW | store | alV,
		0x70: eU | imm | w0 | whole,
		0x72: rmV | vvV | mVL | imm | elemW | bcst | w0 | 0x54<<extShift, 0x73: rmV | vvV | mVL | imm | elemW | bcst | w1 | 0x44<<extShift,
		0xC2: eKD | imm | w1 | fp, 0xC6: eD1 | imm | whole,
		0xD4: eD1, 0xD5: eH, 0xD6: vv | m8 | store | l0 | w1,
		0xD8: eB, 0xD9: eH, 0xDA: eB, 0xDB: eD, 0xDC: eB, 0xDD: eH, 0xDE: eB, 0xDF: eD,
		0xE0: eB, 0xE3: eH, 0xE4: eH, 0xE5: eH, 0xE7: regV | mVL | store | alV | w0,
		0xE8: eB, 0xE9: eH, 0xEA: eH, 0xEB: eD, 0xEC: eB, 0xED: eH, 0xEE: eH, 0xEF: eD,
		0xF4: eD1, 0xF8: eB, 0xF9: eH, 0xFA: eD0, 0xFB: eD1, 0xFC: eB, 0xFD: eH, 0xFE: eD0,
	},
	2: {
		0x10: vvn | vvReg | m4 | elemW | w0, 0x11: vvn | vvReg | m4 | elemW | store | w0,
		0x51: eS0, 0x58: eS0, 0x59: eS0, 0x5C: eS0, 0x5D: eS0, 0x5E: eS0, 0x5F: eS0,
		0x6F: vv | mVL | elemW, 0x7F: vv | mVL | elemW | store, 0x7E: vv | m8 | l0 | w1,
		0x70: vv | mVL | elem2 | imm | whole,
	},
	3: {
		0x10: vvn | vvReg | m8 | elemW | w1, 0x11: vvn | vvReg | m8 | elemW | store | w1,
		0x51: eS1, 0x58: eS1, 0x59: eS1, 0x5C: eS1, 0x5D: eS1, 0x5E: eS1, 0x5F: eS1,
		0x6F: vv | mVL | elemB, 0x7F: vv | mVL | elemB | store,
		0x70: vv | mVL | elem2 | imm | whole,
	},
}

var evex2 = table{
	1: {
		0x00: eB | whole, 0x04: eH | whole, 0x0B: eH, 0x10: eH | w1, 0x11: eH | w1, 0x12: eH | w1,
		0x18: vv | m4 | elemW | w0, 0x19: vv | m8 | elemW | w1 | l1,
		0x1C: vv | mVL | elem1, 0x1D: vv | mVL | elem2, 0x1E: eU | w0, 0x1F: eU | w1,
		0x20: vv | mVL2 | eX, 0x21: vv | mVL4 | eX, 0x22: vv | mVL8 | eX, 0x23: vv | mVL2 | eX, 0x24: vv | mVL4 | eX, 0x25: vv | mVL2 | eX | w0,
		0x30: vv | mVL2 | eX, 0x31: vv | mVL4 | eX, 0x32: vv | mVL8 | eX, 0x33: vv | mVL2 | eX, 0x34: vv | mVL4 | eX, 0x35: vv | mVL2 | eX | w0,
		0x26: eKBW, 0x27: eKD, 0x28: eD1, 0x29: eKD | w1, 0x2A: regV | mVL | alV | w0, 0x36: eD | l1 | whole, 0x37: eKD | w1,
		0x38: eB, 0x39: eD, 0x3A: eH, 0x3B: eD, 0x3C: eB, 0x3D: eD, 0x3E: eH, 0x3F: eD, 0x40: eD,
		0x45: eD, 0x46: eD, 0x47: eD,
		0x58: vv | m4 | elemW | w0, 0x59: vv | m8 | elemW | w1, 0x64: eD, 0x66: vvn | mVL | elemB,
		0x76: eD | whole, 0x78: vv | m1 | elem1 | w0, 0x79: vv | m2 | elem2 | w0,
		0x7A: regV | rmG | elem1 | w0, 0x7B: regV | rmG | elem2 | w0, 0x7C: regV | rmG | elemW | w64, 0x7E: eD | whole,
		0x98: eD | fp, 0x9A: eD | fp, 0x9C: eD | fp, 0x9E: eD | fp, 0xA8: eD | fp, 0xAA: eD | fp, 0xAC: eD | fp, 0xAE: eD | fp,
		0xB8: eD | fp, 0xBA: eD | fp, 0xBC: eD | fp, 0xBE: eD | fp,
	},
	2: {
		0x26: eKBW, 0x27: eKD,
		0x28: regV | rmM, 0x38: regV | rmM, 0x29: regM | rmV, 0x39: regM | rmV,
	},
}

var evex3 = table{
	1: {
		0x00: eU | imm | w1 | l1 | whole, 0x03: eD | imm | whole, 0x0F: eB | imm | whole,
		0x14: regV | rmG | m1 | store | imm | l0, 0x15: regV | rmG | m2 | store | imm | l0, 0x16: regV | rmG | mW | w64 | store | imm | l0,
		0x18: vvn | m16 | imm | elemW | l1, 0x19: vv | m16 | store | imm | elemW | l1, 0x38: vvn | m16 | imm | elemW | l1, 0x39: vv | m16 | store | imm | elemW | l1,
		0x1A: vvn | mVL2 | imm | elemW | l2, 0x1B: vv | mVL2 | store | imm | elemW | l2, 0x3A: vvn | mVL2 | imm | elemW | l2, 0x3B: vv | mVL2 | store | imm | elemW | l2,
		0x1E: eKD | imm, 0x1F: eKD | imm, 0x3E: eKBW | imm, 0x3F: eKBW | imm,
		0x20: regV | vvV | rmG | m1 | imm | l0, 0x22: regV | vvV | rmG | mW | w64 | imm | l0,
		0x23: eD | imm | l1 | whole, 0x43: eD | imm | l1 | whole, 0x25: eD | imm,
	},
}

package complete

// features is a set of processor features and the layout of the XSAVE image.
type features struct {
	has      uint64 // bit 1<<f for each feature constant
	physBits uint8
	xOff     [32]uint32 // standard-format offset of each XSAVE component
	xSize    [32]uint32
	xAlign   uint32 // bit i: component i is 64-byte aligned in the compacted format
}

// where CPUID says that a feature is there (SDM vol. 2, CPUID): leaf, subleaf,
// register, bit.
var featureBits = [...]struct {
	feature   uint8
	leaf, sub uint32
	reg, bit  uint8
}{
	{fSSE3, 1, 0, 2, 0}, {fPCLMUL, 1, 0, 2, 1}, {fSSSE3, 1, 0, 2, 9}, {fFMA, 1, 0, 2, 12},
	{fCX16, 1, 0, 2, 13}, {fSSE41, 1, 0, 2, 19}, {fSSE42, 1, 0, 2, 20}, {fMOVBE, 1, 0, 2, 22},
	{fPOPCNT, 1, 0, 2, 23}, {fAES, 1, 0, 2, 25}, {fXSAVE, 1, 0, 2, 26}, {fAVX, 1, 0, 2, 28},
	{fF16C, 1, 0, 2, 29}, {fRDRAND, 1, 0, 2, 30},
	{fFSGSBASE, 7, 0, 1, 0}, {fBMI1, 7, 0, 1, 3}, {fAVX2, 7, 0, 1, 5}, {fBMI2, 7, 0, 1, 8},
	{fRDSEED, 7, 0, 1, 18}, {fADX, 7, 0, 1, 19}, {fSHA, 7, 0, 1, 29},
	{fGFNI, 7, 0, 2, 8}, {fVAES, 7, 0, 2, 9}, {fVPCLMUL, 7, 0, 2, 10},
	{fXSAVEOPT, 0xd, 1, 0, 0}, {fXSAVEC, 0xd, 1, 0, 1}, {fXGETBV1, 0xd, 1, 0, 2},
	{fLZCNT, 0x80000001, 0, 2, 5},
}

const all512 = 1<<16 | 1<<17 | 1<<30 | 1<<31

func readFeatures() features {
	f := features{has: 1 << fBase, physBits: 36}
	max, maxExt := hostCPUID(0, 0)[0], hostCPUID(0x80000000, 0)[0]
	var leaf, sub uint32
	var regs [4]uint32
	ask := func(l, s uint32) [4]uint32 {
		if l == leaf && s == sub {
			return regs // CPUID is slow in a virtual machine
		}
		leaf, sub, regs = l, s, [4]uint32{}
		if l <= max || l >= 0x80000000 && l <= maxExt {
			regs = hostCPUID(l, s)
		}
		return regs
	}
	for _, b := range featureBits {
		if ask(b.leaf, b.sub)[b.reg]>>b.bit&1 != 0 {
			f.has |= 1 << b.feature
		}
	}
	if ask(7, 0)[1]&all512 == all512 {
		f.has |= 1 << f512
	}
	if bits := uint8(ask(0x80000008, 0)[0]); bits >= 32 && bits <= 52 {
		f.physBits = bits
	}
	if f.has&(1<<fXSAVE) == 0 {
		return f
	}
	components := ask(0xd, 0)[0]
	for i := uint32(2); i < 32; i++ {
		if components>>i&1 != 0 {
			d := ask(0xd, i)
			f.xSize[i], f.xOff[i] = d[0], d[1]
			f.xAlign |= d[2] >> 1 & 1 << i
		}
	}
	return f
}

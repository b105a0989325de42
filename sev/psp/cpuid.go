package psp

import "golang.org/x/sys/unix"

// hardware are the CPUID leaves of the processor (of a Milan, but for its
// signature), as the firmware holds CPUID pages against.
func hardware(signature uint32) []leaf {
	return []leaf{
		{0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65},
		{1, 0, signature, 0x00800800, 0x7efa3203, 0x178bfbff},
		{7, 0, 0, 0x219c07a9, 0x0040068c, 0x00000010},
		{0xb, 0, 1, 2, 0x100, 0},
		{0xb, 1, 7, 0x80, 0x201, 0},
		{0xd, 0, 0x207, 0x240, 0xa88, 0},
		{0xd, 1, 0xf, 0x240, 0x1800, 0},
		{0xd, 2, 0x100, 0x240, 0, 0},
		{0xd, 9, 8, 0xa80, 0, 0},
		{0xd, 11, 0x10, 0, 1, 0},
		{0xd, 12, 0x18, 0, 1, 0},
		{0x80000000, 0, 0x80000021, 0x68747541, 0x444d4163, 0x69746e65},
		{0x80000001, 0, signature, 0x40000000, 0x00c001f3, 0x2fd3fbff},
		{0x80000002, 0, 0x20444d41, 0x43595045, 0x6f732820, 0x61777466},
		{0x80000003, 0, 0x50206572, 0x00295053, 0, 0},
		{0x80000004, 0, 0, 0, 0, 0},
		{0x80000005, 0, 0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140},
		{0x80000006, 0, 0x48006400, 0x68006400, 0x02006140, 0x08009140},
		{0x80000007, 0, 0, 0, 0, 0x100},
		{0x80000008, 0, 0x3030, 0x110ed205, 0x703f, 0},
		{0x8000001d, 0, 0x121, 0x1c0003f, 0x3f, 0},
		{0x8000001d, 1, 0x122, 0x1c0003f, 0x3f, 0},
		{0x8000001d, 2, 0x143, 0x1c0003f, 0x3ff, 2},
		{0x8000001e, 0, 0, 0x100, 0, 0},
		{0x8000001f, 0, 0x1a, CBit, 0, 0},
		{0x80000020, 0, 0, 0, 0, 0},
		{0x80000021, 0, 0x45, 0, 0, 0},
	}
}

// CBit is the page table bit that makes memory private on this host.
const CBit = 51

// supportedCPUID is KVM_GET_SUPPORTED_CPUID: the hardware's leaves with what KVM
// adds of its own, which the firmware does not want in a CPUID page.
func supportedCPUID(signature uint32, arg uint64, room int) error {
	leaves := append(hardware(signature), leaf{0x40000000, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d}, leaf{0x40000001, 0, 0x01007efb, 0, 0, 0})
	if room < len(leaves) {
		return unix.E2BIG
	}
	out := le.AppendUint64(nil, uint64(len(leaves)))
	for _, l := range leaves {
		switch l.function {
		case 1:
			l.ecx |= 1 << 31 // a hypervisor is there
		case 7:
			l.ebx, l.edx = l.ebx|1<<1, l.edx|1<<26|1<<27|1<<31 // TSC_ADJUST, speculation controls
		case 0x80000008:
			l.ebx |= 1 << 25
		}
		flags := uint32(0)
		if l.function == 0xb || l.function == 7 || l.function == 0xd || l.function == 0x8000001d {
			flags = 1
		}
		for _, v := range []uint32{l.function, l.index, flags, l.eax, l.ebx, l.ecx, l.edx, 0, 0, 0} {
			out = le.AppendUint32(out, v)
		}
	}
	return copyOut(arg, out)
}

// setCPUID is KVM_SET_CPUID2.
func (c *cpu) setCPUID(arg, n uint64) error {
	if n > 256 {
		return unix.E2BIG
	}
	b := make([]byte, 40*n)
	if err := copyIn(arg+8, b); err != nil {
		return err
	}
	c.leaves = nil
	for ; len(b) > 0; b = b[40:] {
		v := func(i int) uint32 { return uint32(get(b, 4*i, 4)) }
		c.leaves = append(c.leaves, leaf{v(0), v(1), v(3), v(4), v(5), v(6)})
	}
	return nil
}

// find returns the leaf of a table, zeros if it is not there.
func find(leaves []leaf, function, index uint32) (leaf, bool) {
	for _, l := range leaves {
		if l.function == function && l.index == index {
			return l, true
		}
	}
	return leaf{}, false
}

// reservedAddress are the bits of a guest physical address, and so of CR3, that
// the vCPU's CPUID does not allow: those from MAXPHYADDR on but for the C-bit
// (kvm_vcpu_reserved_gpa_bits_raw, sev_vcpu_after_set_cpuid).
func (c *cpu) reservedAddress() uint64 {
	width := uint32(36)
	if top, _ := find(c.leaves, 0x80000000, 0); top.eax >= 0x80000008 {
		if l, ok := find(c.leaves, 0x80000008, 0); ok {
			width = l.eax & 0xff
		}
	}
	bits := ^uint64(0) << width
	if l, ok := find(c.leaves, 0x8000001f, 0); ok && c.m.kind == typeSNP {
		bits &^= 1 << (l.ebx & 0x3f)
	}
	return bits
}

// reservedCR4 are the bits of CR4 for which the vCPU's CPUID has no feature.
func (c *cpu) reservedCR4() uint64 {
	l1, _ := find(c.leaves, 1, 0)
	l7, _ := find(c.leaves, 7, 0)
	reserved := ^uint64(0x7ff) | 1<<13 // up to OSXMMEXCPT all processors have; VMXE none of AMD's
	for bit, has := range map[int]bool{
		11: l7.ecx>>2&1 != 0, 16: l7.ebx&1 != 0, 17: l1.ecx>>17&1 != 0, 18: l1.ecx>>26&1 != 0,
		20: l7.ebx>>7&1 != 0, 21: l7.ebx>>20&1 != 0, 22: l7.ecx>>3&1 != 0, 23: l7.ecx>>7&1 != 0 || l7.edx>>20&1 != 0,
	} {
		if has {
			reserved &^= 1 << bit
		}
	}
	return reserved
}

// checkCPUID is the firmware's check of a CPUID page (AMD 56860, 8.17.2.6): it
// corrects what it does not accept and says whether all was well. A feature bit
// must be the processor's too (the hypervisor bit apart), and the sizes of the
// XSAVE area those of XCR0_IN and XSS_IN.
func checkCPUID(page []byte, hw []leaf) bool {
	const entries, entrySize = 64, 48
	count := get(page, 0, 4)
	ok := count <= entries && get(page, 4, 4) == 0 && get(page, 8, 8) == 0
	fix := func(at int, want uint32) {
		if uint32(get(page, at, 4)) != want {
			le.PutUint32(page[at:], want)
			ok = false
		}
	}
	for i := range int(min(count, entries)) {
		e := 16 + entrySize*i
		reg := func(n int) uint32 { return uint32(get(page, e+24+4*n, 4)) }
		subset := func(n int, has uint32) { fix(e+24+4*n, reg(n)&has) }
		function, index := uint32(get(page, e, 4)), uint32(get(page, e+4, 4))
		l, known := find(hw, function, index)
		if !known {
			continue
		}
		switch function {
		case 1:
			subset(2, l.ecx|1<<31|1<<27)
			subset(3, l.edx)
		case 7:
			subset(1, l.ebx)
			subset(2, l.ecx|1<<4)
			subset(3, l.edx)
		case 0xd:
			if index <= 1 {
				fix(e+28, xsaveSize(get(page, e+8, 8), get(page, e+16, 8), index == 1, hw))
			} else {
				fix(e+24, l.eax)
				fix(e+28, l.ebx)
			}
		case 0x80000001:
			subset(2, l.ecx)
			subset(3, l.edx)
		case 0x80000008:
			subset(1, l.ebx)
		case 0x8000001f:
			subset(0, l.eax)
		}
	}
	return ok
}

// xsaveSize is the size of an XSAVE area with the components of xcr0 and xss.
func xsaveSize(xcr0, xss uint64, compact bool, hw []leaf) uint32 {
	size := uint32(0x240)
	for i := uint32(2); i < 63; i++ {
		l, ok := find(hw, 0xd, i)
		switch {
		case !ok || (xcr0|xss)>>i&1 == 0:
		case !compact:
			size = max(size, l.eax+l.ebx)
		default:
			if l.ecx&2 != 0 {
				size = (size + 63) &^ 63
			}
			size += l.eax
		}
	}
	return size
}

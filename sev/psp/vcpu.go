package psp

import (
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	runSize = 3 * pageSize // struct kvm_run, a page of port data, one more

	efLME, efLMA, efSVME = 1 << 8, 1 << 10, 1 << 12
	cr0PE, cr0PG         = 1 << 0, 1 << 31
	cr0NW, cr0CD         = 1 << 29, 1 << 30
	cr4PAE, cr4MCE       = 1 << 5, 1 << 6
	dr7Fixed             = 0x400
	resetPAT             = 0x0007040600070406
)

// Places in struct kvm_regs, in numbers of eight bytes: RAX, RBX, RCX, RDX, RSI,
// RDI, RSP, RBP, R8 to R15, and
const (
	regRDX    = 3
	regRIP    = 16
	regRFLAGS = 17
)

// cpu is a vCPU: what KVM keeps of it while user space sets it up. save is the
// VMCB's save area, whose layout is the VMSA's, as KVM fills it meanwhile.
type cpu struct {
	m  *Machine
	id uint64

	run  []byte // struct kvm_run
	save [pageSize]byte
	regs [18]uint64

	cr0, cr2, cr4, cr8, efer, apic uint64
	xcr0, xss, dr6, dr7            uint64
	pkru                           uint32
	debug                          bool
	leaves                         []leaf
	msrs                           map[uint32]uint64
	blobs                          map[uint32][]byte // state that is only kept, by the request that reads it
	xsave                          [pageSize]byte

	protected bool // the VMSA was measured: user space reaches the registers no more
	player
}

// leaf is an entry of a CPUID table.
type leaf struct {
	function, index    uint32
	eax, ebx, ecx, edx uint32
}

func (m *Machine) createCPU(id uint64) (int, error) {
	switch {
	case id >= maxVCPUID:
		return 0, unix.EINVAL
	case slices.ContainsFunc(m.cpus, func(c *cpu) bool { return c.id == id }):
		return 0, unix.EEXIST
	}
	return m.k.newFile("kvm-vcpu", runSize, func(fd int) (file, error) {
		run, err := unix.Mmap(fd, 0, runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		c := &cpu{m: m, id: id, run: run, msrs: map[uint32]uint64{}, blobs: map[uint32][]byte{}}
		c.quit = make(chan struct{})
		c.reset()
		m.cpus = append(m.cpus, c)
		return c, nil
	})
}

// Offsets in the save area (AMD APM vol. 2, table B-2 and B-4).
const (
	vES, vCS, vSS, vDS, vFS, vGS      = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
	vGDTR, vLDTR, vIDTR, vTR          = 0x60, 0x70, 0x80, 0x90
	vCPL, vEFER, vXSS, vCR4           = 0xcb, 0xd0, 0x140, 0x148
	vCR3, vCR0, vDR7, vDR6            = 0x150, 0x158, 0x160, 0x168
	vRFLAGS, vRIP, vRSP, vSCET        = 0x170, 0x178, 0x1d8, 0x1e0
	vISST, vRAX, vSTAR, vLSTAR        = 0x1f0, 0x1f8, 0x200, 0x208
	vCSTAR, vSFMASK, vKGS, vSysCS     = 0x210, 0x218, 0x220, 0x228
	vSysESP, vSysEIP, vPAT, vDbgCtl   = 0x230, 0x238, 0x268, 0x270
	vPKRU, vFeatures, vXCR0, vX87     = 0x2e8, 0x3b0, 0x3e8, 0x400
	vSegmentAttr, vSegmentLim, vSgBas = 2, 4, 8
)

// reset is the state of a new vCPU (kvm_vcpu_reset, init_vmcb).
func (c *cpu) reset() {
	for _, at := range []int{vES, vSS, vDS, vFS, vGS} {
		c.setSegment(at, 0, 0x92, 0xffff, 0)
	}
	c.setSegment(vCS, 0xf000, 0x9a, 0xffff, 0xffff0000)
	c.setSegment(vGDTR, 0, 0, 0xffff, 0)
	c.setSegment(vIDTR, 0, 0, 0xffff, 0)
	c.setSegment(vLDTR, 0, 0x82, 0xffff, 0)
	c.setSegment(vTR, 0, 0x83, 0xffff, 0)
	c.regs[regRIP], c.regs[regRDX], c.regs[regRFLAGS] = 0xfff0, 0x600, 2
	c.cr0, c.dr6, c.dr7, c.xcr0 = 0x60000010, 0xffff0ff0, dr7Fixed, 1
	c.apic = 0xfee00800
	if c.id == 0 {
		c.apic |= 1 << 8
	}
	le.PutUint64(c.save[vPAT:], resetPAT)
	le.PutUint16(c.xsave[0:], 0x37f)
	le.PutUint32(c.xsave[24:], 0x1f80)
	le.PutUint64(c.xsave[512:], 3) // x87 and SSE are there
}

func (c *cpu) setSegment(at int, selector, attr uint16, limit uint32, base uint64) {
	le.PutUint16(c.save[at:], selector)
	le.PutUint16(c.save[at+vSegmentAttr:], attr)
	le.PutUint32(c.save[at+vSegmentLim:], limit)
	le.PutUint64(c.save[at+vSgBas:], base)
}

// kept are the parts of the state that this model does not look into.
var kept = map[uint32]uint32{reqSetLAPIC: reqGetLAPIC, reqSetMPState: reqGetMPState, reqSetVCPUEvents: reqGetVCPUEvents}

func (c *cpu) ioctl(request uint32, arg uint64, b []byte) (int, error) {
	switch request {
	case reqGetLAPIC, reqGetMPState, reqGetVCPUEvents:
		copy(b, c.blobs[request])
		return 0, nil
	case reqSetLAPIC, reqSetMPState, reqSetVCPUEvents:
		c.blobs[kept[request]] = slices.Clone(b)
		return 0, nil
	case reqGetTSCKHz:
		return 2_450_000, nil
	case reqSetCPUID2:
		return 0, c.setCPUID(arg, get(b, 0, 4))
	}
	if c.protected { // has_protected_state and guest_state_protected
		return 0, unix.EINVAL
	}
	switch request {
	case reqGetRegs:
		for i, v := range c.regs {
			le.PutUint64(b[8*i:], v)
		}
	case reqSetRegs:
		for i := range c.regs {
			c.regs[i] = get(b, 8*i, 8)
		}
		c.regs[regRFLAGS] |= 2
	case reqGetSregs, reqGetSregs2:
		c.sregs(b)
	case reqSetSregs, reqSetSregs2:
		return 0, c.setSregs(b)
	case reqGetMSRs, reqSetMSRs:
		return c.accessMSRs(arg, int(get(b, 0, 4)), request == reqSetMSRs)
	case reqGetFPU, reqSetFPU:
		c.fpu(b, request == reqSetFPU)
	case reqGetXSave, reqGetXSave2:
		copy(b, c.xsave[:])
	case reqSetXSave:
		return 0, c.setXSave(b)
	case reqGetXCRS:
		le.PutUint32(b, 1)
		le.PutUint64(b[16:], c.xcr0) // nr_xcrs, flags, {xcr, reserved, value}
	case reqSetXCRS:
		return 0, c.setXCRS(b)
	case reqGetDebugRegs:
		le.PutUint64(b[32:], c.dr6)
		le.PutUint64(b[40:], c.dr7)
	case reqSetDebugRegs:
		if get(b, 48, 8) != 0 || get(b, 32, 8)>>32 != 0 || get(b, 40, 8)>>32 != 0 {
			return 0, unix.EINVAL
		}
		c.dr6, c.dr7 = get(b, 32, 8)|0xffff0ff0, get(b, 40, 8)|dr7Fixed
	case reqSetGuestDebug:
		c.debug = get(b, 0, 4) != 0
	default:
		return 0, unix.EINVAL // as kvm_arch_vcpu_ioctl
	}
	return 0, nil
}

// segmentOrder is that of struct kvm_sregs.
var segmentOrder = [...]int{vCS, vDS, vES, vFS, vGS, vSS, vTR, vLDTR}

// sregs is KVM_GET_SREGS, with the attributes as svm_get_segment shows them.
func (c *cpu) sregs(b []byte) {
	for i, at := range segmentOrder {
		s, attr := b[24*i:], get(c.save[:], at+vSegmentAttr, 2)
		limit := get(c.save[:], at+vSegmentLim, 4)
		copy(s[:8], c.save[at+vSgBas:])
		le.PutUint32(s[8:], uint32(limit))
		copy(s[12:14], c.save[at:])
		typ, present := byte(attr&15), attr>>7&1
		s[15], s[16], s[17], s[18] = byte(present), byte(attr>>5&3), byte(attr>>10&1), byte(attr>>4&1)
		s[19], s[20], s[21], s[22] = byte(attr>>9&1), 0, byte(attr>>8&1), byte(1-present)
		if limit > 0xfffff {
			s[20] = 1
		}
		switch {
		case at == vTR:
			typ |= 2
		case at == vSS:
			s[16] = c.save[vCPL]
			s[17] &= byte(present)
		case at != vCS && at != vLDTR && present != 0:
			typ |= 1
		}
		s[14] = typ
	}
	for i, at := range []int{vGDTR, vIDTR} {
		t := b[192+16*i:]
		copy(t[:8], c.save[at+vSgBas:])
		copy(t[8:10], c.save[at+vSegmentLim:])
	}
	for i, v := range []uint64{c.cr0, c.cr2, get(c.save[:], vCR3, 8), c.cr4, c.cr8, c.efer, c.apic} {
		le.PutUint64(b[224+8*i:], v)
	}
}

// setSregs is KVM_SET_SREGS (__set_sregs_common, svm_set_segment).
func (c *cpu) setSregs(b []byte) error {
	var v [7]uint64 // cr0 cr2 cr3 cr4 cr8 efer apic_base
	for i := range v {
		v[i] = get(b, 224+8*i, 8)
	}
	cr0, cr3, cr4, efer := v[0], v[2], v[3], v[5]
	csL := b[19] != 0
	switch {
	case cr0>>32 != 0, cr0&cr0NW != 0 && cr0&cr0CD == 0, cr0&cr0PG != 0 && cr0&cr0PE == 0,
		cr4&c.reservedCR4() != 0, efer&^0xd01 != 0, // SCE, LME, LMA, NX
		v[6]&0x2ff != 0, v[6]&c.reservedAddress() != 0:
		return unix.EINVAL
	case efer&efLME != 0 && cr0&cr0PG != 0:
		if cr4&cr4PAE == 0 || efer&efLMA == 0 || cr3&c.reservedAddress() != 0 {
			return unix.EINVAL
		}
	case efer&efLMA != 0 || csL:
		return unix.EINVAL
	}
	for i, at := range segmentOrder {
		s := b[24*i:]
		attr := uint16(s[14]&15) | uint16(s[18]&1)<<4 | uint16(s[16]&3)<<5 | uint16(s[21]&1)<<8 | uint16(s[19]&1)<<9 | uint16(s[17]&1)<<10 | uint16(s[20]&1)<<11
		if s[15]&1 != 0 && s[22] == 0 {
			attr |= 1 << 7
		}
		c.setSegment(at, uint16(get(s, 12, 2)), attr, uint32(get(s, 8, 4)), get(s, 0, 8))
		if at == vSS {
			c.save[vCPL] = s[16] & 3
		}
	}
	for i, at := range []int{vGDTR, vIDTR} {
		t := b[192+16*i:]
		c.setSegment(at, 0, 0, uint32(get(t, 8, 2)), get(t, 0, 8))
	}
	c.cr0, c.cr2, c.cr4, c.cr8, c.efer, c.apic = cr0, v[1], cr4, v[4], efer, v[6]
	le.PutUint64(c.save[vCR3:], cr3)
	return nil
}

// msrAt are the registers that KVM keeps in the save area.
var msrAt = map[uint32]int{
	0xc0000081: vSTAR, 0xc0000082: vLSTAR, 0xc0000083: vCSTAR, 0xc0000084: vSFMASK, 0xc0000102: vKGS,
	0x174: vSysCS, 0x175: vSysESP, 0x176: vSysEIP, 0x277: vPAT, 0x1d9: vDbgCtl, 0x6a2: vSCET, 0x6a8: vISST,
}

// accessMSRs is KVM_GET_MSRS and KVM_SET_MSRS: it returns how many entries it did,
// and stops at the first it cannot.
func (c *cpu) accessMSRs(arg uint64, n int, set bool) (int, error) {
	if n >= 256 {
		return 0, unix.E2BIG
	}
	entries := make([]byte, 16*n)
	if err := copyIn(arg+8, entries); err != nil {
		return 0, err
	}
	for i := range n {
		e := entries[16*i:]
		if set && !c.setMSR(uint32(get(e, 0, 4)), get(e, 8, 8)) {
			return i, nil
		}
		if !set {
			v, ok := c.msr(uint32(get(e, 0, 4)))
			if !ok {
				return i, copyOut(arg+8, entries)
			}
			le.PutUint64(e[8:], v)
		}
	}
	if set {
		return n, nil
	}
	return n, copyOut(arg+8, entries)
}

func (c *cpu) msr(index uint32) (uint64, bool) {
	if at, ok := msrAt[index]; ok {
		return get(c.save[:], at, 8), true
	}
	switch index {
	case 0xc0000080:
		return c.efer, true
	case 0xda0:
		return c.xss, true
	case 0x1b:
		return c.apic, true
	}
	v, ok := c.msrs[index]
	return v, ok || keptMSR(index)
}

// keptMSR says whether KVM keeps a register outside of the save area: TSC, APIC
// base, SPEC_CTRL, MTRRs, MISC_ENABLE, TSC_AUX, those of KVM itself.
func keptMSR(i uint32) bool {
	return i == 0x10 || i == 0x1b || i == 0x3b || i == 0x48 || i == 0x8b || i >= 0x200 && i < 0x210 || i >= 0x250 && i < 0x270 ||
		i == 0x2ff || i == 0x1a0 || i == 0xc0000103 || i>>8 == 0x4b564d || i == 0x6e0
}

func (c *cpu) setMSR(index uint32, v uint64) bool {
	switch index {
	case 0xc0000080: // set_efer keeps LMA
		if v&^0xd01 != 0 || c.cr0&cr0PG != 0 && (c.efer^v)&efLME != 0 {
			return false
		}
		c.efer = v&^efLMA | c.efer&efLMA
		return true
	case 0x277: // each entry of the PAT is a memory type
		for i := range 8 {
			if t := v >> (8 * i) & 0xff; t > 7 || t == 2 || t == 3 {
				return false
			}
		}
	case 0x175, 0x176: // a processor of AMD's has 32 bits of these
		v &= 0xffffffff
	case 0x1d9:
		if v&^0x3f != 0 {
			return false
		}
	case 0xda0:
		if v&^0x1800 != 0 {
			return false
		}
		c.xss = v
		return true
	}
	if at, ok := msrAt[index]; ok {
		le.PutUint64(c.save[at:], v)
		return true
	}
	if !keptMSR(index) {
		return false
	}
	c.msrs[index] = v
	return true
}

// fpu is struct kvm_fpu, which sets all of the FXSAVE image but MXCSR.
func (c *cpu) fpu(b []byte, set bool) {
	for _, f := range [...]struct{ at, from, n int }{ // at in kvm_fpu, from in the image
		{0, 32, 128}, {128, 0, 2}, {130, 2, 2}, {132, 4, 1}, {134, 6, 2}, {136, 8, 8}, {144, 16, 8}, {152, 160, 256},
	} {
		if set {
			copy(c.xsave[f.from:f.from+f.n], b[f.at:])
		} else {
			copy(b[f.at:f.at+f.n], c.xsave[f.from:])
		}
	}
	if !set {
		copy(b[408:412], c.xsave[24:])
	}
}

// xsaveParts are the components of the XSAVE image: x87, SSE, AVX, PKRU.
var xsaveParts = map[int][2]int{0: {0, 160}, 1: {160, 256}, 2: {576, 256}, 9: {2688, 8}}

// setXSave is KVM_SET_XSAVE (copy_uabi_to_xstate): a component whose bit is clear
// keeps its bytes, which the VMSA shows nevertheless.
func (c *cpu) setXSave(b []byte) error {
	bits, mxcsr := get(b, 512, 8), b[24:28]
	if bits&^0x207 != 0 || bits&7 != 0 && get(mxcsr, 0, 4)>>17 != 0 {
		return unix.EINVAL
	}
	for i, at := range xsaveParts {
		if bits>>i&1 != 0 {
			copy(c.xsave[at[0]:at[0]+at[1]], b[at[0]:])
		}
	}
	if bits&7 != 0 {
		copy(c.xsave[24:28], mxcsr)
	}
	copy(c.xsave[512:520], b[512:])
	c.pkru = 0
	if bits>>9&1 != 0 {
		c.pkru = uint32(get(b, 2688, 4))
	}
	return nil
}

// setXCRS is KVM_SET_XCRS.
func (c *cpu) setXCRS(b []byte) error {
	n := int(get(b, 0, 4))
	if n > 16 || get(b, 4, 4) != 0 {
		return unix.EINVAL
	}
	for i := range n {
		if get(b, 8+16*i, 4) == 0 {
			v := get(b, 16+16*i, 8)
			if v&1 == 0 || v&^0x207 != 0 || v&6 == 4 {
				return unix.EINVAL
			}
			c.xcr0 = v
			return nil
		}
	}
	return nil
}

// immediateExit reads kvm_run.immediate_exit, which other threads set.
func (c *cpu) immediateExit() bool {
	return atomic.LoadUint32(word(c.run))&0xff00 != 0
}

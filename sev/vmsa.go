package sev

import (
	"encoding/binary"
	"fmt"
)

// Bits of registers that matter here.
const (
	cr0CD, cr0NW = 1 << 30, 1 << 29
	cr4MCE       = 1 << 6
	eferSVME     = 1 << 12
	dr7Fixed     = 0x400

	// FeatureSNP is bit 0 of SEV_FEATURES: SNP is active (APM vol. 2, 15.34.10).
	FeatureSNP = 1

	resetDR6    = 0xffff0ff0
	resetPAT    = 0x0007040600070406
	resetMXCSR  = 0x1f80
	resetFCW    = 0x37f
	resetVector = 0xfffffff0
)

// Segment is a segment register or descriptor table as a VMSA holds it.
type Segment struct {
	Selector uint16
	Attrib   uint16 // see [Attrib]
	Limit    uint32
	Base     uint64
}

// Attrib packs a descriptor's bits as KVM does (svm_set_segment): type 3:0,
// S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11.
func Attrib(typ uint8, s bool, dpl uint8, present, avl, l, db, g bool) uint16 {
	a := uint16(typ&0xf) | uint16(dpl&3)<<5
	for i, set := range [...]bool{4: s, 7: present, 8: avl, 9: l, 10: db, 11: g} {
		if set {
			a |= 1 << i
		}
	}
	return a
}

// Registers are a vCPU's first registers: what a VMSA page holds that a monitor
// can set (APM vol. 2, table B-4). Fields that are not named stay zero.
type Registers struct {
	ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR Segment

	CPL                               uint8
	EFER, XSS, CR0, CR2, CR3, CR4     uint64
	DR6, DR7, RFLAGS, RIP             uint64
	RAX, RBX, RCX, RDX                uint64
	RSI, RDI, RSP, RBP                uint64
	R8, R9, R10, R11                  uint64
	R12, R13, R14, R15                uint64
	STAR, LSTAR, CSTAR, SFMASK        uint64
	KernelGSBase                      uint64
	SysenterCS, SysenterESP           uint64
	SysenterEIP, PAT, XCR0, Features  uint64 // Features is SEV_FEATURES
	UCET, SCET, SSP, ISSTAddr, DbgCtl uint64
	PKRU, MXCSR                       uint32
	FCW, FSW, FTW, FOP                uint16
	FIP, FDP                          uint64
	ST                                [80]byte // eight times bytes 0-7, then eight times bytes 8-9
	XMM, YMM                          [256]byte
}

// Page encodes the registers as a VMSA page.
func (r *Registers) Page() []byte {
	p := make([]byte, PageSize)
	le := binary.LittleEndian
	for i, s := range [...]*Segment{&r.ES, &r.CS, &r.SS, &r.DS, &r.FS, &r.GS, &r.GDTR, &r.LDTR, &r.IDTR, &r.TR} {
		le.PutUint16(p[i*16:], s.Selector)
		le.PutUint16(p[i*16+2:], s.Attrib)
		le.PutUint32(p[i*16+4:], s.Limit)
		le.PutUint64(p[i*16+8:], s.Base)
	}
	p[0xcb] = r.CPL
	for _, f := range [...]struct {
		at int
		v  uint64
	}{
		{0xc0, r.UCET}, {0xd0, r.EFER}, {0x140, r.XSS}, {0x148, r.CR4}, {0x150, r.CR3}, {0x158, r.CR0},
		{0x160, r.DR7}, {0x168, r.DR6}, {0x170, r.RFLAGS}, {0x178, r.RIP}, {0x1d8, r.RSP},
		{0x1e0, r.SCET}, {0x1e8, r.SSP}, {0x1f0, r.ISSTAddr}, {0x1f8, r.RAX}, {0x200, r.STAR},
		{0x208, r.LSTAR}, {0x210, r.CSTAR}, {0x218, r.SFMASK}, {0x220, r.KernelGSBase},
		{0x228, r.SysenterCS}, {0x230, r.SysenterESP}, {0x238, r.SysenterEIP}, {0x240, r.CR2},
		{0x268, r.PAT}, {0x270, r.DbgCtl}, {0x308, r.RCX}, {0x310, r.RDX}, {0x318, r.RBX},
		{0x328, r.RBP}, {0x330, r.RSI}, {0x338, r.RDI}, {0x340, r.R8}, {0x348, r.R9}, {0x350, r.R10},
		{0x358, r.R11}, {0x360, r.R12}, {0x368, r.R13}, {0x370, r.R14}, {0x378, r.R15},
		{0x3b0, r.Features}, {0x3e8, r.XCR0}, {0x400, r.FDP}, {0x418, r.FIP},
	} {
		le.PutUint64(p[f.at:], f.v)
	}
	le.PutUint32(p[0x2e8:], r.PKRU)
	le.PutUint32(p[0x408:], r.MXCSR)
	le.PutUint16(p[0x40c:], r.FTW)
	le.PutUint16(p[0x40e:], r.FSW)
	le.PutUint16(p[0x410:], r.FCW)
	le.PutUint16(p[0x412:], r.FOP)
	copy(p[0x420:], r.ST[:])
	copy(p[0x470:], r.XMM[:])
	copy(p[0x570:], r.YMM[:])
	return p
}

// KVM returns the registers of the VMSA that KVM builds at SNP_LAUNCH_FINISH
// for a vCPU on which user space set r: its own bits forced into control
// registers, CPL taken from SS, SNP switched on (Linux arch/x86/kvm/svm:
// svm_set_cr0, svm_set_cr4, svm_set_efer, sev_es_sync_vmsa; CD and NW are
// cleared by the quirk KVM_X86_QUIRK_CD_NW_CLEARED, on unless disabled).
func (r Registers) KVM() (Registers, error) {
	if extra := r.DR7 &^ dr7Fixed; extra != 0 {
		return r, fmt.Errorf("sev: DR7 %#x: KVM refuses a vCPU with breakpoints set (bits %#x)", r.DR7, extra)
	}
	r.EFER |= eferSVME
	r.CR4 |= cr4MCE
	r.CR0 &^= cr0CD | cr0NW
	r.DR7 = dr7Fixed
	r.CPL = uint8(r.SS.Attrib >> 5 & 3)
	r.Features |= FeatureSNP
	for _, table := range []*Segment{&r.GDTR, &r.IDTR} {
		table.Selector, table.Attrib = 0, 0
	}
	return r, nil
}

// VMM names a monitor by the first registers it gives a vCPU.
type VMM string

// The monitors known.
const (
	QEMU VMM = "qemu"
	EC2  VMM = "ec2"
	GCE  VMM = "gce"
)

// ResetRegisters returns the registers with which vmm starts a vCPU in real mode
// at eip under firmware. rdx is what the vCPU finds in RDX: see [VMM.RDX].
func ResetRegisters(vmm VMM, eip uint32, rdx, features uint64) Registers {
	data := Segment{Attrib: 0x93, Limit: 0xffff}
	table := Segment{Limit: 0xffff}
	r := Registers{
		ES: data, SS: data, DS: data, FS: data, GS: data, GDTR: table, IDTR: table,
		CS:   Segment{Selector: 0xf000, Attrib: 0x9b, Limit: 0xffff, Base: uint64(eip &^ 0xffff)},
		LDTR: Segment{Attrib: 0x82, Limit: 0xffff},
		TR:   Segment{Attrib: 0x8b, Limit: 0xffff},
		EFER: eferSVME, CR4: cr4MCE, CR0: 0x10, DR7: dr7Fixed, DR6: resetDR6, RFLAGS: 2,
		RIP: uint64(eip & 0xffff), RDX: rdx, PAT: resetPAT, XCR0: 1, Features: features,
	}
	switch vmm {
	case EC2:
		r.SS.Attrib, r.TR.Attrib = 0x92, 0x83
		if eip == resetVector {
			r.CS.Attrib = 0x9a
		}
	case GCE:
		r.PAT = 0x70106
	default:
		r.MXCSR, r.FCW = resetMXCSR, resetFCW
	}
	return r
}

// RDX returns what a vCPU with the given CPUID signature finds in RDX under
// vmm: QEMU passes the signature, the others leave KVM's reset value. (EC2 left
// zero until about May 2026.)
func (vmm VMM) RDX(signature uint32) uint64 {
	if vmm == QEMU {
		return uint64(signature)
	}
	return 0x600
}

// svsmRegisters are those with which QEMU starts every vCPU in COCONUT-SVSM: 32-bit
// protected mode with flat segments. The published digests have an FCW of zero.
func svsmRegisters(eip uint32, signature uint32) Registers {
	r := ResetRegisters(QEMU, 0, uint64(signature), FeatureSNP)
	flat := Segment{Selector: 16, Attrib: 0xc93, Limit: 0xffffffff}
	r.ES, r.SS, r.DS, r.FS = flat, flat, flat, flat
	r.CS = Segment{Selector: 8, Attrib: 0xc9b, Limit: 0xffffffff}
	r.CR0, r.RIP, r.FCW = 0x11, uint64(eip), 0
	return r
}

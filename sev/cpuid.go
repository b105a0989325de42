package sev

import (
	"encoding/binary"
	"fmt"
)

// CPUIDEntry is what a vCPU is told for one CPUID function and index.
type CPUIDEntry struct{ Function, Index, EAX, EBX, ECX, EDX uint32 }

// CPUID bits that the firmware refuses in a guest's table, because KVM emulates
// what they stand for, or that a guest cannot use (as QEMU's
// sev_snp_adjust_cpuid_features leaves them out).
var refusedCPUID = [...]CPUIDEntry{
	{Function: 1, ECX: 1 << 24},               // TSC deadline timer
	{Function: 7, EBX: 1 << 1, EDX: 63 << 26}, // TSC_ADJUST; speculation control
	{Function: 0x80000008, EBX: 1 << 25},      // VIRT_SSBD
	{Function: 0x80000021, EAX: 1 << 9},       // NO_SMM_CTL_MSR
	{Function: 0x80000026, EAX: ^uint32(0), EBX: ^uint32(0), ECX: ^uint32(0), EDX: ^uint32(0)},
}

const (
	maxCPUIDs  = 64 // functions that a CPUID page holds
	initXSAVE  = 0x240
	shadowBit  = 1 << 7  // leaf 7 ECX
	trackBit   = 1 << 20 // leaf 7 EDX
	sevFeature = 1<<1 | 1<<3 | 1<<4
)

// CPUIDPage returns the CPUID page of a launch (AMD 56860, 7.1 and table 14) with
// what vCPU 0 is told and the C-bit's number. Its contents are not measured: the
// firmware checks them against the processor. Entries of zeros are left out,
// which a guest reads the same way.
func CPUIDPage(entries []CPUIDEntry, cbit int) ([]byte, error) {
	seen := map[CPUIDEntry]bool{}
	var cet bool
	for _, e := range entries {
		seen[CPUIDEntry{Function: e.Function, Index: e.Index}] = true
		cet = cet || e.Function == 7 && e.Index == 0 && (e.ECX&shadowBit != 0 || e.EDX&trackBit != 0)
	}
	// The sizes of CET's state, without which a guest cannot add up its XSAVE area.
	for _, e := range []CPUIDEntry{{0xd, 11, 16, 0, 1, 0}, {0xd, 12, 24, 0, 1, 0}} {
		if cet && !seen[CPUIDEntry{Function: e.Function, Index: e.Index}] {
			entries = append(entries[:len(entries):len(entries)], e)
		}
	}
	p := make([]byte, PageSize)
	n := 0
	for _, e := range entries {
		var xcr0 uint32
		switch {
		case e.Function == 0x8000001f: // what the host reports of reduced address bits, at least one
			e.EAX, e.EBX, e.ECX, e.EDX = sevFeature, uint32(cbit)|max(e.EBX&0xfc0, 1<<6), 0, 0
		case e.Function == 0xd && e.Index <= 1: // as of the first instruction: XCR0 1, XSS 0
			e.EBX, xcr0 = initXSAVE, 1
		}
		for _, r := range refusedCPUID {
			if r.Function == e.Function && e.Index == 0 {
				e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&^r.EAX, e.EBX&^r.EBX, e.ECX&^r.ECX, e.EDX&^r.EDX
			}
		}
		if e.EAX|e.EBX|e.ECX|e.EDX == 0 {
			continue
		}
		if n == maxCPUIDs {
			return nil, fmt.Errorf("CPUID page: more than %d functions", maxCPUIDs)
		}
		at := p[16+48*n:]
		for i, v := range [...]uint32{0: e.Function, 1: e.Index, 2: xcr0, 6: e.EAX, 7: e.EBX, 8: e.ECX, 9: e.EDX} {
			binary.LittleEndian.PutUint32(at[4*i:], v)
		}
		n++
	}
	binary.LittleEndian.PutUint32(p, uint32(n))
	return p, nil
}

package boot

import (
	"encoding/binary"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Control register and EFER bits (Intel SDM vol. 3, 2.5 and 2.2.1).
const (
	cr0PE  = 1 << 0
	cr0ET  = 1 << 4
	cr0PG  = 1 << 31
	cr4PAE = 1 << 5

	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsFixed = 1 << 1 // always one; interrupts off

	// Selectors as the Linux boot protocol wants them (__BOOT_CS, __BOOT_DS);
	// the others do not care.
	selCode = 0x10
	selData = 0x18
	selTSS  = 0x20
)

// flat32 is 32-bit protected mode without paging, flat segments, A20 on: what
// multiboot 0.6.96 section 3.2 and PVH (Xen docs/misc/pvh) ask for.
func flat32(entry memory.GPA) *X86State {
	s := flatSegments(false)
	s.RIP = uint64(entry)
	s.RSP = uint64(bootStack) // Unikraft pushes before it has a stack of its own
	s.CR0 = cr0PE | cr0ET
	return s
}

// flat64 is 64-bit mode with the first 4 GiB mapped one to one (Linux
// Documentation/arch/x86/boot.rst, 64-bit boot protocol).
func flat64(entry memory.GPA) *X86State {
	s := flatSegments(true)
	s.RIP = uint64(entry)
	s.RSP = uint64(bootStack)
	s.RBP = uint64(bootStack)
	s.CR0 = cr0PE | cr0ET | cr0PG
	s.CR3 = uint64(pageTableBase)
	s.CR4 = cr4PAE
	s.EFER = eferLME | eferLMA
	return s
}

func flatSegments(long bool) *X86State {
	code := X86Segment{Selector: selCode, Limit: 0xffffffff, Type: 11, S: true, Present: true, L: long, DB: !long, G: true}
	data := X86Segment{Selector: selData, Limit: 0xffffffff, Type: 3, S: true, Present: true, DB: true, G: true}
	return &X86State{
		RFLAGS: rflagsFixed,
		CS:     code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR:  X86Segment{Selector: selTSS, Limit: 0x67, Type: 11, Present: true},
		GDT: X86Table{Base: uint64(gdtBase), Limit: 6*8 - 1},
		IDT: X86Table{Base: uint64(idtBase), Limit: 0},
	}
}

// gdt is the descriptor table behind the segments of s.
func gdt(s *X86State) []byte {
	b := make([]byte, 6*8) // null, unused, code, data, TSS (two slots in 64-bit mode)
	for _, seg := range []X86Segment{s.CS, s.DS, s.TR} {
		binary.LittleEndian.PutUint64(b[seg.Selector:], seg.descriptor())
	}
	return b
}

// descriptor is the segment as a GDT entry (Intel SDM vol. 3, 3.4.5).
func (s X86Segment) descriptor() uint64 {
	limit := uint64(s.Limit)
	if s.G {
		limit >>= 12
	}
	bit := func(b bool, n uint) uint64 {
		if b {
			return 1 << n
		}
		return 0
	}
	return limit&0xffff | s.Base&0xffffff<<16 | uint64(s.Type&15)<<40 | bit(s.S, 44) | uint64(s.DPL&3)<<45 |
		bit(s.Present, 47) | limit>>16&15<<48 | bit(s.AVL, 52) | bit(s.L, 53) | bit(s.DB, 54) | bit(s.G, 55) | s.Base>>24&0xff<<56
}

// identityTables maps the first 4 GiB one to one with 2 MiB pages, which every
// 64-bit processor has.
func identityTables() []byte {
	const page, tables, present, writable, large = 4096, 4, 1, 2, 1 << 7
	b := make([]byte, (2+tables)*page)
	put := func(i int, v uint64) { binary.LittleEndian.PutUint64(b[i*8:], v) }
	put(0, uint64(pageTableBase)+page|present|writable)
	for i := range tables {
		put(512+i, uint64(pageTableBase)+uint64(2+i)*page|present|writable)
	}
	for i := range tables * 512 {
		put(2*512+i, uint64(i)<<21|present|writable|large)
	}
	return b
}

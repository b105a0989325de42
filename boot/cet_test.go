package boot

import (
	"encoding/binary"
	"strings"
	"testing"
)

// A preset shadow stack is pages that are dirty and not writable, in tables that
// still map everything one to one, with a busy token where SSP points.
func TestShadowStackPlan(t *testing.T) {
	p := mustPlan(t, mustOpen(t, goodELF64().build()), Options{})
	if err := p.SetShadowStack(); err != nil {
		t.Fatal(err)
	}
	m := loaded(t, p)
	word := func(gpa uint64) uint64 { return binary.LittleEndian.Uint64(guestBytes(t, m, gpa, 8)) }
	leaf := func(va uint64) uint64 { // the entry that maps an address
		table := p.X86.CR3
		for shift := 39; ; shift -= 9 {
			e := word(table + va>>shift&511*8)
			if shift == 12 || shift == 21 && e&0x80 != 0 {
				return e
			}
			table = e &^ 0xfff
		}
	}
	for va, want := range map[uint64]uint64{
		0: 3, 0xf000: 0xf003, 0x10000: 0x10061, 0x1f000: 0x1f061, 0x20000: 0x20003, 0x100000: 0x100003, 0x1ff000: 0x1ff003,
		0x200000: 0x200083, 0xffe00000: 0xffe00083,
	} {
		if got := leaf(va); got != want {
			t.Errorf("%#x is mapped by %#x, want %#x", va, got, want)
		}
	}
	x := p.X86
	if x.SSP != 0x1fff8 || word(x.SSP) != x.SSP|1 {
		t.Errorf("SSP %#x, token %#x", x.SSP, word(x.SSP))
	}
	if x.SCET != 1 || x.CR4>>23&1 != 1 || x.CR0>>16&1 != 1 {
		t.Errorf("S_CET %#x, cr0 %#x, cr4 %#x", x.SCET, x.CR0, x.CR4)
	}
}

func TestIBTPlan(t *testing.T) {
	p := mustPlan(t, mustOpen(t, goodELF64().build()), Options{})
	if err := p.SetIBT(); err != nil || p.X86.SCET != 0x14 || p.X86.SSP != 0 || p.X86.CR4>>23&1 != 1 || p.X86.CR0>>16&1 != 1 {
		t.Errorf("%+v, %v", p.X86, err)
	}
	p = mustPlan(t, mustOpen(t, goodMultiboot().build()), Options{})
	for _, err := range []error{p.SetIBT(), p.SetShadowStack()} {
		if err == nil || !strings.Contains(err.Error(), "multiboot") || p.X86.CR4 != 0 {
			t.Errorf("an image with a 32-bit entry: %v", err)
		}
	}
}

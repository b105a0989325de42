package complete

import (
	"github.com/gvmm/gvmm/vmm/memory"
)

// Page-table entry bits (SDM vol. 3, 4.5).
const (
	ptP  = 1 << 0
	ptW  = 1 << 1
	ptU  = 1 << 2
	ptA  = 1 << 5
	ptD  = 1 << 6
	ptPS = 1 << 7
	ptNX = 1 << 63
)

// Page-fault error code bits (SDM vol. 3, 4.7).
const (
	pfP    = 1 << 0
	pfW    = 1 << 1
	pfU    = 1 << 2
	pfRSVD = 1 << 3
	pfI    = 1 << 4
)

const addrMask = 1<<52 - 1

type access uint8

const (
	accRead access = iota
	accWrite
	accFetch
)

// pte is one entry of the way to a page, for setting its accessed and dirty bits.
type pte struct {
	at    []byte
	value uint64
}

// translate walks the guest's page tables for the page of lin and returns the
// physical address. On false either c.fault is a #PF or c.why is set.
func (c *Completer) translate(lin uint64, acc access) (uint64, bool) {
	if c.cpu.CR0&cr0PG == 0 {
		return lin & 0xffffffff, true
	}
	// A guest that changes an entry under the walk makes it start over; after
	// a few rounds the translation is good enough without the accessed bits.
	for try := 0; ; try++ {
		var path [5]pte
		gpa, n, ok := c.walk(lin, acc, &path)
		if !ok {
			return 0, false
		}
		done := true
		for i, e := range path[:n] {
			want := e.value | ptA
			if i == n-1 && acc == accWrite {
				want |= ptD
			}
			pdpte := i == 0 && c.cpu.CR4&cr4PAE != 0 && c.cpu.EFER&eferLMA == 0 // has no such bits
			done = done && (pdpte || want == e.value || swapEntry(e.at, e.value, want))
		}
		if done || try == 8 {
			return gpa, true
		}
	}
}

// walk reads the way to the page of lin, top down, and checks the access.
func (c *Completer) walk(lin uint64, acc access, path *[5]pte) (gpa uint64, n int, ok bool) {
	cpu := c.cpu
	levels, size, bits, base := 2, 4, 10, uint64(0xfffff000)
	long := cpu.EFER&eferLMA != 0
	switch {
	case long && cpu.CR4&cr4LA57 != 0:
		levels, size, bits, base = 5, 8, 9, addrMask&^0xfff
	case long:
		levels, size, bits, base = 4, 8, 9, addrMask&^0xfff
	case cpu.CR4&cr4PAE != 0:
		levels, size, bits, base = 3, 8, 9, 0xffffffe0
	}
	table := cpu.CR3 & base
	reserved := uint64(0)
	if size == 8 {
		reserved = addrMask &^ (1<<c.guest.physBits - 1)
		if cpu.EFER&eferNXE == 0 {
			reserved |= ptNX
		}
		if !long {
			reserved |= 0x7ff << 52
		}
	}
	code := uint32(0)
	switch {
	case acc == accWrite:
		code = pfW
	case acc == accFetch && (cpu.EFER&eferNXE != 0 && size == 8 || cpu.CR4&cr4SMEP != 0):
		code = pfI
	}
	user := cpu.CPL == 3
	if user {
		code |= pfU
	}
	w, u, nx := true, true, false
	for level := levels; ; level-- {
		shift := 12 + bits*(level-1)
		index := lin >> shift & (1<<bits - 1)
		at := c.ram(table+index*uint64(size), size)
		if at == nil {
			c.why = "a page table is outside guest RAM"
			return 0, 0, false
		}
		e := loadEntry(at)
		path[n] = pte{at, e}
		n++
		if e&ptP == 0 {
			return c.pageFault(lin, code)
		}
		pdpte := levels == 3 && level == 3 // of PAE paging
		bad, large := e&reserved, false
		switch {
		case pdpte:
			bad |= e & (ptNX | 0x1e6)
		case e&ptPS == 0 || level == 1:
		case size == 4:
			if large = cpu.CR4&cr4PSE != 0; large {
				bad |= e & (1 << 21)
			}
		case level == 2 || level == 3:
			large = true
			bad |= e & (1<<shift - 1) &^ 0x1fff
		default:
			bad |= ptPS
		}
		if bad != 0 {
			return c.pageFault(lin, code|pfP|pfRSVD)
		}
		w = w && (e&ptW != 0 || pdpte)
		u = u && (e&ptU != 0 || pdpte)
		nx = nx || size == 8 && e&ptNX != 0
		if level > 1 && !large {
			table = e & addrMask &^ 0xfff
			continue
		}
		in := uint64(1)<<shift - 1
		gpa = e&addrMask&^in | lin&in
		if large && size == 4 { // PSE-36
			gpa = e&0xffc00000 | e>>13&0xff<<32 | lin&in
		}
		break
	}
	denied := user && !u
	if acc == accFetch {
		denied = denied || nx || !user && u && cpu.CR4&cr4SMEP != 0
	} else {
		denied = denied || acc == accWrite && !w && (user || cpu.CR0&cr0WP != 0) ||
			!user && u && cpu.CR4&cr4SMAP != 0 && cpu.RFLAGS&flagAC == 0
	}
	if denied {
		return c.pageFault(lin, code|pfP)
	}
	return gpa, n, true
}

func (c *Completer) pageFault(lin uint64, code uint32) (uint64, int, bool) {
	c.raiseErr(vecPF, code)
	c.fault.CR2 = lin
	return 0, 0, false
}

// ram returns n bytes of guest RAM, nil when they are not in one region of it.
// It does what [memory.Guest.Slice] does without making an error value.
func (c *Completer) ram(gpa uint64, n int) []byte {
	regions := c.mem.Regions()
	for i := range regions {
		if r := &regions[i]; r.Contains(memory.GPA(gpa), uint64(n)) {
			off := gpa - uint64(r.Base)
			return r.Host()[off : off+uint64(n) : off+uint64(n)]
		}
	}
	return nil
}

package boot

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// CET's registers (Intel SDM vol. 1, 17.1.2; vol. 3, 2.5).
const (
	cr0WP   = 1 << 16
	cr4CET  = 1 << 23
	scetSHS = 1 << 0
	scetIBT = 1<<2 | 1<<4 // ENDBR_EN, NO_TRACK_EN: compilers mark jump tables notrack
)

// SetIBT starts the guest with supervisor indirect branch tracking on.
func (p *Plan) SetIBT() error {
	if err := p.needs64(); err != nil {
		return err
	}
	p.X86.CR0 |= cr0WP
	p.X86.CR4 |= cr4CET
	p.X86.SCET |= scetIBT
	return nil
}

// SetShadowStack starts the guest on a supervisor shadow stack: pages that are
// dirty but not writable (Intel SDM vol. 3, 4.6), so the first 2 MiB are mapped
// by 4 KiB pages, with a busy token at the top where SSP and PL0_SSP point.
func (p *Plan) SetShadowStack() error {
	if err := p.needs64(); err != nil {
		return err
	}
	const (
		page, present, writable, accessed, dirty = 4096, 1, 2, 1 << 5, 1 << 6
		token                                    = uint64(shadowStackEnd) - 8
	)
	b := identityTables()
	table := uint64(pageTableBase) + uint64(len(b))
	binary.LittleEndian.PutUint64(b[2*page:], table|present|writable)
	for at := uint64(0); at < 512*page; at += page {
		entry := at | present | writable
		if at >= uint64(shadowStackBase) && at < uint64(shadowStackEnd) {
			entry = at | present | accessed | dirty
		}
		b = binary.LittleEndian.AppendUint64(b, entry)
	}
	p.Regions = slices.DeleteFunc(p.Regions, func(r Region) bool { return r.Base == pageTableBase })
	p.addBytes("page tables", pageTableBase, b)
	p.addBytes("shadow stack token", shadowStackEnd-8, binary.LittleEndian.AppendUint64(nil, token|1))
	p.X86.CR0 |= cr0WP
	p.X86.CR4 |= cr4CET
	p.X86.SCET |= scetSHS
	p.X86.SSP = token
	return p.check()
}

func (p *Plan) needs64() error {
	if p.Protocol != ProtocolLinux64 {
		return fmt.Errorf("the image is entered by %s, in 32-bit mode without paging; a preset needs the 64-bit entry: an ELF64 image without multiboot header and PVH note", p.Protocol)
	}
	return nil
}

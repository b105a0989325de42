package boot

import (
	"bytes"
	"fmt"
	"io"

	"github.com/gvmm/gvmm/vmm/memory"
)

// SNP is what the plan of an SEV-SNP launch depends on besides the image.
type SNP struct {
	CBit int // number of the page table bit that makes memory private
}

// What an SNP guest finds in low memory, in the place of the plain layout's free
// pages. The ACPI tables move down because Linux maps what no e820 entry names as
// shared memory, and because it must not find launched pages in the ROM area:
// before 6.9 it validates 0xc0000 to 0xfffff itself and ends when that changes
// nothing; later ones leave the area alone (arch/x86/mm/mem_encrypt_amd.c).
const (
	snpSecrets  memory.GPA = 0x1000
	snpCPUID    memory.GPA = 0x2000
	snpBlob     memory.GPA = 0x3000 // setup_data, and the blob it points to
	snpFree     memory.GPA = 0x4000
	snpACPIBase memory.GPA = 0x80000
	snpACPIEnd             = snpACPIBase + acpiRoom
	snpLowEnd   memory.GPA = 0xa0000 // whole pages of low memory end here

	maxMemorySNP = 512 << 30 // bytes: what one page directory pointer table maps

	setupCCBlob = 7 // SETUP_CC_BLOB (Linux asm/setup_data.h)
	zpSetupData = 0x250
	ccBlobMagic = 0x45444d41 // "AMDE"
)

// directSNP returns the image as an SNP guest is entered without firmware: in
// 64-bit mode, because only there page tables can make memory private and shared.
//
// What Linux wants there (arch/x86/boot/compressed/head_64.S and sev.c; for
// vmlinux arch/x86/kernel/head_64.S and arch/x86/boot/startup): RSI at the zero
// page; an identity map with the C-bit set, on which it runs until it has tables
// of its own; no GHCB, which it negotiates with the MSR protocol and takes from
// its own memory; no EFI, in whose absence it looks for the blob in setup_data;
// nothing on the command line. The CPUID table is there before its first CPUID.
func (img *Image) directSNP(o *Options) (*Image, error) {
	if img.entry64 != 0 {
		direct := *img
		img = &direct
		img.Protocol, img.Entry = ProtocolLinux64, img.entry64
	}
	if img.Protocol != ProtocolLinux64 {
		return nil, fmt.Errorf("an image entered by %s starts in 32-bit mode without paging, where a guest can neither share memory nor handle #VC: "+
			"an SEV-SNP launch takes a Linux bzImage or vmlinux, an SNP-aware ELF64 without multiboot header and PVH note, or --firmware", img.Protocol)
	}
	if o.Memory > maxMemorySNP {
		return nil, fmt.Errorf("memory: %s: an SEV-SNP guest without firmware has at most %s", humanSize(o.Memory), humanSize(maxMemorySNP))
	}
	o.acpi = snpACPIBase
	return img, nil
}

// addSNP completes the zero page and page tables of an SNP guest, and adds what
// only such a guest has.
func (p *Plan) addSNP(snp *SNP, zeroPage, tables []byte) {
	p.X86APs = resetState()
	snp.private(tables)
	put64(zeroPage, zpSetupData, uint64(snpBlob))
	put64(zeroPage, zpRSDP, uint64(snpACPIBase))
	putE820(zeroPage, snpE820(p.RAM))
	blob := make([]byte, 0x48)
	put32(blob, 8, setupCCBlob) // struct cc_setup_data
	put32(blob, 12, 4)
	put32(blob, 16, uint32(snpBlob)+0x20)
	put32(blob, 0x20, ccBlobMagic) // struct cc_blob_sev_info, its version 0
	put64(blob, 0x28, uint64(snpSecrets))
	put32(blob, 0x30, pageSize)
	put64(blob, 0x38, uint64(snpCPUID))
	put32(blob, 0x40, pageSize)
	p.addBytes("CC blob", snpBlob, blob)
	none := bytes.NewReader(nil)
	p.Regions = append(p.Regions,
		Region{memory.Range{Base: snpSecrets, Size: pageSize}, "secrets", Secrets, none},
		Region{memory.Range{Base: snpCPUID, Size: pageSize}, "CPUID table", CPUID, none})
}

// snpE820 is the memory map of an SNP guest: what it must not take for free
// memory, or map as shared, has an entry of its own.
func snpE820(ram []memory.Range) []e820Entry {
	const reserved, acpi = 2, 3
	var m []e820Entry
	at := memory.GPA(0)
	for _, e := range []struct {
		end  memory.GPA
		kind uint32
	}{{snpSecrets, e820RAM}, {snpFree, reserved}, {snpACPIBase, e820RAM}, {snpACPIEnd, acpi}, {lowRAMEnd, e820RAM}} {
		m = append(m, e820Entry{memory.Range{Base: at, Size: uint64(e.end - at)}, e.kind})
		at = e.end
	}
	return append(m, e820(ram)[1:]...)
}

// private sets the C-bit in page tables made by [identityTables], and maps what
// they leave out of the first 512 GiB with 1 GiB pages.
func (snp *SNP) private(tables []byte) {
	const present, writable, large = 1, 2, 1 << 7
	for i := uint64(4); i < 512; i++ {
		put64(tables, int(pageSize+8*i), i<<30|present|writable|large)
	}
	for at := 0; at < len(tables); at += 8 {
		if e := u64(tables, at); e&present != 0 {
			put64(tables, at, e|1<<snp.CBit)
		}
	}
}

// launchAll turns the sorted regions into whole pages and names the pages between
// them, so that every page of RAM is launched once. The hole between 640 KiB and
// 1 MiB, which is no RAM to the guest, is not.
func (p *Plan) launchAll() {
	var out []Region
	areas := []memory.Range{{Base: 0, Size: uint64(snpLowEnd)}, {Base: highRAMBase, Size: uint64(p.RAM[0].End() - highRAMBase)}}
	next := 0
	for _, area := range append(areas, p.RAM[1:]...) {
		at := area.Base
		fill := func(to memory.GPA) {
			if to > at {
				out = append(out, Region{memory.Range{Base: at, Size: uint64(to - at)}, "free memory", Zero, bytes.NewReader(nil)})
			}
		}
		for ; next < len(p.Regions) && p.Regions[next].Base < area.End(); next++ {
			r := p.Regions[next]
			size := uint64(r.Data.Size())
			if r.Kind != Normal {
				size = r.Size
			}
			lo, hi := r.Base&^(pageSize-1), memory.GPA(roundUp(uint64(r.Base)+size, pageSize))
			switch {
			case size == 0:
				continue
			case lo < at: // its first page is the last one of the region before
				last := &out[len(out)-1]
				last.Data.(*pages).parts = append(last.Data.(*pages).parts, r)
				last.Name += ", " + r.Name
				last.Size = max(last.Size, uint64(hi-last.Base))
				at = last.End()
				continue
			}
			fill(lo)
			if r.Kind == Normal {
				r.Data = &pages{at: lo, parts: []Region{r}}
			}
			r.Range = memory.Range{Base: lo, Size: uint64(hi - lo)}
			out = append(out, r)
			at = hi
		}
		fill(area.End())
	}
	p.Regions = out
}

// pages are regions that share pages, as one blob from at on: zeros where none of
// them has bytes.
type pages struct {
	at    memory.GPA
	parts []Region // ascending
}

func (b *pages) Size() int64 {
	last := b.parts[len(b.parts)-1]
	return int64(last.Base-b.at) + last.Data.Size()
}

func (b *pages) ReadAt(p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), b.Size()-off))
	clear(p[:n])
	for _, r := range b.parts {
		start := int64(r.Base - b.at)
		from, to := max(off, start), min(off+n, start+r.Data.Size())
		if from >= to {
			continue
		}
		if k, err := r.Data.ReadAt(p[from-off:to-off], from-start); int64(k) < to-from {
			return int(from-off) + k, err
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

package boot

import "github.com/gvmm/gvmm/vmm/memory"

// pvhInfo builds hvm_start_info, version 1, with its module list and memory
// map (Xen public/arch-x86/hvm/start_info.h, docs/misc/pvh).
func pvhInfo(ram []memory.Range, initrd *memory.Range) []byte {
	const (
		magic  = 0x336ec578 // "xEn3" with the top bit of the E set
		module = 0x40       // hvm_modlist_entry, 32 bytes
		mmap   = 0x60       // hvm_memmap_table_entry, 24 bytes each
	)
	entries := e820(ram)
	b := make([]byte, mmap+24*len(entries))
	put32(b, 0, magic)
	put32(b, 4, 1) // version: the memory map fields are there
	if initrd != nil {
		put32(b, 12, 1)
		put64(b, 16, uint64(pvhInfoBase)+module)
		put64(b, module, uint64(initrd.Base))
		put64(b, module+8, initrd.Size)
	}
	put64(b, 24, uint64(cmdlineBase))
	put64(b, 32, uint64(acpiBase))
	put64(b, 40, uint64(pvhInfoBase)+mmap)
	put32(b, 48, uint32(len(entries)))
	for i, e := range entries {
		p := mmap + 24*i
		put64(b, p, uint64(e.Base))
		put64(b, p+8, e.Size)
		put32(b, p+16, e.Type)
	}
	return b
}

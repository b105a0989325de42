package boot

import (
	"fmt"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Multiboot Specification 0.6.96.
const (
	multibootSearch      = 8192 // the header lies in the first 8 KiB (3.1)
	multibootHeaderMagic = 0x1badb002
	multibootMagic       = 0x2badb002 // in EAX at entry (3.2)

	multibootAddresses = 1 << 16   // header flag: the header says where to load
	multibootRequired  = 0xffff    // header flags a loader must understand ...
	multibootKnown     = 1 | 2 | 4 // ... and those that are: page alignment, memory map, video mode
	multibootLoader    = "gvmm"

	// mbi flags (3.3)
	mbiMemory, mbiCmdline, mbiModules, mbiMap, mbiLoader = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
)

type multibootHeader struct {
	offset uint64 // of the header in the file
	flags  uint32
	// Valid with multibootAddresses (3.1.3).
	headerAddr, loadAddr, loadEnd, bssEnd, entry uint32
}

func (h *multibootHeader) hasAddresses() bool { return h.flags&multibootAddresses != 0 }

func (h *multibootHeader) String() string {
	return fmt.Sprintf("multiboot header at file offset %#x, flags %#x", h.offset, h.flags)
}

// check refuses a header that asks for what gvmm does not give: the first 16
// flags must be understood (3.1.2).
func (h *multibootHeader) check() error {
	if unknown := h.flags & multibootRequired &^ multibootKnown; unknown != 0 {
		return fmt.Errorf("%v: bits %#x ask for something no loader knows", h, unknown)
	}
	return nil
}

// findMultiboot looks for a multiboot header in the first bytes of a file.
func findMultiboot(head []byte) *multibootHeader {
	head = head[:min(len(head), multibootSearch)]
	for off := 0; off+12 <= len(head); off += 4 {
		flags := u32(head, off+4)
		if u32(head, off) != multibootHeaderMagic || multibootHeaderMagic+flags+u32(head, off+8) != 0 {
			continue
		}
		h := &multibootHeader{offset: uint64(off), flags: flags}
		if h.hasAddresses() {
			if off+32 > len(head) {
				continue // the address fields are not in the file
			}
			h.headerAddr, h.loadAddr, h.loadEnd = u32(head, off+12), u32(head, off+16), u32(head, off+20)
			h.bssEnd, h.entry = u32(head, off+24), u32(head, off+28)
		}
		return h
	}
	return nil
}

// openMultiboot takes the image's place from the addresses in its header.
func (img *Image) openMultiboot(h *multibootHeader) error {
	img.Format, img.Protocol = FormatMultiboot, ProtocolMultiboot
	img.Notes = append(img.Notes, h.String())
	if err := h.check(); err != nil {
		return err
	}
	if !h.hasAddresses() {
		return fmt.Errorf("%v: not an ELF file, and the header does not say where to load it (flag bit 16)", h)
	}
	if h.headerAddr < h.loadAddr || uint64(h.headerAddr-h.loadAddr) > h.offset {
		return fmt.Errorf("%v: header address %#x and load address %#x put the start of the image before the start of the file", h, h.headerAddr, h.loadAddr)
	}
	off := h.offset - uint64(h.headerAddr-h.loadAddr)
	n := uint64(img.size) - off
	if h.loadEnd != 0 {
		if h.loadEnd < h.loadAddr {
			return fmt.Errorf("%v: load end %#x below load address %#x", h, h.loadEnd, h.loadAddr)
		}
		n = uint64(h.loadEnd - h.loadAddr)
	}
	if err := inFile(img.size, off, n); err != nil {
		return fmt.Errorf("%v: %w", h, err)
	}
	size := n
	if h.bssEnd != 0 {
		if uint64(h.bssEnd) < uint64(h.loadAddr)+n {
			return fmt.Errorf("%v: bss end %#x below load end %#x", h, h.bssEnd, uint64(h.loadAddr)+n)
		}
		size = uint64(h.bssEnd - h.loadAddr)
	}
	if size == 0 {
		return fmt.Errorf("%v: nothing to load", h)
	}
	img.Entry = memory.GPA(h.entry)
	img.Segments = []Segment{{
		Range:  memory.Range{Base: memory.GPA(h.loadAddr), Size: size},
		Offset: off, FileSize: n, Perm: "rwx",
	}}
	if err := img.checkSegments(); err != nil {
		return err
	}
	return img.checkEntry()
}

// multibootInfo builds the information structure (3.3) with everything it
// points to but the command line.
func multibootInfo(ram []memory.Range, initrd *memory.Range) []byte {
	const (
		module = 0x80 // mods entry, 16 bytes
		strs   = 0xa0 // names
		mmap   = 0x100
	)
	entries := e820(ram)
	b := make([]byte, mmap+24*len(entries))
	at := func(off int) uint32 { return uint32(multibootBase) + uint32(off) }
	flags := uint32(mbiMemory | mbiCmdline | mbiMap | mbiLoader)
	put32(b, 4, uint32(lowRAMEnd>>10))
	put32(b, 8, uint32((ram[0].Size-uint64(highRAMBase))>>10))
	put32(b, 16, uint32(cmdlineBase))
	if initrd != nil {
		flags |= mbiModules
		put32(b, 20, 1)
		put32(b, 24, at(module))
		put32(b, module, uint32(initrd.Base))
		put32(b, module+4, uint32(initrd.End()))
		put32(b, module+8, at(strs+8))
		copy(b[strs+8:], "initrd\x00")
	}
	put32(b, 44, uint32(24*len(entries)))
	put32(b, 48, at(mmap))
	put32(b, 64, at(strs))
	copy(b[strs:], multibootLoader+"\x00")
	for i, e := range entries {
		p := mmap + 24*i
		put32(b, p, 20) // the size field does not count itself
		put64(b, p+4, uint64(e.Base))
		put64(b, p+12, e.Size)
		put32(b, p+20, e.Type)
	}
	put32(b, 0, flags)
	return b
}

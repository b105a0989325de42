package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/gvmm/gvmm/vmm/memory"
)

// ELF constants (System V ABI, chapters 4 and 5).
const (
	elfExec, elfDyn       = 2, 3
	emI386, emAMD64       = 3, 62
	emARM64               = 183
	ptLoad, ptNote        = 1, 4
	elfPhdr32, elfPhdr64  = 32, 56
	elfShdr32, elfShdr64  = 40, 64
	maxSectionNames       = 1 << 20 // bytes read of names and headers, each
	maxNotes              = 1 << 16 // bytes read of a note segment
	noteXenPhys32         = 18      // XEN_ELFNOTE_PHYS32_ENTRY
	noteXenGuestOS        = 6       // XEN_ELFNOTE_GUEST_OS
	unikraftSectionPrefix = ".uk_"
	unikraftSectionParams = ".uk_libparam"
	unikraftBanner        = "Unikraft " // in every image: the version it prints
	maxBannerScan         = 16 << 20    // bytes of the file searched for it
	linuxSection          = ".altinstructions"
)

type elfHeader struct {
	is64         bool
	kind         uint16
	machine      uint16
	entry        uint64
	phoff, shoff uint64
	phentsize    uint16
	phnum        uint16
	shentsize    uint16
	shnum        uint16
	shstrndx     uint16
}

type elfSegment struct {
	kind                             uint32
	flags                            uint32
	off, vaddr, paddr, filesz, memsz uint64
	header                           uint64 // file offset of the program header
}

func parseELFHeader(b []byte) (elfHeader, error) {
	var h elfHeader
	if len(b) < 52 {
		return h, fmt.Errorf("ELF header: the file ends after %d bytes: it is truncated", len(b))
	}
	if b[5] != 1 {
		return h, fmt.Errorf("ELF header: byte order %d at offset 5: only little-endian (1) guests", b[5])
	}
	h.kind, h.machine = u16(b, 16), u16(b, 18)
	switch b[4] {
	case 1:
		h.entry, h.phoff, h.shoff = uint64(u32(b, 24)), uint64(u32(b, 28)), uint64(u32(b, 32))
		b = b[42:]
	case 2:
		if len(b) < 64 {
			return h, fmt.Errorf("ELF header: the file ends after %d bytes: it is truncated", len(b))
		}
		h.is64 = true
		h.entry, h.phoff, h.shoff = u64(b, 24), u64(b, 32), u64(b, 40)
		b = b[54:]
	default:
		return h, fmt.Errorf("ELF header: class %d at offset 4: neither 32-bit (1) nor 64-bit (2)", b[4])
	}
	h.phentsize, h.phnum, h.shentsize, h.shnum, h.shstrndx = u16(b, 0), u16(b, 2), u16(b, 4), u16(b, 6), u16(b, 8)
	return h, nil
}

// openELF checks an ELF image and chooses its protocol.
func (img *Image) openELF(head []byte, mb *multibootHeader) error {
	h, err := parseELFHeader(head)
	if err != nil {
		return err
	}
	img.Format = FormatELF32
	if h.is64 {
		img.Format = FormatELF64
	}
	switch {
	case h.machine == emARM64:
		return errors.New("an arm64 ELF file: give the Image that was made from it, or make one with `objcopy -O binary`")
	case h.machine == emAMD64 && h.is64, h.machine == emI386 && !h.is64:
	default:
		return fmt.Errorf("ELF header: machine %d at offset 18 with class %d: only x86 (3), x86-64 (62) and arm64 (183) guests", h.machine, head[4])
	}
	if h.kind != elfExec && h.kind != elfDyn {
		return fmt.Errorf("ELF header: type %d at offset 16 is no executable (2 or 3): link it", h.kind)
	}
	img.readSections(h)
	// The multiboot header's own addresses overrule the ELF header (3.1.2).
	if mb != nil && mb.hasAddresses() {
		return img.openMultiboot(mb)
	}
	segments, err := img.readSegments(h)
	if err != nil {
		return err
	}
	var pvh uint64
	var hasPVH bool
	for _, s := range segments {
		if s.kind == ptNote {
			img.readNotes(s, func(owner string, kind uint32, desc []byte) {
				switch {
				case owner == "Linux", owner == "Xen" && kind == noteXenGuestOS && strings.TrimRight(string(desc), "\x00") == "linux":
					img.Linux = true
				case owner == "Xen" && kind == noteXenPhys32 && len(desc) >= 4:
					hasPVH, pvh = true, uint64(u32(desc, 0))
					if len(desc) >= 8 {
						pvh = u64(desc, 0)
					}
				}
			})
		}
	}
	entry, err := img.loadSegments(segments, h.entry)
	if err != nil {
		return err
	}
	img.Entry = memory.GPA(entry)
	// A PVH note says how the image wants to be entered; without one a 64-bit
	// image is entered as Firecracker does, and only multiboot is left for a
	// 32-bit one. An ELF64 with a multiboot header starts in 32-bit mode.
	switch {
	case hasPVH:
		if img.Linux && h.is64 {
			img.entry64 = img.Entry
		}
		img.Protocol, img.Entry = ProtocolPVH, memory.GPA(pvh)
		img.Notes = append(img.Notes, fmt.Sprintf("Xen PHYS32_ENTRY %#x", pvh))
	case mb != nil:
		img.Protocol = ProtocolMultiboot
		img.Format = FormatMultiboot
		img.Notes = append(img.Notes, mb.String())
		if err := mb.check(); err != nil {
			return err
		}
	case h.is64:
		img.Protocol = ProtocolLinux64
	default:
		return errors.New("a 32-bit ELF without a multiboot header in its first 8 KiB and without a PVH note: nothing says how to enter it")
	}
	return img.checkEntry()
}

// readSegments reads the program headers and checks that what they name lies
// in the file.
func (img *Image) readSegments(h elfHeader) ([]elfSegment, error) {
	want := uint16(elfPhdr32)
	if h.is64 {
		want = elfPhdr64
	}
	if h.phnum == 0 {
		return nil, errors.New("ELF header: no program headers, nothing to load")
	}
	if h.phentsize != want {
		return nil, fmt.Errorf("ELF header: program headers of %d bytes, want %d", h.phentsize, want)
	}
	table, err := readAt(img.src, img.size, h.phoff, uint64(h.phnum)*uint64(want))
	if err != nil {
		return nil, fmt.Errorf("ELF program headers: %w", err)
	}
	segments := make([]elfSegment, 0, h.phnum)
	for i := range int(h.phnum) {
		b := table[i*int(want):]
		s := elfSegment{kind: u32(b, 0), header: h.phoff + uint64(i)*uint64(want)}
		if h.is64 {
			s.flags = u32(b, 4)
			s.off, s.vaddr, s.paddr, s.filesz, s.memsz = u64(b, 8), u64(b, 16), u64(b, 24), u64(b, 32), u64(b, 40)
		} else {
			s.off, s.vaddr, s.paddr = uint64(u32(b, 4)), uint64(u32(b, 8)), uint64(u32(b, 12))
			s.filesz, s.memsz, s.flags = uint64(u32(b, 16)), uint64(u32(b, 20)), u32(b, 24)
		}
		if s.kind != ptNote && (s.kind != ptLoad || s.memsz == 0) {
			continue // a PT_LOAD of no bytes is what Unikraft's linker script leaves behind
		}
		if err := inFile(img.size, s.off, s.filesz); err != nil {
			return nil, fmt.Errorf("ELF segment %d (program header at offset %#x): %w", i, s.header, err)
		}
		if s.kind == ptLoad {
			if s.filesz > s.memsz {
				return nil, fmt.Errorf("ELF segment %d (program header at offset %#x): %d bytes in the file but %d in memory", i, s.header, s.filesz, s.memsz)
			}
			if s.paddr+s.memsz < s.paddr {
				return nil, fmt.Errorf("ELF segment %d (program header at offset %#x): %d bytes at %#x wrap around the address space", i, s.header, s.memsz, s.paddr)
			}
		}
		segments = append(segments, s)
	}
	return segments, nil
}

// loadSegments makes the image's segments of the loadable ones and returns the
// physical address of the entry point, which may be given as a virtual one.
func (img *Image) loadSegments(segments []elfSegment, entry uint64) (uint64, error) {
	physical := entry
	for _, s := range segments {
		if s.kind != ptLoad {
			continue
		}
		img.Segments = append(img.Segments, Segment{
			Range:    memory.Range{Base: memory.GPA(s.paddr), Size: s.memsz},
			Offset:   s.off,
			FileSize: s.filesz,
			Perm:     perm(s.flags),
		})
		if entry >= s.vaddr && entry-s.vaddr < s.memsz {
			physical = entry - s.vaddr + s.paddr
		}
	}
	if err := img.checkSegments(); err != nil {
		return 0, err
	}
	for _, s := range img.Segments {
		if s.Contains(memory.GPA(entry), 1) {
			return entry, nil // Linux' vmlinux gives the physical address
		}
	}
	return physical, nil
}

func perm(flags uint32) string {
	p := []byte("---")
	for i, c := range "rwx" {
		if flags&(4>>i) != 0 {
			p[i] = byte(c)
		}
	}
	return string(p)
}

// readNotes calls f for the notes of a segment, until one is malformed: notes
// are hints, an image without them may still boot.
func (img *Image) readNotes(s elfSegment, f func(owner string, kind uint32, desc []byte)) {
	b, err := readAt(img.src, img.size, s.off, min(s.filesz, maxNotes))
	if err != nil {
		return
	}
	for len(b) >= 12 {
		nameLen, descLen, kind := uint64(u32(b, 0)), uint64(u32(b, 4)), u32(b, 8)
		desc := 12 + roundUp(nameLen, 4)
		end := desc + descLen
		if end > uint64(len(b)) {
			return
		}
		f(strings.TrimRight(string(b[12:12+nameLen]), "\x00"), kind, b[desc:end])
		b = b[min(roundUp(end, 4), uint64(len(b))):]
	}
}

// readSections looks for Unikraft's marks in the section names. Sections are
// not needed for booting, so damaged ones are as good as none.
func (img *Image) readSections(h elfHeader) {
	want := uint64(elfShdr32)
	if h.is64 {
		want = elfShdr64
	}
	if uint64(h.shentsize) != want || h.shstrndx >= h.shnum {
		// Stripped of its sections: what is left is the banner, and library
		// parameters must be taken for possible.
		img.Unikraft = img.scan(unikraftBanner)
		img.LibParams = img.Unikraft
		return
	}
	table, err := readAt(img.src, img.size, h.shoff, uint64(h.shnum)*want)
	if err != nil {
		return
	}
	place := func(i uint16) (off, size uint64) {
		b := table[uint64(i)*want:]
		if h.is64 {
			return u64(b, 24), u64(b, 32)
		}
		return uint64(u32(b, 16)), uint64(u32(b, 20))
	}
	off, size := place(h.shstrndx)
	names, err := readAt(img.src, img.size, off, min(size, maxSectionNames))
	if err != nil {
		return
	}
	for i := range h.shnum {
		at := u32(table, int(uint64(i)*want))
		if uint64(at) >= uint64(len(names)) {
			continue
		}
		name := names[at:]
		img.Unikraft = img.Unikraft || bytes.HasPrefix(name, []byte(unikraftSectionPrefix))
		img.LibParams = img.LibParams || bytes.HasPrefix(name, []byte(unikraftSectionParams))
		img.Linux = img.Linux || bytes.HasPrefix(name, []byte(linuxSection+"\x00"))
	}
}

// scan reports whether the first maxBannerScan bytes of the file contain s.
func (img *Image) scan(s string) bool {
	buf := make([]byte, min(uint64(img.size), 64<<10))
	for off := int64(0); off < min(img.size, maxBannerScan); off += int64(len(buf) - len(s)) {
		n, err := img.src.ReadAt(buf, off)
		if bytes.Contains(buf[:n], []byte(s)) {
			return true
		}
		if err != nil || n <= len(s) {
			return false
		}
	}
	return false
}

// section returns n bytes of the image file at off as the contents of a region.
func (img *Image) section(off, n uint64) Blob {
	return io.NewSectionReader(img.src, int64(off), int64(n))
}

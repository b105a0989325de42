package boot

import (
	"fmt"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Offsets in the zero page and, from 0x1f1 on, in a bzImage's first sector
// (Linux Documentation/arch/x86/boot.rst and zero-page.rst).
const (
	zpRSDP          = 0x070
	zpExtInitrd     = 0x0c0
	zpExtInitrdSize = 0x0c4
	zpE820Count     = 0x1e8
	zpHeader        = 0x1f1
	zpSetupSects    = 0x1f1
	zpSyssize       = 0x1f4
	zpVideoMode     = 0x1fa
	zpBootFlag      = 0x1fe
	zpJump          = 0x201 // length of the header, counted from 0x202
	zpMagic         = 0x202
	zpVersion       = 0x206
	zpLoaderType    = 0x210
	zpLoadFlags     = 0x211
	zpCode32Start   = 0x214
	zpInitrd        = 0x218
	zpInitrdSize    = 0x21c
	zpCmdlinePtr    = 0x228
	zpInitrdMax     = 0x22c
	zpAlignment     = 0x230
	zpXLoadFlags    = 0x236
	zpCmdlineSize   = 0x238
	zpPrefAddress   = 0x258
	zpInitSize      = 0x260
	zpHeaderMax     = 0x290
	zpE820          = 0x2d0

	bootFlag       = 0xaa55
	hdrsMagic      = 0x53726448 // "HdrS"
	loaderUnknown  = 0xff
	xlfKernel64    = 1
	entry64Offset  = 0x200
	minProtocol    = 0x20c // the first with xloadflags
	sectorSize     = 512
	noVideoMode    = 0xffff
	defaultAligned = 0x1000000
)

// setupHeader is what a bzImage says about itself.
type setupHeader struct {
	raw         []byte // the bytes 0x1f1 and on, for the zero page
	payload     uint64 // file offset of the protected-mode kernel
	payloadSize uint64 // bytes
	room        uint64 // bytes of memory from the load address: init_size
	initrdMax   uint64 // highest address an initrd may have
	cmdlineMax  uint64 // bytes, without the NUL
}

func isBzImage(head []byte) bool {
	return len(head) >= zpMagic+4 && u16(head, zpBootFlag) == bootFlag && u32(head, zpMagic) == hdrsMagic
}

// openBzImage checks a Linux bzImage with a 64-bit entry.
func (img *Image) openBzImage(head []byte) error {
	img.Format, img.Protocol, img.Linux = FormatBzImage, ProtocolLinux64, true
	end := zpMagic + int(head[zpJump])
	if len(head) < zpMagic+6 {
		return fmt.Errorf("bzImage: the file ends at offset %#x, inside its header: it is truncated", len(head))
	}
	version := u16(head, zpVersion)
	if version < minProtocol {
		return fmt.Errorf("bzImage: boot protocol %d.%02d at offset %#x: gvmm enters kernels in 64-bit mode, which needs 2.12 (Linux 3.8)", version>>8, version&0xff, zpVersion)
	}
	if end < zpInitSize+4 || end > zpHeaderMax || end > len(head) {
		return fmt.Errorf("bzImage: header ends at offset %#x (length byte at %#x), want %#x to %#x and inside the file", end, zpJump, zpInitSize+4, zpHeaderMax)
	}
	if u16(head, zpXLoadFlags)&xlfKernel64 == 0 {
		return fmt.Errorf("bzImage: xloadflags %#x at offset %#x: a 32-bit kernel, it has no 64-bit entry", u16(head, zpXLoadFlags), zpXLoadFlags)
	}
	s := &setupHeader{
		raw:        slices.Clone(head[zpHeader:end]),
		room:       uint64(u32(head, zpInitSize)),
		initrdMax:  uint64(u32(head, zpInitrdMax)),
		cmdlineMax: min(uint64(u32(head, zpCmdlineSize)), cmdlineRoom-1),
	}
	sectors := uint64(head[zpSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	s.payload = (sectors + 1) * sectorSize
	want := uint64(u32(head, zpSyssize)) * 16
	if err := inFile(img.size, s.payload, want); err != nil {
		return fmt.Errorf("bzImage: kernel of %d bytes (syssize at offset %#x): %w", want, zpSyssize, err)
	}
	s.payloadSize = uint64(img.size) - s.payload
	if s.payloadSize <= entry64Offset {
		return fmt.Errorf("bzImage: %d bytes of kernel at offset %#x: no room for the 64-bit entry at %#x", s.payloadSize, s.payload, entry64Offset)
	}
	s.room = max(s.room, s.payloadSize)
	// A relocatable kernel loaded below pref_address unpacks itself there all
	// the same, so no other place needs less memory.
	pref := u64(head, zpPrefAddress)
	if pref < uint64(highRAMBase) || pref > uint64(RAMHole) || s.room > uint64(RAMHole)-pref {
		return fmt.Errorf("bzImage: %d bytes at pref_address %#x (offset %#x) do not lie between 1 MiB and %#x", s.room, pref, zpPrefAddress, uint64(RAMHole))
	}
	img.setup = s
	img.Entry = memory.GPA(pref + entry64Offset)
	img.Segments = []Segment{{
		Range:  memory.Range{Base: memory.GPA(pref), Size: s.room},
		Offset: s.payload, FileSize: s.payloadSize, Perm: "rwx",
	}}
	img.Notes = append(img.Notes, fmt.Sprintf("boot protocol %d.%02d", version>>8, version&0xff))
	return nil
}

// zeroPage builds boot_params. header is a bzImage's own, nil for an ELF image.
func zeroPage(header []byte, entry memory.GPA, ram []memory.Range, cmdlineLen int, initrd *memory.Range) []byte {
	b := make([]byte, pageSize)
	copy(b[zpHeader:], header)
	put16(b, zpBootFlag, bootFlag)
	put32(b, zpMagic, hdrsMagic)
	b[zpLoaderType] = loaderUnknown
	put32(b, zpCmdlinePtr, uint32(cmdlineBase))
	if header != nil {
		put16(b, zpVideoMode, noVideoMode)
		put32(b, zpCode32Start, uint32(entry-entry64Offset))
	} else {
		put32(b, zpAlignment, defaultAligned)
		// Unikraft takes this for the length of the command line with its NUL,
		// as Firecracker fills it in, and drops the line when it is 0.
		put32(b, zpCmdlineSize, uint32(cmdlineLen+1))
	}
	if initrd != nil {
		put32(b, zpInitrd, uint32(initrd.Base))
		put32(b, zpInitrdSize, uint32(initrd.Size))
		put32(b, zpExtInitrd, uint32(initrd.Base>>32))
		put32(b, zpExtInitrdSize, uint32(initrd.Size>>32))
	}
	put64(b, zpRSDP, uint64(acpiBase))
	putE820(b, e820(ram))
	return b
}

// putE820 puts the memory map into a zero page.
func putE820(b []byte, entries []e820Entry) {
	b[zpE820Count] = byte(len(entries))
	for i, e := range entries {
		put64(b, zpE820+20*i, uint64(e.Base))
		put64(b, zpE820+20*i+8, e.Size)
		put32(b, zpE820+20*i+16, e.Type)
	}
}

package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Default guest memory in bytes. Kernels that are neither Unikraft nor Linux
// get what QEMU would give them.
const (
	DefaultMemoryUnikraft = 64 << 20
	DefaultMemoryLinux    = 512 << 20
	DefaultMemoryOther    = 128 << 20

	minMemoryFirmware = 63 << 20 // and a byte more: OVMF dies of less without a word
)

// Image is an image file that [Open] has recognized and checked.
type Image struct {
	Format   Format
	Protocol Protocol
	Arch     Arch
	Machine  Machine // what the image runs on unless the user names another
	Packed   string  // "gzip" when the file was compressed

	Unikraft bool // has Unikraft's sections
	Linux    bool // a Linux kernel
	// LibParams: a Unikraft image with library parameters. One without them
	// hands its whole command line to the application.
	LibParams bool

	Entry    memory.GPA
	Segments []Segment // ascending, not overlapping; a bzImage's counts the memory it needs to unpack itself
	Notes    []string  // what else there is to say about the image

	src   io.ReaderAt
	size  int64
	setup *setupHeader // bzImage only
	arm   *armImage    // arm64 only

	entry64 memory.GPA // a vmlinux entered by PVH: its 64-bit entry
}

// Segment is a piece of the image as it will lie in guest memory.
type Segment struct {
	memory.Range        // guest physical; Size counts the zeros behind the file's bytes
	Offset       uint64 // in the (unpacked) image file
	FileSize     uint64 // bytes from the file
	Perm         string // "r-x" and the like, as the image says
}

// Open recognizes an image by its content and checks it whole: size is the
// length of r in bytes. Every byte of it is hostile input. A compressed image
// may unpack to at most [DefaultMemoryLinux] bytes; see [OpenLimit].
func Open(r io.ReaderAt, size int64) (*Image, error) {
	return OpenLimit(r, size, DefaultMemoryLinux)
}

// OpenLimit is [Open] with the most bytes that a compressed image may unpack
// to: the guest's memory, which it has to fit into anyway.
func OpenLimit(r io.ReaderAt, size int64, limit uint64) (*Image, error) {
	head, err := readAt(r, size, 0, min(uint64(max(size, 0)), multibootSearch))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
		unpacked, err := gunzip(io.NewSectionReader(r, 0, size), limit)
		if err != nil {
			return nil, fmt.Errorf("image: gzip: %w", err)
		}
		head = unpacked.head(multibootSearch)
		if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
			return nil, errors.New("image: gzip inside gzip: unpack it with gunzip")
		}
		img, err := detect(unpacked, unpacked.size, head)
		if err != nil {
			return nil, err
		}
		img.Packed = "gzip"
		return img, nil
	}
	return detect(r, size, head)
}

// magics names files that are often handed over by mistake, with the way out.
var magics = []struct{ magic, what string }{
	{"\xfd7zXZ\x00", "xz-compressed: unpack it with `xz -d`"},
	{"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it with `zstd -d`"},
	{"\x04\x22\x4d\x18", "lz4-compressed: unpack it with `lz4 -d`"},
	{"\x02\x21\x4c\x18", "lz4-compressed: unpack it with `lz4 -d`"},
	{"BZh", "bzip2-compressed: unpack it with `bzip2 -d`"},
	{"QFI\xfb", "a qcow2 disk, not a kernel: give it with --disk"},
	{"070701", "a cpio archive, not a kernel: give it with --initrd"},
	{"#!", "a script, not a kernel"},
}

// detect recognizes an image from its first bytes, in the order in which the
// marks are certain: ELF, bzImage, arm64 Image, flat multiboot.
func detect(r io.ReaderAt, size int64, head []byte) (*Image, error) {
	img := &Image{Arch: AMD64, src: r, size: size}
	var err error
	mb := findMultiboot(head)
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		err = img.openELF(head, mb)
	case isBzImage(head):
		err = img.openBzImage(head)
	case isARM64(head):
		err = img.openARM64(head)
	case mb != nil:
		err = img.openMultiboot(mb)
	default:
		err = unknown(head, size)
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	switch {
	case img.Protocol == ProtocolMultiboot:
		img.Machine = MachinePC
	case img.Machine == "":
		img.Machine = MachineMicroVM
	}
	return img, nil
}

func unknown(head []byte, size int64) error {
	if size == 0 {
		return errors.New("the file is empty")
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return errors.New(m.what)
		}
	}
	return fmt.Errorf("not a kernel gvmm knows: no ELF, bzImage, arm64 Image or multiboot header; it starts with % x", head[:min(len(head), 8)])
}

// DefaultMemory returns the guest memory, in bytes, for a user who names none.
func (img *Image) DefaultMemory() uint64 {
	switch {
	case img.Unikraft:
		return DefaultMemoryUnikraft
	case img.Linux, img.Format == FormatFirmware:
		return DefaultMemoryLinux
	}
	return DefaultMemoryOther
}

// MinMemory returns the least memory, in bytes and whole MiB, that the image
// and an initrd of the given size fit into. What the guest needs for itself
// comes on top.
func (img *Image) MinMemory(initrd int64) uint64 {
	if img.arm != nil {
		return img.arm.minMemory(initrd)
	}
	end := uint64(highRAMBase)
	if img.Format == FormatFirmware {
		end = minMemoryFirmware
	} else if n := len(img.Segments); n > 0 {
		end = max(end, uint64(img.Segments[n-1].End()))
	}
	end = roundUp(end, pageSize)
	if initrd > 0 {
		end += initrdGap + roundUp(uint64(initrd), pageSize)
	}
	return roundUp(end+1, 1<<20)
}

// checkSegments sorts the segments and refuses those that overlap each other
// or lie where no guest of any size has free memory.
func (img *Image) checkSegments() error {
	sort.Slice(img.Segments, func(i, j int) bool { return img.Segments[i].Base < img.Segments[j].Base })
	for i, s := range img.Segments {
		if s.End() > RAMHole {
			return fmt.Errorf("segment %v (file offset %#x) does not lie below %#x, where a guest's low memory ends", s.Range, s.Offset, uint64(RAMHole))
		}
		if s.Base < highRAMBase && s.End() > lowRAMEnd {
			return fmt.Errorf("segment %v (file offset %#x) lies in %#x-%#x, which is not free memory on a PC", s.Range, s.Offset, uint64(lowRAMEnd), uint64(highRAMBase)-1)
		}
		if i > 0 && s.Base < img.Segments[i-1].End() {
			p := img.Segments[i-1]
			return fmt.Errorf("segment %v (file offset %#x) overlaps segment %v (file offset %#x)", s.Range, s.Offset, p.Range, p.Offset)
		}
	}
	if len(img.Segments) == 0 {
		return errors.New("no segment to load")
	}
	return nil
}

// checkEntry refuses an entry point that is not in the image.
func (img *Image) checkEntry() error {
	for _, s := range img.Segments {
		if s.Contains(img.Entry, 1) {
			return nil
		}
	}
	return fmt.Errorf("the entry point %#x lies in no segment", uint64(img.Entry))
}

const pageSize = 4096

// roundUp rounds n up to a multiple of to, a power of two. The caller knows
// that n+to does not overflow.
func roundUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// readAt reads n bytes of a file of the given size. It allocates only what the
// file holds.
func readAt(r io.ReaderAt, size int64, off, n uint64) ([]byte, error) {
	if err := inFile(size, off, n); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if k, err := r.ReadAt(b, int64(off)); k < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at offset %#x: %w", n, off, err)
	}
	return b, nil
}

// inFile refuses n bytes at off that a file of the given size does not hold.
func inFile(size int64, off, n uint64) error {
	if size < 0 || off > uint64(size) || n > uint64(size)-off {
		return fmt.Errorf("%d bytes at offset %#x do not lie in the file, which has %d: it is truncated or damaged", n, off, max(size, 0))
	}
	return nil
}

func u16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func u32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
func u64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }

func put16(b []byte, off int, v uint16) { binary.LittleEndian.PutUint16(b[off:], v) }
func put32(b []byte, off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }
func put64(b []byte, off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }

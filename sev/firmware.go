package sev

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// GUIDs of OVMF's table, as text (OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).
const (
	guidFooter   = "96b582de-1fb2-45f7-baea-a366c55a082d"
	guidHashes   = "7255371f-3a3b-4b04-927b-1da6efa8d454"
	guidReset    = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
	guidMetadata = "dc886566-984a-4798-a75e-5585a7bf67cc"
	guidSVSM     = "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"
)

// SectionType is the type of a section of OVMF's SEV metadata.
type SectionType uint32

// The section types (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	SectionMemory       SectionType = 1
	SectionSecrets      SectionType = 2
	SectionCPUID        SectionType = 3
	SectionSVSMCAA      SectionType = 4
	SectionKernelHashes SectionType = 0x10
)

// Section is memory that the firmware wants to be part of the launch.
type Section struct {
	GPA, Size uint32 // whole pages
	Type      SectionType
}

// Firmware is a flat boot firmware image with OVMF's table near its end. Every
// field below comes from the image and has been checked against its bounds.
type Firmware struct {
	Image    Blob
	Sections []Section // in the order of the image, which is that of the launch

	resetEIP, hashTable, svsmEntry *uint32
}

// MaxFirmware bounds the size of an image in bytes, far above any there is.
const MaxFirmware = 256 << 20

const (
	entryHeader = 2 + 16 // size, GUID; entries grow downwards from the footer
	tableEnd    = 32     // the footer ends so many bytes before the image

	maxTable    = 18 * PageSize // from the start of the longest table to the image's end
	maxSections = 4096          // OVMF has seven
)

// ParseFirmware reads the table and the SEV metadata of a firmware image, and
// nothing else of it. An image without a table is an error; one whose table lacks
// SEV entries is not: the methods that need an entry say that it is missing.
// Offsets in errors count from the start of the image.
func ParseFirmware(image Blob) (*Firmware, error) {
	length := image.Size()
	switch {
	case length <= 0 || length%PageSize != 0:
		return nil, fmt.Errorf("size %d is not whole pages: SEV-SNP measures pages", length)
	case length > MaxFirmware:
		return nil, fmt.Errorf("size %d is over %d MiB", length, MaxFirmware>>20)
	}
	f := &Firmware{Image: image}
	data, err := f.read(max(0, length-maxTable), min(length, maxTable))
	if err != nil {
		return nil, err
	}
	origin := int(length) - len(data)
	footer := len(data) - tableEnd - entryHeader
	size := int(binary.LittleEndian.Uint16(data[footer:]))
	if guidText(data[footer+2:]) != guidFooter {
		return nil, fmt.Errorf("offset %#x: no OVMF table footer: build of OVMF without SEV support, or not OVMF", origin+footer)
	}
	start := footer + entryHeader - size
	if size < entryHeader || start < 0 {
		return nil, fmt.Errorf("offset %#x: OVMF table of %d bytes does not fit the image", origin+footer, size)
	}
	for end := footer; end > start; {
		head := end - entryHeader
		if head < start {
			return nil, fmt.Errorf("offset %#x: OVMF table entry cut short", origin+end)
		}
		n := int(binary.LittleEndian.Uint16(data[head:]))
		if n < entryHeader || end-n < start {
			return nil, fmt.Errorf("offset %#x: OVMF table entry of %d bytes does not fit its table", origin+head, n)
		}
		if err := f.entry(guidText(data[head+2:]), data[end-n:head]); err != nil {
			return nil, fmt.Errorf("offset %#x: %w", origin+end-n, err)
		}
		end -= n
	}
	return f, nil
}

// entry takes one entry of the table.
func (f *Firmware) entry(guid string, body []byte) error {
	var to **uint32
	switch guid {
	case guidReset:
		to = &f.resetEIP
	case guidHashes:
		to = &f.hashTable
	case guidSVSM:
		to = &f.svsmEntry
	case guidMetadata:
	default:
		return nil
	}
	if len(body) < 4 {
		return fmt.Errorf("OVMF table entry %s holds %d bytes, want 4", guid, len(body))
	}
	v := binary.LittleEndian.Uint32(body)
	if to != nil {
		*to = &v
		return nil
	}
	return f.metadata(int64(v))
}

// metadata reads the section list that lies fromEnd bytes before the image's end.
func (f *Firmware) metadata(fromEnd int64) error {
	const header, entry = 16, 12
	length := f.Image.Size()
	at := length - fromEnd
	if fromEnd < header || at < 0 {
		return fmt.Errorf("SEV metadata %d bytes before the end: outside the image", fromEnd)
	}
	b, err := f.read(at, min(fromEnd, header+maxSections*entry))
	if err != nil {
		return err
	}
	size, version, n := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	switch {
	case string(b[:4]) != "ASEV":
		return fmt.Errorf("SEV metadata at offset %#x: no ASEV signature", at)
	case version != 1:
		return fmt.Errorf("SEV metadata at offset %#x: version %d, want 1", at, version)
	case int64(size) > fromEnd || uint64(size) < header+uint64(n)*entry || n > maxSections:
		return fmt.Errorf("SEV metadata at offset %#x: %d sections do not fit its %d bytes", at, n, size)
	case f.Sections != nil:
		return fmt.Errorf("SEV metadata at offset %#x: a second list", at)
	}
	for i := range int(n) {
		e := b[header+i*entry:]
		s := Section{binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), SectionType(binary.LittleEndian.Uint32(e[8:]))}
		if err := s.check(); err != nil {
			return fmt.Errorf("SEV metadata at offset %#x: section %d: %w", at+header+int64(i*entry), i, err)
		}
		f.Sections = append(f.Sections, s)
	}
	return nil
}

// read reads n bytes of the image at an offset that the caller has checked.
func (f *Firmware) read(off, n int64) ([]byte, error) {
	b := make([]byte, n)
	return b, readZeroed(Range{Name: "firmware", Data: f.Image}, off, b)
}

func (s Section) check() error {
	switch {
	case s.GPA%PageSize != 0 || s.Size%PageSize != 0:
		return fmt.Errorf("%#x+%#x is not whole pages", s.GPA, s.Size)
	case uint64(s.GPA)+uint64(s.Size) > 1<<32:
		return fmt.Errorf("%#x+%#x ends above 4 GiB", s.GPA, s.Size)
	}
	switch s.Type {
	case SectionMemory, SectionSVSMCAA:
		return nil
	case SectionSecrets, SectionCPUID, SectionKernelHashes:
		if s.Size != PageSize {
			return fmt.Errorf("type %#x at %#x has size %#x, want one page", uint32(s.Type), s.GPA, s.Size)
		}
		return nil
	}
	return fmt.Errorf("type %#x at %#x is unknown: a newer firmware than this program", uint32(s.Type), s.GPA)
}

// ResetEIP is where vCPUs other than the first start.
func (f *Firmware) ResetEIP() (uint32, error) {
	return have(f.resetEIP, "SEV-ES reset block: firmware without SEV-ES can start one vCPU only")
}

// HashTable is the guest address of the kernel hash table.
func (f *Firmware) HashTable() (uint32, error) {
	gpa, err := have(f.hashTable, "kernel hash table: use a firmware that checks kernels, such as OVMF's AmdSev build")
	if err == nil && gpa == 0 {
		err = errors.New("OVMF table's kernel hash table has address 0: this build does not check kernels")
	}
	return gpa, err
}

func have(v *uint32, what string) (uint32, error) {
	if v == nil {
		return 0, errors.New("OVMF table has no " + what)
	}
	return *v, nil
}

// guidText prints the 16 bytes of a GUID in its mixed byte order.
func guidText(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// guidBytes is the other way.
func guidBytes(text string) []byte {
	b, _ := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	for _, swap := range [][]byte{b[:4], b[4:6], b[6:8]} {
		for i, j := 0, len(swap)-1; i < j; i, j = i+1, j-1 {
			swap[i], swap[j] = swap[j], swap[i]
		}
	}
	return b
}

// blob is b as the contents of a range.
func blob(b []byte) Blob { return bytes.NewReader(b) }

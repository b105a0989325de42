package sev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// IGVM is what QEMU launches of an IGVM file on a KVM host: the file says itself
// which pages enter the launch, in which order, and the first vCPU's registers.
type IGVM struct {
	Ranges  []Range // in launch order, the VMSA last
	Policy  uint64  // guest policy; 0: none given
	IDBlock *IDBlock

	data     []byte
	start    uint32            // offset of the file's data, behind its headers
	mask     uint32            // of the SEV-SNP platform
	areas    map[uint32]uint64 // bytes of the parameter areas not yet inserted
	total    uint64            // bytes launched
	from, to uint32            // the data of the last range
}

// maxLaunch bounds what a file may have measured, in bytes: a few bytes of a
// header can name gigabytes.
const maxLaunch = 16 << 30

// Variable headers by type with their size in bytes (microsoft/igvm, igvm_defs).
const (
	igvmPlatform   = 0x1
	igvmPolicy     = 0x101
	igvmArea       = 0x301
	igvmPage       = 0x302
	igvmInsert     = 0x303
	igvmVP         = 0x304
	igvmMemory     = 0x305
	igvmParams     = 0x307 // from here on what is written to parameter areas, which is not measured
	igvmIDBlock    = 0x30b
	igvmLastParams = 0x313
	igvmOptional   = 1 << 31 // a loader may pass over the header
)

// ParseIGVM reads an IGVM file, version 1 or 2, with the semantics of QEMU's
// backends/igvm.c: a page without data is a zero page to the firmware, required
// memory is not measured, parameter areas are unmeasured pages. Every byte of it
// is hostile input; offsets in errors count from its start.
func ParseIGVM(data []byte) (*IGVM, error) {
	le := binary.LittleEndian
	fixed := uint32(24)
	if len(data) < 32 || string(data[:4]) != "IGVM" {
		return nil, errors.New("no IGVM file: it does not begin with IGVM")
	}
	switch version := le.Uint32(data[4:]); {
	case version == 2:
		fixed = 32
		if arch, size := le.Uint32(data[24:]), le.Uint32(data[28:]); arch != 0 || size != PageSize {
			return nil, fmt.Errorf("offset 0x18: architecture %d with pages of %d bytes: want x86-64 (0) and %d", arch, size, PageSize)
		}
	case version != 1:
		return nil, fmt.Errorf("offset 0x4: version %d: want 1 or 2", version)
	}
	offset, size := le.Uint32(data[8:]), le.Uint32(data[12:])
	f := &IGVM{data: data, start: offset + size, areas: map[uint32]uint64{}}
	if offset < fixed || offset%8 != 0 || f.start < offset || uint64(f.start) > uint64(len(data)) || uint64(le.Uint32(data[16:])) != uint64(len(data)) {
		return nil, fmt.Errorf("offset 0x8: %d bytes of headers at %#x in a file of %d bytes, which counts %d itself: truncated or damaged", size, offset, len(data), le.Uint32(data[16:]))
	}
	head := bytes.Clone(data[:fixed])
	clear(head[20:24])
	headers := data[offset:f.start]
	if sum := crc32.Update(crc32.ChecksumIEEE(head), crc32.IEEETable, headers); sum != le.Uint32(data[20:]) {
		return nil, fmt.Errorf("offset 0x14: checksum %#x of the headers, which have %#x: damaged", le.Uint32(data[20:]), sum)
	}
	for at := 0; at < len(headers); {
		if len(headers)-at < 8 || uint64(le.Uint32(headers[at+4:])) > uint64(len(headers)-at-8) {
			return nil, fmt.Errorf("offset %#x: header cut short", int(offset)+at)
		}
		n := int(le.Uint32(headers[at+4:]))
		if err := f.header(le.Uint32(headers[at:]), headers[at+8:at+8+n]); err != nil {
			return nil, fmt.Errorf("offset %#x: %w", int(offset)+at, err)
		}
		at += 8 + (n+7)&^7
	}
	switch {
	case f.mask == 0:
		return nil, errors.New("not made for SEV-SNP: no supported platform of that type")
	case len(f.Ranges) == 0 || f.Ranges[len(f.Ranges)-1].Type != PageVMSA:
		return nil, errors.New("no registers of a vCPU for SEV-SNP: KVM measures those last")
	}
	return f, checkOverlap(f.Ranges[:len(f.Ranges)-1])
}

// header takes one variable header.
func (f *IGVM) header(kind uint32, b []byte) error {
	want := 0
	for _, s := range [...]struct {
		kind uint32
		size int
	}{{igvmPlatform, 16}, {igvmPolicy, 16}, {igvmArea, 16}, {igvmPage, 24}, {igvmInsert, 16}, {igvmVP, 20}, {igvmMemory, 24}, {igvmIDBlock, 696}} {
		if s.kind == kind {
			want = s.size
		}
	}
	switch {
	case want != 0 && len(b) != want:
		return fmt.Errorf("header type %#x of %d bytes: want %d", kind, len(b), want)
	case want == 0 && kind&igvmOptional == 0 && (kind < igvmParams || kind > igvmLastParams):
		return fmt.Errorf("header type %#x: QEMU does not load such a file", kind)
	case want == 0:
		return nil
	}
	le := binary.LittleEndian
	mask := f.mask
	switch kind {
	case igvmPlatform: // mask, highest VTL, type, version
		if b[5] == 2 {
			f.mask = le.Uint32(b)
		}
		return nil
	case igvmIDBlock:
		mask = le.Uint32(b)
	case igvmArea: // for every platform
	default:
		mask = le.Uint32(b[8:])
	}
	if mask&f.mask == 0 {
		return nil
	}
	gpa := le.Uint64(b)
	switch kind {
	case igvmPolicy:
		f.Policy = gpa
	case igvmArea:
		index := le.Uint32(b[8:])
		if _, twice := f.areas[index]; twice || gpa%PageSize != 0 {
			return fmt.Errorf("parameter area %d of %d bytes: not whole pages, or there twice", index, gpa)
		}
		f.areas[index] = gpa
	case igvmInsert:
		size, ok := f.areas[le.Uint32(b[12:])]
		if !ok {
			return fmt.Errorf("parameter area %d is not there, or inserted twice", le.Uint32(b[12:]))
		}
		delete(f.areas, le.Uint32(b[12:]))
		return f.add(Range{PageUnmeasured, gpa, size, "parameters", nil}, 0)
	case igvmPage:
		return f.page(gpa, le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint16(b[20:]))
	case igvmVP:
		if gpa != VMSAGPA || le.Uint16(b[16:]) != 0 {
			return fmt.Errorf("registers of vCPU %d at %#x: KVM measures the first vCPU's at %#x", le.Uint16(b[16:]), gpa, uint64(VMSAGPA))
		}
		if err := f.add(Range{PageVMSA, gpa, PageSize, "vcpu 0", nil}, le.Uint32(b[12:])); err != nil {
			return err
		}
		if cr0 := le.Uint64(f.data[le.Uint32(b[12:])+0x158:]); cr0&(cr0CD|cr0NW) != 0 {
			return fmt.Errorf("registers with CR0 %#x: KVM clears bits %#x and so launches others", cr0, cr0CD|cr0NW)
		}
	case igvmIDBlock:
		if f.IDBlock != nil {
			return errors.New("a second ID block")
		}
		f.IDBlock = &IDBlock{Policy: f.Policy, Digest: Digest(b[8:56]), FamilyID: [16]byte(b[56:72]), ImageID: [16]byte(b[72:88]), GuestSVN: le.Uint32(b[92:])}
	}
	return nil
}

// page takes a page: its data lies at offset from in the file, 0 for none.
func (f *IGVM) page(gpa uint64, from, flags uint32, kind uint16) error {
	const large, unmeasured, shared = 1, 2, 4
	r := Range{PageNormal, gpa, PageSize, "page data", nil}
	if flags&large != 0 {
		r.Size = 512 * PageSize
	}
	switch {
	case flags&shared != 0 || kind > 3:
		return fmt.Errorf("page at %#x: data type %d with flags %#x: QEMU does not load such a file", gpa, kind, flags)
	case kind == 1:
		r.Type, r.Name, from = PageSecrets, "secrets", 0
	case kind > 1:
		r.Type, r.Name, from = PageCPUID, "cpuid", 0
	case flags&unmeasured != 0:
		r.Type, from = PageUnmeasured, 0
	case from == 0:
		r.Type, r.Name = PageZero, "zero pages"
	}
	return f.add(r, from)
}

// add launches r with one page of data from the given offset of the file, 0 for
// none. Pages that follow each other become one range.
func (f *IGVM) add(r Range, from uint32) error {
	if r.Size > maxLaunch-f.total {
		return fmt.Errorf("%s at %#x, %d bytes: more than %d GiB to launch", r.Name, r.GPA, r.Size, maxLaunch>>30)
	}
	f.total += r.Size
	if from != 0 || r.Type == PageVMSA {
		if from < f.start || int64(from) > int64(len(f.data))-PageSize {
			return fmt.Errorf("%s at %#x: data at offset %#x is not in the file behind its headers", r.Name, r.GPA, from)
		}
		r.Data = blob(f.data[from : from+PageSize])
	}
	follows := r.Data == nil || from == f.to && r.Type == PageNormal && r.Size == PageSize
	if n := len(f.Ranges); n > 0 {
		last := &f.Ranges[n-1]
		if last.Type == PageVMSA {
			return fmt.Errorf("%s at %#x behind the registers: KVM measures those last, and once", r.Name, r.GPA)
		}
		if follows && last.Type == r.Type && last.Name == r.Name && last.GPA+last.Size == r.GPA {
			last.Size += r.Size
			if r.Data != nil {
				f.to += PageSize
				last.Data = blob(f.data[f.from:f.to])
			}
			return nil
		}
	}
	f.from, f.to = from, 0 // nothing follows a large page's first 4 KiB
	if r.Size == PageSize {
		f.to = from + PageSize
	}
	f.Ranges = append(f.Ranges, r)
	return nil
}

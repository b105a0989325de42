package sev

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
)

// igvmHeader is a variable header; data, where there is some, goes behind the
// headers and its offset to byte dataAt of the body.
type igvmHeader struct {
	kind   uint32
	body   []byte
	data   []byte
	dataAt int
}

// le packs numbers as they are typed.
func le(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

func buildIGVM(version uint32, headers ...igvmHeader) []byte {
	fixed := 24
	if version > 1 {
		fixed = 32
	}
	var vars, data []byte
	size := 0
	for _, h := range headers {
		size += 8 + (len(h.body)+7)&^7
	}
	for _, h := range headers {
		body := bytes.Clone(h.body)
		if h.data != nil {
			binary.LittleEndian.PutUint32(body[h.dataAt:], uint32(fixed+size+len(data)))
			data = append(data, h.data...)
		}
		vars = append(vars, le(h.kind, uint32(len(body)))...)
		vars = append(vars, body...)
		vars = append(vars, make([]byte, -len(vars)&7)...)
	}
	data = append(data, 0) // there is always some
	b := append([]byte("IGVM"), le(version, uint32(fixed), uint32(len(vars)), uint32(fixed+len(vars)+len(data)), uint32(0))...)
	if version > 1 {
		b = append(b, le(uint32(0), uint32(4096))...)
	}
	binary.LittleEndian.PutUint32(b[20:], crc32.ChecksumIEEE(append(bytes.Clone(b), vars...)))
	return append(append(b, vars...), data...)
}

const snpMask = 2

func platform(mask uint32, kind uint8) igvmHeader {
	return igvmHeader{kind: igvmPlatform, body: le(mask, uint8(2), kind, uint16(1), uint64(0))}
}

func pageData(gpa uint64, mask, flags uint32, kind uint16, data []byte) igvmHeader {
	return igvmHeader{kind: igvmPage, body: le(gpa, mask, uint32(0), flags, kind, uint16(0)), data: data, dataAt: 12}
}

func area(index uint32, size uint64) igvmHeader {
	return igvmHeader{kind: igvmArea, body: le(size, index, uint32(0))}
}

func insert(gpa uint64, index uint32) igvmHeader {
	return igvmHeader{kind: igvmInsert, body: le(gpa, uint32(snpMask), index)}
}

func context(gpa uint64, vcpu uint16, r Registers) igvmHeader {
	return igvmHeader{kind: igvmVP, body: le(gpa, uint32(snpMask), uint32(0), vcpu, uint16(0)), data: r.Page(), dataAt: 12}
}

func idBlock(d Digest) igvmHeader {
	b := make([]byte, 696)
	b[0] = snpMask
	copy(b[8:], d[:])
	b[56], b[72], b[92] = 0xfa, 0x1a, 9
	return igvmHeader{kind: igvmIDBlock, body: b}
}

func TestIGVM(t *testing.T) {
	a, b, c := bytes.Repeat([]byte{1}, PageSize), bytes.Repeat([]byte{2}, PageSize), bytes.Repeat([]byte{3}, PageSize)
	r := ResetRegisters(QEMU, resetVector, 0, FeatureSNP)
	for _, version := range []uint32{1, 2} {
		file := buildIGVM(version,
			platform(1, 0), platform(snpMask, 2),
			igvmHeader{kind: igvmPolicy, body: le(uint64(0xb0000), uint32(snpMask), uint32(0))},
			pageData(0x1000, 3, 0, 0, a), pageData(0x2000, 2, 0, 0, b), pageData(0x2000, 1, 0, 0, c), // the last is another platform's
			pageData(0x3000, 2, 0, 0, nil), pageData(0x4000, 2, 0, 0, nil), pageData(0x5000, 2, 2, 0, c),
			pageData(0x6000, 2, 0, 1, nil), pageData(0x7000, 2, 0, 2, a), pageData(0x200000, 2, 1, 0, c),
			igvmHeader{kind: igvmMemory, body: le(uint64(0x10000), uint32(2), uint32(0x1000), uint64(0))},
			area(7, 0x2000), igvmHeader{kind: 0x309, body: le(uint32(7), uint32(0))}, insert(0x8000, 7),
			igvmHeader{kind: igvmOptional | 0x55, body: []byte("abc")},
			idBlock(Digest{1, 2, 3}), context(VMSAGPA, 0, r))
		f, err := ParseIGVM(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Measure(Digest{}, f.Ranges, nil)
		if err != nil {
			t.Fatal(err)
		}
		var want Chain
		update := func(typ PageType, gpa uint64, page []byte) {
			if err := want.Update(typ, gpa, page); err != nil {
				t.Fatal(err)
			}
		}
		update(PageNormal, 0x1000, a)
		update(PageNormal, 0x2000, b)
		update(PageZero, 0x3000, nil)
		update(PageZero, 0x4000, nil)
		update(PageUnmeasured, 0x5000, nil)
		update(PageSecrets, 0x6000, nil)
		update(PageCPUID, 0x7000, nil)
		update(PageNormal, 0x200000, c)
		for i := uint64(1); i < 512; i++ {
			update(PageNormal, 0x200000+i*PageSize, make([]byte, PageSize))
		}
		update(PageUnmeasured, 0x8000, nil)
		update(PageUnmeasured, 0x9000, nil)
		update(PageVMSA, VMSAGPA, r.Page())
		if got != want.Digest() {
			t.Errorf("version %d: %s, want %s", version, got, want.Digest())
		}
		if id := f.IDBlock; f.Policy != 0xb0000 || id == nil || id.Digest != (Digest{1, 2, 3}) || id.GuestSVN != 9 || id.Policy != 0xb0000 || id.FamilyID[0] != 0xfa || id.ImageID[0] != 0x1a {
			t.Errorf("version %d: policy %#x, ID block %+v", version, f.Policy, id)
		}
		if f.Ranges[0].Size != 2*PageSize || f.Ranges[1].Size != 2*PageSize {
			t.Errorf("pages that follow each other are apart: %+v", f.Ranges[:2])
		}
	}
}

func TestIGVMErrors(t *testing.T) {
	page := bytes.Repeat([]byte{1}, PageSize)
	r := ResetRegisters(QEMU, resetVector, 0, FeatureSNP)
	cached := r
	cached.CR0 |= cr0CD
	snp, vp := platform(snpMask, 2), context(VMSAGPA, 0, r)
	good := buildIGVM(1, snp, pageData(0x1000, 2, 0, 0, page), vp)
	if _, err := ParseIGVM(good); err != nil {
		t.Fatal(err)
	}
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for want, data := range map[string][]byte{
		"does not begin with IGVM": []byte("IGV"), "version 3": change(4, 3), "architecture": change(4, 2),
		"offset 0x14: checksum": change(30, 9), "counts 1 itself": append(append(bytes.Clone(good[:16]), 1, 0, 0, 0), good[20:]...),
		"truncated":                         good[:len(good)-1],
		"not made for SEV-SNP":              buildIGVM(1, platform(1, 3), pageData(0, 1, 0, 0, page)),
		"no registers":                      buildIGVM(1, snp, pageData(0x1000, 2, 0, 0, page)),
		"of 15 bytes: want 16":              buildIGVM(1, igvmHeader{kind: igvmPlatform, body: make([]byte, 15)}, vp),
		"header type 0x102: QEMU":           buildIGVM(1, snp, igvmHeader{kind: 0x102, body: make([]byte, 8)}, vp),
		"flags 0x4":                         buildIGVM(1, snp, pageData(0x1000, 2, 4, 0, page), vp),
		"data type 4":                       buildIGVM(1, snp, pageData(0x1000, 2, 0, 4, page), vp),
		"data at offset 0x10 is not in":     buildIGVM(1, snp, igvmHeader{kind: igvmPage, body: le(uint64(0), uint32(2), uint32(16), uint64(0))}, vp),
		"data at offset 0xfffffff0":         buildIGVM(1, snp, igvmHeader{kind: igvmPage, body: le(uint64(0), uint32(2), ^uint32(15), uint64(0))}, vp),
		"behind the registers":              buildIGVM(1, snp, vp, pageData(0x1000, 2, 0, 0, page)),
		"vcpu 0 at 0xfffffffff000 behind":   buildIGVM(1, snp, vp, vp),
		"registers of vCPU 1":               buildIGVM(1, snp, context(VMSAGPA, 1, r)),
		"registers of vCPU 0 at 0x1000":     buildIGVM(1, snp, context(0x1000, 0, r)),
		"CR0 0x40000010":                    buildIGVM(1, snp, context(VMSAGPA, 0, cached)),
		"overlaps":                          buildIGVM(1, snp, pageData(0x1000, 2, 0, 0, page), pageData(0x1000, 2, 0, 1, nil), vp),
		"parameter area 3 is not there":     buildIGVM(1, snp, insert(0, 3), vp),
		"area 7 is not there, or inserted ": buildIGVM(1, snp, area(7, 4096), insert(0, 7), insert(0x1000, 7), vp),
		"area 7 of 4096 bytes":              buildIGVM(1, snp, area(7, 4096), area(7, 4096), vp),
		"area 7 of 4095 bytes":              buildIGVM(1, snp, area(7, 4095), vp),
		"more than 16 GiB":                  buildIGVM(1, snp, area(7, 1<<40), insert(0, 7), vp),
		"a second ID block":                 buildIGVM(1, snp, idBlock(Digest{}), idBlock(Digest{}), vp),
	} {
		if _, err := ParseIGVM(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzParseIGVM(f *testing.F) {
	page := make([]byte, PageSize)
	r := ResetRegisters(QEMU, resetVector, 0, FeatureSNP)
	for version := uint32(1); version <= 2; version++ {
		f.Add(buildIGVM(version, platform(snpMask, 2), pageData(0x1000, 2, 0, 0, page), area(1, 4096), insert(0x2000, 1), idBlock(Digest{}), context(VMSAGPA, 0, r)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= 32 { // a checksum is no barrier to whoever writes the file
			le := binary.LittleEndian
			fixed, offset, size := 24, le.Uint32(data[8:]), le.Uint32(data[12:])
			if data[4] == 2 {
				fixed = 32
			}
			if end := uint64(offset) + uint64(size); end <= uint64(len(data)) {
				le.PutUint32(data[20:], 0)
				le.PutUint32(data[20:], crc32.Update(crc32.ChecksumIEEE(data[:fixed]), crc32.IEEETable, data[offset:end]))
			}
			le.PutUint32(data[16:], uint32(len(data)))
		}
		file, err := ParseIGVM(data)
		if err != nil {
			return
		}
		total := uint64(0)
		for _, r := range file.Ranges {
			total += r.Size
			if r.Data != nil && uint64(r.Data.Size()) > r.Size {
				t.Errorf("%d bytes for %+v", r.Data.Size(), r)
			}
		}
		if total > maxLaunch {
			t.Errorf("%d bytes are launched", total)
		}
	})
}

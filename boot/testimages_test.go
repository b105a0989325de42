package boot

import (
	"bytes"
	"compress/gzip"
	"testing"
)

// Small images built by code: every test says what differs from a good one.

type testSegment struct {
	kind, flags                      uint32
	off, vaddr, paddr, filesz, memsz uint64
	data                             []byte // written at off
}

type testELF struct {
	is64     bool
	machine  uint16
	kind     uint16
	entry    uint64
	segments []testSegment
	sections []string // names
	prefix   []byte   // written behind the program headers
}

// load is a PT_LOAD with data at paddr; its place in the file is chosen here.
func load(paddr uint64, data []byte, memsz uint64) testSegment {
	return testSegment{kind: ptLoad, flags: 5, vaddr: paddr, paddr: paddr, filesz: uint64(len(data)), memsz: memsz, data: data}
}

func note(data []byte) testSegment {
	return testSegment{kind: ptNote, filesz: uint64(len(data)), data: data}
}

func (e testELF) build() []byte {
	ehsize, phsize, shsize := 52, elfPhdr32, elfShdr32
	if e.is64 {
		ehsize, phsize, shsize = 64, elfPhdr64, elfShdr64
	}
	b := make([]byte, ehsize+phsize*len(e.segments))
	b = append(b, e.prefix...)
	for i := range e.segments {
		s := &e.segments[i]
		if s.data != nil && s.off == 0 {
			b = append(b, make([]byte, -len(b)&15)...)
			s.off = uint64(len(b))
			b = append(b, s.data...)
		}
	}
	shoff, strndx := 0, 0
	if len(e.sections) > 0 {
		names, at := []byte{0}, []int{0}
		for _, n := range append(e.sections, ".shstrtab") {
			at = append(at, len(names))
			names = append(append(names, n...), 0)
		}
		namesOff := len(b)
		b = append(b, names...)
		shoff, strndx = len(b), len(at)-1
		b = append(b, make([]byte, shsize*len(at))...)
		for i, a := range at {
			h := b[shoff+i*shsize:]
			put32(h, 0, uint32(a))
			if i == strndx {
				if e.is64 {
					put64(h, 24, uint64(namesOff))
					put64(h, 32, uint64(len(names)))
				} else {
					put32(h, 16, uint32(namesOff))
					put32(h, 20, uint32(len(names)))
				}
			}
		}
	}
	copy(b, "\x7fELF\x01\x01\x01")
	put16(b, 16, e.kind)
	put16(b, 18, e.machine)
	put32(b, 20, 1)
	shnum := 0
	if shoff != 0 {
		shnum = len(e.sections) + 2
	}
	tail := b[42:]
	if e.is64 {
		b[4] = 2
		put64(b, 24, e.entry)
		put64(b, 32, uint64(ehsize))
		put64(b, 40, uint64(shoff))
		tail = b[54:]
	} else {
		put32(b, 24, uint32(e.entry))
		put32(b, 28, uint32(ehsize))
		put32(b, 32, uint32(shoff))
	}
	for i, v := range []int{phsize, len(e.segments), shsize, shnum, strndx} {
		put16(tail, 2*i, uint16(v))
	}
	for i, s := range e.segments {
		p := b[ehsize+i*phsize:]
		put32(p, 0, s.kind)
		if e.is64 {
			put32(p, 4, s.flags)
			for j, v := range []uint64{s.off, s.vaddr, s.paddr, s.filesz, s.memsz} {
				put64(p, 8+8*j, v)
			}
		} else {
			for j, v := range []uint64{s.off, s.vaddr, s.paddr, s.filesz, s.memsz, uint64(s.flags)} {
				put32(p, 4+4*j, uint32(v))
			}
		}
	}
	return b
}

func mbHeader(flags uint32, addrs ...uint32) []byte {
	b := make([]byte, 12+4*len(addrs))
	put32(b, 0, multibootHeaderMagic)
	put32(b, 4, flags)
	put32(b, 8, -(multibootHeaderMagic + flags))
	for i, a := range addrs {
		put32(b, 12+4*i, a)
	}
	return b
}

func elfNote(owner string, kind uint32, desc []byte) []byte {
	b := make([]byte, 12)
	put32(b, 0, uint32(len(owner)+1))
	put32(b, 4, uint32(len(desc)))
	put32(b, 8, kind)
	b = append(append(b, owner...), 0)
	b = append(b, make([]byte, -len(b)&3)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(b)&3)...)
}

var testCode = bytes.Repeat([]byte{0xf4}, 300) // hlt

// goodMultiboot is like Unikraft's qemu images: a text segment, data with bss,
// a segment of no bytes.
func goodMultiboot(sections ...string) testELF {
	return testELF{
		machine: emI386, kind: elfExec, entry: 0x100010, prefix: mbHeader(3), sections: sections,
		segments: []testSegment{load(0x100000, testCode, 300), load(0x101000, []byte("data"), 0x2000), {kind: ptLoad, paddr: 0x101000}},
	}
}

// goodELF64 is like Unikraft's Firecracker images.
func goodELF64(sections ...string) testELF {
	return testELF{
		is64: true, machine: emAMD64, kind: elfExec, entry: 0x100010, sections: sections,
		segments: []testSegment{load(0x100000, testCode, 300), load(0x101000, []byte("data"), 0x2000)},
	}
}

// goodVmlinux has virtual addresses, notes and a PVH entry, as Linux has.
func goodVmlinux() testELF {
	e := goodELF64()
	e.entry = 0x1000010
	e.segments = []testSegment{load(0x1000000, testCode, 0x1000), note(append(
		elfNote("Linux", 0x100, []byte("salt")), elfNote("Xen", noteXenPhys32, []byte{0x20, 0, 0, 1, 0, 0, 0, 0})...))}
	e.segments[0].vaddr = 0xffffffff81000000
	return e
}

func goodBzImage() []byte {
	const sectors = 2
	b := make([]byte, (sectors+1)*sectorSize+0x1000)
	b[zpSetupSects] = sectors
	put32(b, zpSyssize, 0x1000/16)
	put16(b, zpBootFlag, bootFlag)
	b[0x200], b[zpJump] = 0xeb, 0x66
	put32(b, zpMagic, hdrsMagic)
	put16(b, zpVersion, 0x20f)
	b[zpLoadFlags] = 1
	put32(b, zpInitrdMax, 0x7fffffff)
	put32(b, zpAlignment, 0x200000)
	put16(b, zpXLoadFlags, 0x7f)
	put32(b, zpCmdlineSize, 2047)
	put64(b, zpPrefAddress, 0x1000000)
	put32(b, zpInitSize, 0x800000)
	copy(b[(sectors+1)*sectorSize:], testCode)
	return b
}

func goodARM64() []byte {
	b := make([]byte, 128)
	copy(b[56:], "ARM\x64")
	return b
}

func gz(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(b []byte) (*Image, error) { return Open(bytes.NewReader(b), int64(len(b))) }

func mustOpen(t testing.TB, b []byte) *Image {
	t.Helper()
	img, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// region returns the bytes of a plan's region.
func region(t testing.TB, p *Plan, name string) []byte {
	t.Helper()
	for _, r := range p.Regions {
		if r.Name == name {
			b := make([]byte, r.Data.Size())
			if n, err := r.Data.ReadAt(b, 0); n < len(b) {
				t.Fatalf("%s: %v", name, err)
			}
			return b
		}
	}
	t.Fatalf("no region %q", name)
	return nil
}

package cet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
)

// ELF is an x86 ELF image, as far as symbols and the lint need it. The file is
// hostile: what does not lie in it is as good as not there.
type ELF struct {
	r    io.ReaderAt
	size uint64
	left uint64 // bytes that may still be read
	is64 bool

	Entry    uint64
	sections []section
	segments []section // loadable, from the program headers
	property []byte    // the GNU property note
	Symbols  []Symbol  // functions and labels in code, by address; empty when stripped
}

// section is a section or segment: size bytes of the file at off that lie at addr.
type section struct {
	name            string
	kind, flags     uint64
	addr, off, size uint64
	link            uint32
}

// Symbol is a name for an address.
type Symbol struct {
	Name   string
	Addr   uint64
	Func   bool   // STT_FUNC
	Global bool   // others may take its address
	File   string // the source file, known for local symbols
}

// Bounds on what a file can have gvmm read.
const (
	maxSections = 4096
	maxTable    = 64 << 20 // bytes of symbols, and of their names
	maxCode     = 64 << 20 // bytes of a section that is searched
	maxRead     = 1 << 30  // bytes of the file read in all: sections may overlap
)

const (
	shtSymtab, shtRela, shtNote = 2, 4, 7
	shtNobits                   = 8
	shfAlloc, shfExec           = 2, 4
	ptLoad, ptGNUProperty       = 1, 0x6474e553
	sttFunc, sttFile            = 2, 4
)

var le = binary.LittleEndian

// OpenELF reads the headers and symbols of an x86 ELF file of size bytes.
func OpenELF(r io.ReaderAt, size int64) (*ELF, error) {
	e := &ELF{r: r, size: uint64(max(size, 0)), left: maxRead}
	h := e.read(0, 64)
	if len(h) < 64 || !bytes.HasPrefix(h, []byte("\x7fELF")) || h[5] != 1 {
		return nil, errors.New("not an ELF file")
	}
	e.is64 = h[4] == 2
	if m := le.Uint16(h[18:]); m != 62 && m != 3 {
		return nil, fmt.Errorf("ELF for machine %d, not x86", m)
	}
	e.Entry = e.word(h, 24, 24)
	phoff, shoff, counts := e.word(h, 28, 32), e.word(h, 32, 40), h[e.pick(42, 54):]
	phnum, shnum, shstrndx := int(le.Uint16(counts[2:])), int(le.Uint16(counts[6:])), int(le.Uint16(counts[8:]))
	e.readSegments(phoff, phnum)
	e.readSections(shoff, shnum, shstrndx)
	for i := range e.sections {
		if s := &e.sections[i]; s.kind == shtSymtab && int(s.link) < len(e.sections) {
			e.readSymbols(s, &e.sections[s.link])
		}
	}
	return e, nil
}

// pick returns what is right for a file of this class.
func (e *ELF) pick(in32, in64 int) int {
	if e.is64 {
		return in64
	}
	return in32
}

// word reads a field that has 8 bytes in 64-bit files and 4 in others, where
// these have it.
func (e *ELF) word(b []byte, in32, in64 int) uint64 {
	if e.is64 {
		return le.Uint64(b[in64:])
	}
	return uint64(le.Uint32(b[in32:]))
}

// read returns n bytes of the file at off, nil if it does not have them.
func (e *ELF) read(off, n uint64) []byte {
	if off > e.size || n > e.size-off || n > min(maxTable, e.left) {
		return nil
	}
	e.left -= n
	b := make([]byte, n)
	if k, _ := e.r.ReadAt(b, int64(off)); k < len(b) {
		return nil
	}
	return b
}

func (e *ELF) readSegments(off uint64, n int) {
	size := e.pick(32, 56)
	for b := e.read(off, uint64(min(n, maxSections)*size)); len(b) >= size; b = b[size:] {
		s := section{
			kind: uint64(le.Uint32(b)), flags: uint64(le.Uint32(b[e.pick(24, 4):])),
			off: e.word(b, 4, 8), addr: e.word(b, 8, 16), size: e.word(b, 16, 32),
		}
		switch s.kind {
		case ptLoad:
			if s.flags&1 != 0 { // PF_X
				s.flags = shfExec | shfAlloc
			}
			e.segments = append(e.segments, s)
		case ptGNUProperty:
			e.property = e.read(s.off, s.size)
		}
	}
}

func (e *ELF) readSections(off uint64, n, names int) {
	size := e.pick(40, 64)
	var at []uint32
	for b := e.read(off, uint64(min(n, maxSections)*size)); len(b) >= size; b = b[size:] {
		e.sections = append(e.sections, section{
			kind: uint64(le.Uint32(b[4:])), flags: e.word(b, 8, 8), link: le.Uint32(b[e.pick(24, 40):]),
			addr: e.word(b, 12, 16), off: e.word(b, 16, 24), size: e.word(b, 20, 32),
		})
		at = append(at, le.Uint32(b))
	}
	if names >= len(e.sections) {
		return
	}
	strs := e.read(e.sections[names].off, e.sections[names].size)
	for i := range e.sections {
		s := &e.sections[i]
		s.name = cstring(strs, uint64(at[i]))
		if s.name == ".note.gnu.property" && e.property == nil {
			e.property = e.read(s.off, s.size)
		}
	}
}

func cstring(b []byte, off uint64) string {
	if off >= uint64(len(b)) {
		return ""
	}
	b = b[off:]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return string(b[:i])
	}
	return ""
}

func (e *ELF) readSymbols(table, names *section) {
	strs := e.read(names.off, names.size)
	size := e.pick(16, 24)
	file := ""
	for b := e.read(table.off, table.size); len(b) >= size; b = b[size:] {
		info, value := b[e.pick(12, 4)], e.word(b, 4, 8)
		kind, global := info&15, info>>4 != 0
		name := cstring(strs, uint64(le.Uint32(b)))
		if kind == sttFile {
			file = name
			continue
		}
		if name == "" || kind != sttFunc && kind != 0 || e.code(value) == nil {
			continue
		}
		s := Symbol{Name: name, Addr: value, Func: kind == sttFunc, Global: global}
		if !global {
			s.File = file
		}
		e.Symbols = append(e.Symbols, s)
	}
	// Of two names for a place the function's comes last, and counts.
	sort.SliceStable(e.Symbols, func(i, j int) bool {
		a, b := e.Symbols[i], e.Symbols[j]
		return a.Addr < b.Addr || a.Addr == b.Addr && b.Func && !a.Func
	})
}

// places returns the sections, or the segments of a file without.
func (e *ELF) places() []section {
	for _, s := range e.sections {
		if s.flags&shfExec != 0 {
			return e.sections
		}
	}
	return e.segments
}

// code returns the code section that addr lies in.
func (e *ELF) code(addr uint64) *section {
	for _, list := range [][]section{e.places(), e.segments} {
		for i := range list {
			if s := &list[i]; s.flags&shfExec != 0 && s.flags&shfAlloc != 0 && addr >= s.addr && addr-s.addr < s.size {
				return s
			}
		}
	}
	return nil
}

// bytesAt returns n bytes of code at an address, nil where there is none.
func (e *ELF) bytesAt(addr, n uint64) []byte {
	if s := e.code(addr); s != nil && s.kind != shtNobits && n <= s.size-(addr-s.addr) && s.off+(addr-s.addr) >= s.off {
		return e.read(s.off+(addr-s.addr), n)
	}
	return nil
}

// Lookup returns the symbol that an address lies in or behind.
func (e *ELF) Lookup(addr uint64) (Symbol, bool) {
	if e == nil {
		return Symbol{}, false
	}
	i := sort.Search(len(e.Symbols), func(i int) bool { return e.Symbols[i].Addr > addr }) - 1
	if i < 0 || e.code(addr) == nil {
		return Symbol{}, false
	}
	return e.Symbols[i], true
}

// Name is an address for people: with the symbol it lies in, if there is one.
// A nil ELF has no symbols.
func (e *ELF) Name(addr uint64) string {
	s, ok := e.Lookup(addr)
	if !ok {
		return fmt.Sprintf("%#x", addr)
	}
	name := s.Name
	if addr != s.Addr {
		name += fmt.Sprintf("+%#x", addr-s.Addr)
	}
	return fmt.Sprintf("%#x (%s)", addr, name)
}

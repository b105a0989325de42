package boot

import (
	"bytes"
	"slices"
)

// A small encoder of ACPI Machine Language (ACPI 6.5, chapter 20) and of
// resource descriptors (6.4). Every function returns the encoding of one term.

// amlName is a NameString: segments of four characters, `\` for the root, and
// dots between.
func amlName(s string) []byte {
	if s[0] == '\\' {
		return append([]byte{'\\'}, amlName(s[1:])...)
	}
	if len(s) == 9 { // two segments
		return append([]byte{0x2e}, s[:4]+s[5:]...)
	}
	return []byte(s)
}

func amlInteger(v uint64) []byte {
	b := make([]byte, 9)
	put64(b, 1, v)
	switch {
	case v <= 1:
		return []byte{byte(v)} // ZeroOp, OneOp
	case v <= 0xff:
		b[0], b = 0x0a, b[:2]
	case v <= 0xffff:
		b[0], b = 0x0b, b[:3]
	case v <= 0xffffffff:
		b[0], b = 0x0c, b[:5]
	default:
		b[0] = 0x0e
	}
	return b
}

func amlString(s string) []byte { return append(append([]byte{0x0d}, s...), 0) }

// amlPackaged puts the PkgLength (20.2.4), which counts itself, behind op.
func amlPackaged(op []byte, body ...[]byte) []byte {
	content := bytes.Join(body, nil)
	n := len(content)
	var length []byte
	switch {
	case n+1 < 1<<6:
		length = []byte{byte(n + 1)}
	case n+2 < 1<<12:
		n += 2
		length = []byte{1<<6 | byte(n&15), byte(n >> 4)}
	default:
		n += 3
		length = []byte{2<<6 | byte(n&15), byte(n >> 4), byte(n >> 12)}
	}
	return slices.Concat(op, length, content)
}

func amlScope(name string, terms ...[]byte) []byte {
	return amlPackaged([]byte{0x10}, append([][]byte{amlName(name)}, terms...)...)
}

func amlDevice(name string, terms ...[]byte) []byte {
	return amlPackaged([]byte{0x5b, 0x82}, append([][]byte{amlName(name)}, terms...)...)
}

func amlDefine(name string, value []byte) []byte {
	return slices.Concat([]byte{0x08}, amlName(name), value)
}

func amlPackage(elements ...[]byte) []byte {
	return amlPackaged([]byte{0x12}, append([][]byte{{byte(len(elements))}}, elements...)...)
}

// amlEISAID packs an identifier such as "PNP0501" (19.3.4): three letters of
// five bits and four hexadecimal digits, most significant byte first.
func amlEISAID(id string) []byte {
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16
	for i, c := range []byte(id[3:]) {
		if c >= 'A' {
			c -= 'A' - '9' - 1
		}
		v |= uint32(c-'0') << (12 - 4*i)
	}
	return []byte{0x0c, byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// amlResources defines _CRS as a resource template.
func amlResources(descriptors ...[]byte) []byte {
	template := append(bytes.Join(descriptors, nil), 0x79, 0) // end tag, no checksum
	return amlDefine("_CRS", amlPackaged([]byte{0x11}, amlInteger(uint64(len(template))), template))
}

// resPorts is n I/O ports at a fixed place (6.4.2.5).
func resPorts(base uint16, n uint8) []byte {
	b := []byte{0x47, 1, 0, 0, 0, 0, 1, n}
	put16(b, 2, base)
	put16(b, 4, base)
	return b
}

// resISAIRQ is an edge-triggered interrupt below 16 (6.4.2.1).
func resISAIRQ(irq uint32) []byte {
	b := []byte{0x22, 0, 0}
	put16(b, 1, 1<<irq)
	return b
}

// resMemory is a fixed, writable memory range (6.4.3.4).
func resMemory(base, size uint32) []byte {
	b := make([]byte, 12)
	b[0], b[1], b[3] = 0x86, 9, 1
	put32(b, 4, base)
	put32(b, 8, size)
	return b
}

// resEdgeIRQ is an edge-triggered, active-high, exclusive interrupt (6.4.3.6).
func resEdgeIRQ(gsi uint32) []byte {
	b := make([]byte, 9)
	b[0], b[1], b[3], b[4] = 0x89, 6, 1|2, 1
	put32(b, 5, gsi)
	return b
}

// Kinds of address space that a bridge hands down (6.4.3.5).
const (
	resSpaceMemory = 0
	resSpacePorts  = 1
	resSpaceBus    = 2
)

// resWindow is a range of an address space that a bridge hands down, with both
// ends fixed. Memory takes the 32-bit form, the others the 16-bit one.
func resWindow(space uint8, base, size uint32) []byte {
	const fixed = 1<<2 | 1<<3
	last := base + size - 1
	if space != resSpaceMemory {
		specific := byte(0)
		if space == resSpacePorts {
			specific = 3 // ISA and other addresses
		}
		b := make([]byte, 16)
		copy(b, []byte{0x88, 13, 0, space, fixed, specific})
		put16(b, 8, uint16(base))
		put16(b, 10, uint16(last))
		put16(b, 14, uint16(size))
		return b
	}
	b := make([]byte, 26)
	copy(b, []byte{0x87, 23, 0, space, fixed, 1}) // read and write, not cached
	put32(b, 10, base)
	put32(b, 14, last)
	put32(b, 22, size)
	return b
}

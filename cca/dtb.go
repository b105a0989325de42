package cca

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/gvmm/gvmm/vmm/memory"
)

// deviceTree is what a device tree says about the layout it was made for.
type deviceTree struct {
	ram    memory.Range // reg of /memory, empty where there is none of one range
	initrd memory.Range // of /chosen, empty where there is none
}

const (
	fdtMagic    = 0xd00dfeed
	fdtHeader   = 40 // bytes
	fdtMaxDepth = 64
)

// The tokens of a structure block (Devicetree Specification 0.4, 5.4.1).
const (
	fdtBeginNode = 1
	fdtEndNode   = 2
	fdtProp      = 3
	fdtNOP       = 4
	fdtEnd       = 9
)

// readDeviceTree reads a flattened device tree (Devicetree Specification 0.4,
// chapter 5). Addresses and sizes in it are taken to be of 64 bits.
func readDeviceTree(b []byte) (t deviceTree, err error) {
	be := binary.BigEndian
	if len(b) < fdtHeader || be.Uint32(b) != fdtMagic {
		return t, errors.New("not a flattened device tree: it does not start with d00dfeed")
	}
	structure, err := fdtBlock(b, be.Uint32(b[8:]), be.Uint32(b[36:]), "structure block")
	if err != nil {
		return t, err
	}
	names, err := fdtBlock(b, be.Uint32(b[12:]), be.Uint32(b[32:]), "strings block")
	if err != nil {
		return t, err
	}
	var start, end uint64
	node := "" // of depth 2, as / is 1
	for pos, depth := uint32(0), 0; ; {
		if uint64(pos)+4 > uint64(len(structure)) {
			return t, fmt.Errorf("structure block has no end at offset %#x", pos)
		}
		token := be.Uint32(structure[pos:])
		rest := structure[pos+4:]
		pos += 4
		switch token {
		case fdtBeginNode:
			name, _, ok := strings.Cut(string(rest[:min(len(rest), 256)]), "\x00")
			if depth++; !ok || depth > fdtMaxDepth {
				return t, fmt.Errorf("node at offset %#x of the structure block: its name does not end, or it lies too deep", pos)
			}
			if depth == 2 {
				node, _, _ = strings.Cut(name, "@")
			}
			pos += align4(uint32(len(name)) + 1)
		case fdtEndNode:
			depth--
		case fdtProp:
			if len(rest) < 8 {
				return t, fmt.Errorf("property at offset %#x of the structure block is cut off", pos)
			}
			size, name := be.Uint32(rest), be.Uint32(rest[4:])
			if uint64(size) > uint64(len(rest)-8) || uint64(name) >= uint64(len(names)) {
				return t, fmt.Errorf("property at offset %#x of the structure block does not lie in the tree", pos)
			}
			value := rest[8 : 8+size]
			prop, _, _ := strings.Cut(string(names[name:min(len(names), int(name)+32)]), "\x00")
			switch {
			case depth != 2:
			case node == "memory" && prop == "reg" && size == 16:
				t.ram = memory.Range{Base: memory.GPA(be.Uint64(value)), Size: be.Uint64(value[8:])}
			case node == "chosen" && prop == "linux,initrd-start" && size == 8:
				start = be.Uint64(value)
			case node == "chosen" && prop == "linux,initrd-end" && size == 8:
				end = be.Uint64(value)
			}
			pos += 8 + align4(size)
		case fdtNOP:
		case fdtEnd:
			if end > start {
				t.initrd = memory.Range{Base: memory.GPA(start), Size: end - start}
			}
			return t, nil
		default:
			return t, fmt.Errorf("token %#x at offset %#x of the structure block is none", token, pos-4)
		}
	}
}

// fdtBlock returns a block of the tree that its header names.
func fdtBlock(b []byte, off, size uint32, what string) ([]byte, error) {
	if uint64(off)+uint64(size) > uint64(len(b)) {
		return nil, fmt.Errorf("%s, %d bytes at offset %#x, does not lie in the file of %d bytes", what, size, off, len(b))
	}
	return b[off : off+size], nil
}

func align4(n uint32) uint32 { return (n + 3) &^ 3 }

package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// images are what the tests launch: an ELF64, a Linux bzImage with its initrd,
// and firmware with OVMF's metadata to which both are handed over.
type images struct{ elf, bzImage, initrd, firmware string }

func writeImages(t testing.TB) images {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return images{
		write("guest.elf", sampleELF()), write("bzImage", bzImage()),
		write("initrd", bytes.Repeat([]byte("an initial RAM disk. "), 999)), write("firmware.fd", firmware()),
	}
}

// bzImage is one as far as its header goes (Linux Documentation/arch/x86/boot.rst).
func bzImage() []byte {
	b := make([]byte, 0x400+0x3456)
	for i := range b[0x400:] {
		b[0x400+i] = byte(i * 5 >> 2)
	}
	le := binary.LittleEndian
	b[0x1f1] = 1 // setup sectors
	le.PutUint32(b[0x1f4:], 0x345)
	le.PutUint16(b[0x1fe:], 0xaa55)
	b[0x201] = 0x66
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 1) // a 64-bit entry
	le.PutUint32(b[0x238:], 2047)
	le.PutUint64(b[0x258:], 0x100000)
	le.PutUint32(b[0x260:], 0x8000)
	return b
}

// firmware is an image of three pages with OVMF's table: reset block, place for
// hashes and SEV metadata, whose sections lie low so that a small guest has them.
func firmware() []byte {
	const size, tableEnd = 3 * 4096, 32
	b := bytes.Repeat([]byte{0xf4}, size)
	le := binary.LittleEndian
	guid := func(a uint32, c, d uint16, e string) []byte {
		g := le.AppendUint32(nil, a)
		g = le.AppendUint16(le.AppendUint16(g, c), d)
		return append(g, e...)
	}
	metadata := append([]byte("ASEV"), make([]byte, 12)...)
	sections := [][3]uint32{{0x802000, 0x3000, 1}, {0x805000, 0x1000, 2}, {0x806000, 0x1000, 3}, {0x808000, 0x1000, 0x10}, {0x807000, 0x1000, 1}}
	le.PutUint32(metadata[4:], uint32(16+12*len(sections)))
	le.PutUint32(metadata[8:], 1)
	le.PutUint32(metadata[12:], uint32(len(sections)))
	for _, s := range sections {
		for _, v := range s {
			metadata = le.AppendUint32(metadata, v)
		}
	}
	copy(b[size-16:], "\x0f\x20\xc0\xeb\xfe") // the reset vector
	const metadataAt = 0x2800
	copy(b[metadataAt:], metadata)
	var table []byte
	entry := func(data, id []byte) {
		table = append(append(table, data...), le.AppendUint16(nil, uint16(len(data)+18))...)
		table = append(table, id...)
	}
	entry(le.AppendUint32(nil, 0x80b004), guid(0x00f771de, 0x1a7e, 0x4fcb, "\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e"))
	entry(le.AppendUint32(le.AppendUint32(nil, 0x808c00), 0x400), guid(0x7255371f, 0x3a3b, 0x4b04, "\x92\x7b\x1d\xa6\xef\xa8\xd4\x54"))
	entry(le.AppendUint32(nil, size-metadataAt), guid(0xdc886566, 0x984a, 0x4798, "\xa7\x5e\x55\x85\xa7\xbf\x67\xcc"))
	table = le.AppendUint16(table, uint16(len(table)+18))
	table = append(table, guid(0x96b582de, 0x1fb2, 0x45f7, "\xba\xea\xa3\x66\xc5\x5a\x08\x2d")...)
	copy(b[size-tableEnd-len(table):], table)
	return b
}

package boot

import (
	"bytes"
	"strings"
	"testing"
)

func TestDetect(t *testing.T) {
	pvh32 := testELF{machine: emI386, kind: elfExec, entry: 0x100000, segments: []testSegment{
		load(0x100000, testCode, 300), note(elfNote("Xen", noteXenPhys32, []byte{4, 0, 0x10, 0}))}}
	mb64 := goodELF64()
	mb64.prefix = mbHeader(0)
	flat := append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0, 0x300000, 0x200020), testCode...)
	for _, c := range []struct {
		name     string
		file     []byte
		format   Format
		protocol Protocol
		machine  Machine
		entry    uint64
		memory   uint64
		system   string
	}{
		{"Unikraft for QEMU", goodMultiboot(".uk_inittab", ".uk_libparam_params").build(), FormatMultiboot, ProtocolMultiboot, MachinePC, 0x100010, DefaultMemoryUnikraft, "Unikraft"},
		{"other multiboot", goodMultiboot().build(), FormatMultiboot, ProtocolMultiboot, MachinePC, 0x100010, DefaultMemoryOther, "unknown"},
		{"Unikraft for Firecracker", goodELF64(".uk_inittab").build(), FormatELF64, ProtocolLinux64, MachineMicroVM, 0x100010, DefaultMemoryUnikraft, "Unikraft, without library parameters"},
		{"vmlinux", goodVmlinux().build(), FormatELF64, ProtocolPVH, MachineMicroVM, 0x1000020, DefaultMemoryLinux, "Linux"},
		{"gzipped vmlinux", gz(t, goodVmlinux().build()), FormatELF64, ProtocolPVH, MachineMicroVM, 0x1000020, DefaultMemoryLinux, "Linux"},
		{"32-bit PVH", pvh32.build(), FormatELF32, ProtocolPVH, MachineMicroVM, 0x100004, DefaultMemoryOther, "unknown"},
		{"ELF64 with a multiboot header", mb64.build(), FormatMultiboot, ProtocolMultiboot, MachinePC, 0x100010, DefaultMemoryOther, "unknown"},
		{"flat multiboot", flat, FormatMultiboot, ProtocolMultiboot, MachinePC, 0x200020, DefaultMemoryOther, "unknown"},
		{"bzImage", goodBzImage(), FormatBzImage, ProtocolLinux64, MachineMicroVM, 0x1000200, DefaultMemoryLinux, "Linux"},
		{"arm64 Image", goodARM64(), FormatARM64, ProtocolARM64, MachineVirt, 0x40080000, DefaultMemoryLinux, "Linux"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := mustOpen(t, c.file)
			if img.Format != c.format || img.Protocol != c.protocol || img.Machine != c.machine {
				t.Errorf("got %s by %s on %s, want %s by %s on %s", img.Format, img.Protocol, img.Machine, c.format, c.protocol, c.machine)
			}
			if uint64(img.Entry) != c.entry {
				t.Errorf("entry %#x, want %#x", uint64(img.Entry), c.entry)
			}
			if m := img.DefaultMemory(); m != c.memory {
				t.Errorf("default memory %s, want %s", humanSize(m), humanSize(c.memory))
			}
			if s := img.System(); s != c.system {
				t.Errorf("system %q, want %q", s, c.system)
			}
		})
	}
}

func TestDetectStrippedUnikraft(t *testing.T) {
	e := goodELF64()
	e.segments[0].data = append([]byte("Unikraft Calypso"), testCode[16:]...)
	if img := mustOpen(t, e.build()); !img.Unikraft || !img.LibParams {
		t.Errorf("Unikraft %v, library parameters %v: want both without sections to look at", img.Unikraft, img.LibParams)
	}
}

func TestEntryGivenAsVirtualAddress(t *testing.T) {
	e := goodVmlinux()
	e.segments = e.segments[:1]
	e.entry = e.segments[0].vaddr + 0x40
	if img := mustOpen(t, e.build()); img.Protocol != ProtocolLinux64 || img.Entry != 0x1000040 {
		t.Errorf("entered by %s at %#x, want linux-64 at 0x1000040", img.Protocol, uint64(img.Entry))
	}
}

// TestRefuse holds every refusal, with the words that tell the user why.
func TestRefuse(t *testing.T) {
	elf64 := func(change func(*testELF)) []byte {
		e := goodELF64()
		change(&e)
		return e.build()
	}
	poke := func(b []byte, change func([]byte)) []byte {
		change(b)
		return b
	}
	bz := func(change func([]byte)) []byte { return poke(goodBzImage(), change) }
	const huge = ^uint64(0)
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "empty"},
		{"text", []byte("hello, this is no kernel"), "not a kernel gvmm knows"},
		{"xz", []byte("\xfd7zXZ\x00\x00"), "xz -d"},
		{"zstd", []byte("\x28\xb5\x2f\xfd...."), "zstd -d"},
		{"cpio", []byte("07070100"), "--initrd"},
		{"gzip of text", gz(t, []byte("hello, this is no kernel")), "not a kernel gvmm knows"},
		{"gzip of gzip", gz(t, gz(t, goodVmlinux().build())), "gzip inside gzip"},
		{"truncated gzip", gz(t, goodVmlinux().build())[:60], "unexpected EOF"},

		{"short ELF header", goodELF64().build()[:40], "truncated"},
		{"short ELF64 header", goodELF64().build()[:60], "truncated"},
		{"big-endian", poke(goodELF64().build(), func(b []byte) { b[5] = 2 }), "offset 5"},
		{"ELF class", poke(goodELF64().build(), func(b []byte) { b[4] = 9 }), "offset 4"},
		{"machine", elf64(func(e *testELF) { e.machine = 243 }), "machine 243 at offset 18"},
		{"arm64 ELF", elf64(func(e *testELF) { e.machine = emARM64 }), "objcopy -O binary"},
		{"object file", elf64(func(e *testELF) { e.kind = 1 }), "type 1 at offset 16"},
		{"no program headers", elf64(func(e *testELF) { e.segments = nil }), "no program headers"},
		{"program headers outside", poke(goodELF64().build(), func(b []byte) { put64(b, 32, huge-10) }), "offset 0xfffffffffffffff5"},
		{"program header size", poke(goodELF64().build(), func(b []byte) { put16(b, 54, 57) }), "57 bytes"},
		{"segment outside the file", elf64(func(e *testELF) { e.segments[1].filesz = 0x1000 }), "segment 1"},
		{"segment offset wraps", elf64(func(e *testELF) { e.segments[1].off = huge - 1 }), "0xfffffffffffffffe"},
		{"file size above memory size", elf64(func(e *testELF) { e.segments[1].memsz = 3 }), "4 bytes in the file but 3 in memory"},
		{"address wraps", elf64(func(e *testELF) { e.segments[1].paddr = huge - 2 }), "wrap"},
		{"above the hole", elf64(func(e *testELF) { e.segments[1].paddr = 0xd0000000 }), "0xd0000000"},
		{"up into the hole", elf64(func(e *testELF) { e.segments[1].memsz = 0xd0000000 }), "0xd0000000"},
		{"in the BIOS area", elf64(func(e *testELF) { e.segments[1].paddr = 0xf0000 }), "not free memory"},
		{"overlap", elf64(func(e *testELF) { e.segments[1].paddr = 0x10012b }), "overlaps segment 0x100000-0x10012b"},
		{"entry outside", elf64(func(e *testELF) { e.entry = 0x500000 }), "entry point 0x500000"},
		{"only empty segments", elf64(func(e *testELF) {
			e.segments = []testSegment{{kind: ptLoad, paddr: 0x100000}}
		}), "no segment"},
		{"PVH entry outside", elf64(func(e *testELF) {
			e.segments = append(e.segments, note(elfNote("Xen", noteXenPhys32, []byte{0, 0, 0, 0, 1, 0, 0, 0})))
		}), "entry point 0x100000000"},
		{"ELF32 without a protocol", func() []byte { e := goodMultiboot(); e.prefix = nil; return e.build() }(), "nothing says how to enter it"},

		{"flat without addresses", append(mbHeader(0), testCode...), "bit 16"},
		{"header before load address", append(mbHeader(multibootAddresses, 0x1fffff, 0x200000, 0, 0, 0x200000), testCode...), "before the start of the file"},
		{"load address before the file", append(mbHeader(multibootAddresses, 0x200001, 0x200000, 0, 0, 0x200000), testCode...), "before the start of the file"},
		{"load end below load address", append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0x1fffff, 0, 0x200000), testCode...), "load end"},
		{"load end behind the file", append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0xffffffff, 0, 0x200000), testCode...), "truncated"},
		{"bss end below load end", append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0, 0x200001, 0x200000), testCode...), "bss end"},
		{"bss in the hole", append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0, 0xffffffff, 0x200000), testCode...), "0xd0000000"},
		{"flat entry outside", append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0, 0, 0x1fffff), testCode...), "entry point"},
		{"unknown requirement", append(mbHeader(multibootAddresses|8, 0x200000, 0x200000, 0, 0, 0x200000), testCode...), "bits 0x8"},

		{"truncated bzImage", goodBzImage()[:0x900], "truncated"},
		{"bzImage header cut", goodBzImage()[:0x206], "truncated"},
		{"old protocol", bz(func(b []byte) { put16(b, zpVersion, 0x20b) }), "2.11 at offset 0x206"},
		{"32-bit kernel", bz(func(b []byte) { put16(b, zpXLoadFlags, 0) }), "32-bit kernel"},
		{"header too short", bz(func(b []byte) { b[zpJump] = 0x20 }), "ends at offset 0x222"},
		{"header too long", bz(func(b []byte) { b[zpJump] = 0xff }), "ends at offset 0x301"},
		{"no payload", goodBzImage()[:0x600], "truncated"},
		{"payload without entry", poke(goodBzImage()[:0x700], func(b []byte) { put32(b, zpSyssize, 1) }), "64-bit entry"},
		{"preferred address wraps", bz(func(b []byte) { put64(b, zpPrefAddress, huge) }), "pref_address"},
		{"preferred address low", bz(func(b []byte) { put64(b, zpPrefAddress, 0x1000) }), "pref_address"},
		{"init size", bz(func(b []byte) { put32(b, zpInitSize, 0xffffffff) }), "pref_address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := open(c.file)
			if err == nil {
				t.Fatalf("accepted as %s by %s", img.Format, img.Protocol)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: want it to say %q", err, c.want)
			}
		})
	}
}

func TestGzipIsBounded(t *testing.T) {
	bomb := gz(t, append(goodVmlinux().build(), make([]byte, 64<<20)...))
	_, err := OpenLimit(bytes.NewReader(bomb), int64(len(bomb)), 8<<20)
	if err == nil || !strings.Contains(err.Error(), "more than 8 MiB") {
		t.Fatalf("64 MiB from %d bytes: %v", len(bomb), err)
	}
}

// shortReader says it is longer than it is, as a file does that is cut while
// gvmm reads it.
type shortReader struct{ *bytes.Reader }

func TestFileShorterThanItsSize(t *testing.T) {
	b := goodELF64().build()
	_, err := Open(shortReader{bytes.NewReader(b)}, int64(len(b))+100000)
	if err == nil {
		t.Fatal("accepted")
	}
	if _, err := Open(bytes.NewReader(b), -1); err == nil {
		t.Fatal("negative size accepted")
	}
}

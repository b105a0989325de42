package cca

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

func pattern(n, m int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((i*m + 3) % 251)
	}
	return b
}

// testImage is an arm64 Image of n bytes.
func testImage(n int, textOffset, imageSize uint64) []byte {
	b := pattern(n, 7)
	binary.LittleEndian.PutUint64(b[8:], textOffset)
	binary.LittleEndian.PutUint64(b[16:], imageSize)
	copy(b[56:], "ARM\x64")
	return b
}

// testTree is a device tree with the nodes that kvmtool's has for memory and initrd.
func testTree(ram, initrd memory.Range) []byte {
	be := binary.BigEndian
	var structure, names []byte
	pad := func(v []byte) []byte { return append(v, make([]byte, -len(v)&3)...) }
	begin := func(n string) {
		structure = append(be.AppendUint32(structure, fdtBeginNode), pad([]byte(n+"\x00"))...)
	}
	end := func() { structure = be.AppendUint32(structure, fdtEndNode) }
	prop := func(n string, v []byte) {
		structure = be.AppendUint32(be.AppendUint32(structure, fdtProp), uint32(len(v)))
		at := bytes.Index(names, []byte(n+"\x00"))
		if at < 0 {
			at = len(names)
			names = append(names, n+"\x00"...)
		}
		structure = append(be.AppendUint32(structure, uint32(at)), pad(v)...)
	}
	begin("")
	prop("#address-cells", be.AppendUint32(nil, 2))
	prop("#size-cells", be.AppendUint32(nil, 2))
	begin("chosen")
	prop("bootargs", []byte("console=ttyS0\x00"))
	if initrd.Size != 0 {
		prop("linux,initrd-start", be.AppendUint64(nil, uint64(initrd.Base)))
		prop("linux,initrd-end", be.AppendUint64(nil, uint64(initrd.End())))
	}
	end()
	begin("memory")
	prop("device_type", []byte("memory\x00"))
	prop("reg", be.AppendUint64(be.AppendUint64(nil, uint64(ram.Base)), ram.Size))
	end()
	end()
	structure = be.AppendUint32(structure, fdtEnd)
	var b []byte
	for _, w := range []int{fdtMagic, 56 + len(structure) + len(names), 56, 56 + len(structure), 40, 17, 16, 0, len(names), len(structure)} {
		b = be.AppendUint32(b, uint32(w))
	}
	b = append(b, make([]byte, 16)...)
	return append(append(b, structure...), names...)
}

const (
	lkvmRAM       memory.GPA = 0x80000000
	lkvmLoadLimit            = 256 << 20
)

// testLKVM is a launch of the test image whose device tree fits.
func testLKVM(ram uint64, image []byte, initrdSize int, p Params) *LKVM {
	l := &LKVM{Params: p, Kernel: bytes.NewReader(image)}
	var initrd memory.Range
	if initrdSize > 0 {
		dtb := lkvmRAM + memory.GPA(min(ram, lkvmLoadLimit)) - 2<<20
		initrd = memory.Range{Base: (dtb - memory.GPA(initrdSize) - 1) &^ 3, Size: uint64(initrdSize)}
		l.Initrd = bytes.NewReader(pattern(initrdSize, 11))
	}
	l.DTB = bytes.NewReader(testTree(memory.Range{Base: lkvmRAM, Size: ram}, initrd))
	return l
}

// The RIMs were computed by a separate program, in another language, from the
// same bytes.
func TestLKVMRIM(t *testing.T) {
	plain := testImage(700001, 0, 5<<20)
	p := Params{Breakpoints: 5, Watchpoints: 3}
	with := func(f func(*Params)) Params { q := p; f(&q); return q }
	for _, c := range []struct {
		name string
		l    *LKVM
		v    Version
		bss  bool
		want string
	}{
		{"256 MiB", testLKVM(256<<20, plain, 5001, p), RMM1, false,
			"f859723382c5b24678c9f43a80dfede511609f97e0e36c48ab13cc6301838fb9"},
		{"SHA-512", testLKVM(256<<20, plain, 5001, with(func(q *Params) { q.Hash = SHA512 })), RMM1, false,
			"c9565c313f21da55063ce2e830971dc5519ab032c449fc23a900092d2b834ab1cf4aaf09933a1306cae4a63f2ac6c483ca7ca87ee53237e3e3f974b4d524017e"},
		{"SVE, PMU, odd RAM", testLKVM(128<<20+8192, testImage(700001, 0x81000, 5<<20), 0, Params{Breakpoints: 1, Watchpoints: 1, SVE: 512, PMU: true, PMUCounters: 6}), RMM1, false,
			"e255a933041063a924ea3fc21b6c1fcf650a9b5b6d973a5024fe3d2816ed3c3d"},
		{"1 GiB blocks", testLKVM(3<<30, plain, 5001, with(func(q *Params) { q.IPABits = 40 })), RMM1, false,
			"a11e0bdf9796ba3210a28cc33aa8afccf6a22fa27fd63ea2a0cad104166b707c"},
		{"LPA2", testLKVM(3<<30, plain, 5001, with(func(q *Params) { q.IPABits, q.LPA2 = 52, true })), RMM1, false,
			"7dfed1d8fa73e7dd9c88f7de5df0c260050da3d47dde543f86f25ff232016260"},
		{"RMM 2", testLKVM(256<<20, plain, 5001, p), RMM2, false,
			"6fb9dae63223aa560e2935fc012b7b22e6a179a977d8068e5af2546115c9d4a0"},
		{"BSS only", testLKVM(256<<20, plain, 5001, p), RMM1, true,
			"e1666fda960978f943d7041621c256783b74a31403830d829376a05b0f7a3bc2"},
	} {
		c.l.BSSOnly = c.bss
		launch, err := c.l.Launch()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		rim, err := launch.Measure(c.v, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := hex.EncodeToString(rim); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestLKVMSteps(t *testing.T) {
	l := testLKVM(256<<20, testImage(5000, 0, 12288), 100, Params{})
	launch, err := l.Launch()
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	last := ""
	rim, err := launch.Measure(RMM1, func(name string, s Step) {
		if s.Call != last || s.Call == "RMI_DATA_CREATE" && name != "device tree" {
			calls = append(calls, name+" "+s.String())
		}
		last = s.Call
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"parameters RMI_REALM_CREATE   flags 0x0 s2sz 33 ", "RAM RMI_RTT_INIT_RIPAS 0x80000000-0x801fffff rim ",
		"kernel RMI_DATA_CREATE    0x80000000-0x80000fff content ", "kernel RMI_DATA_CREATE    0x80001000-0x80001fff content ",
		"initrd RMI_DATA_CREATE    0x8fdff000-0x8fdfffff content ", "vCPU 0 RMI_REC_CREATE     pc 0x80000000 x0-x7 [0x8fe00000 0x0",
	} {
		if i >= len(calls) || !strings.HasPrefix(calls[i], want) {
			t.Fatalf("step %d: got %q, want %q", i, calls[min(i, len(calls)-1)], want)
		}
	}
	if end := "rim " + hex.EncodeToString(rim); !strings.HasSuffix(calls[len(calls)-1], end) {
		t.Errorf("last step %q does not end with %q", calls[len(calls)-1], end)
	}
}

// RAM is read from the device tree where it is not given, and kvmtool's place
// for the tree follows from it.
func TestLKVMFromTree(t *testing.T) {
	for ram, want := range map[uint64]uint64{128 << 20: 0x87e00000, 256 << 20: 0x8fe00000, 4 << 30: 0x8fe00000} {
		launch, err := testLKVM(ram, testImage(5000, 0, 0x3000), 0, Params{}).Launch()
		if err != nil {
			t.Fatal(err)
		}
		rec := launch.Ops[len(launch.Ops)-1].REC
		if rec.GPRs[0] != want || launch.Ops[0].Size != ram {
			t.Errorf("RAM %#x: device tree at %#x, want %#x; first %+v", ram, rec.GPRs[0], want, launch.Ops[0])
		}
		if bits := launch.Params.IPABits; bits != 33 && (ram < 4<<30 || bits != 34) {
			t.Errorf("RAM %#x: %d IPA bits", ram, bits)
		}
	}
}

func TestLKVMRefusals(t *testing.T) {
	img := testImage(5000, 0, 0x3000)
	for _, c := range []struct {
		say  string
		edit func(*LKVM)
	}{
		{"--dump-dtb", func(l *LKVM) { l.DTB = nil }},
		{"d00dfeed", func(l *LKVM) { l.DTB = bytes.NewReader(img) }},
		{"room for 65536", func(l *LKVM) { l.DTB = bytes.NewReader(make([]byte, 65537)) }},
		{"-M says", func(l *LKVM) { l.RAM = 512 << 20 }},
		{"-i gives", func(l *LKVM) { l.Initrd = nil }},
		{"-i gives", func(l *LKVM) { l.Initrd = bytes.NewReader(make([]byte, 50)) }},
		{"need 289 MiB", func(l *LKVM) { l.Initrd = bytes.NewReader(make([]byte, 300000000)) }},
		{"no ELF, bzImage, arm64 Image", func(l *LKVM) { l.Kernel = bytes.NewReader(pattern(100, 3)) }},
		{"not an uncompressed arm64 Image", func(l *LKVM) {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write(img)
			_ = w.Close()
			l.Kernel = bytes.NewReader(b.Bytes())
		}},
		{"is empty", func(l *LKVM) { l.Kernel = bytes.NewReader(nil) }},
		{"need 1048579 MiB", func(l *LKVM) { l.Kernel = bytes.NewReader(testImage(5000, 1<<40, 0x3000)) }},
		{"so big", func(l *LKVM) { l.Kernel = bytes.NewReader(testImage(5000, 0, 1<<63)) }},
		{"use -M 257M", func(l *LKVM) { l.Kernel = bytes.NewReader(testImage(5000, 0, 255<<20)) }},
		{"whole 4 KiB pages", func(l *LKVM) { l.RAM = 4097 }},
		{"need 3 MiB", func(l *LKVM) {
			l.DTB = bytes.NewReader(testTree(memory.Range{Base: lkvmRAM, Size: 2 << 20}, memory.Range{}))
		}},
	} {
		l := testLKVM(256<<20, img, 100, Params{})
		c.edit(l)
		if _, err := l.Launch(); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("got %v, want %q", err, c.say)
		}
	}
}

func FuzzLKVM(f *testing.F) {
	f.Add(testImage(5000, 0, 0x3000), testTree(memory.Range{Base: lkvmRAM, Size: 256 << 20}, memory.Range{}), uint64(0))
	f.Add(testImage(64, 0x80000, 0), testTree(memory.Range{Base: lkvmRAM, Size: 128 << 20}, memory.Range{Base: 0x87000000, Size: 9}), uint64(64<<20))
	f.Fuzz(func(t *testing.T, image, tree []byte, ram uint64) {
		l := LKVM{Kernel: bytes.NewReader(image), DTB: bytes.NewReader(tree), RAM: ram, BSSOnly: true}
		launch, err := l.Launch()
		if err != nil {
			return
		}
		if _, err := launch.Measure(RMM2, nil); err != nil && launch.Params.IPABits <= 48 {
			t.Errorf("laid out, but not measured: %v", err)
		}
		for i, op := range launch.Ops {
			if op.Base < lkvmRAM && op.Kind != OpREC || i > 0 && op.Kind == OpPopulate && op.Base < launch.Ops[i-1].End() {
				t.Errorf("operation %d lies wrong: %v", i, op.Range)
			}
		}
	})
}

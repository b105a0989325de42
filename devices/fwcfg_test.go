package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/gvmm/gvmm/vmm/memory"
)

// fwGuest drives the device as firmware does.
type fwGuest struct {
	t   testing.TB
	f   *FWCfg
	mem *memory.Guest
}

const (
	fwRequest = 0x800  // where the guest puts its requests
	fwBuffer  = 0x1000 // and its data
	fwMemory  = 0x4000 // bytes of RAM
)

func newFWGuest(t testing.TB, items ...FWCfgItem) *fwGuest {
	mem, err := memory.New(memory.Range{Size: fwMemory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	return &fwGuest{t, NewFWCfg(3, 64<<20, mem, items), mem}
}

// dma makes a request and returns what became of its control word.
func (g *fwGuest) dma(control, length uint32, at uint64) uint32 {
	g.t.Helper()
	be := binary.BigEndian
	r := be.AppendUint64(be.AppendUint32(be.AppendUint32(nil, control), length), at)
	if err := g.mem.Write(fwRequest, r); err != nil {
		g.t.Fatal(err)
	}
	g.f.Write(fwDMA, []byte{0, 0, 0, 0})
	g.f.Write(fwDMALow, be.AppendUint32(nil, fwRequest))
	if err := g.mem.Read(fwRequest, r[:4]); err != nil {
		g.t.Fatal(err)
	}
	return be.Uint32(r)
}

func (g *fwGuest) port(key uint16, n int) []byte {
	g.f.Write(0, []byte{byte(key), byte(key >> 8)})
	all := make([]byte, n)
	for i := range all {
		all[i] = 0xff
		g.f.Read(fwData, all[i:i+1])
	}
	return all
}

func (g *fwGuest) buffer(n int) []byte {
	b := make([]byte, n)
	if err := g.mem.Read(fwBuffer, b); err != nil {
		g.t.Fatal(err)
	}
	return b
}

func TestFWCfgWithoutDMA(t *testing.T) {
	f := NewFWCfg(3, 64<<20, nil, nil)
	g := &fwGuest{t: t, f: f}
	for key, want := range map[uint16][]byte{
		fwSignature: []byte("QEMU\x00"), fwID: {1, 0, 0, 0}, fwCPUs: {3, 0, 0}, fwRAMSize: {0, 0, 0, 4, 0, 0, 0, 0, 0}, 0x1234: {0, 0}, fwDirectory: {0},
	} {
		if got := g.port(key, len(want)); !reflect.DeepEqual(got, want) {
			t.Errorf("key %#x: % x, want % x", key, got, want)
		}
	}
	b := []byte{0xff, 0xff, 0xff, 0xff}
	f.Write(fwDMALow, b)
	if f.Read(fwDMA, b); b[0] != 0xff {
		t.Errorf("the DMA register reads %q without DMA", b)
	}
}

func TestFWCfgFiles(t *testing.T) {
	g := newFWGuest(t, FWCfgItem{Key: 0x11, Data: bytes.NewReader([]byte("kernel"))},
		FWCfgItem{Name: "etc/a", Data: bytes.NewReader([]byte("first"))}, FWCfgItem{Name: "etc/b", Data: bytes.NewReader([]byte("second file"))})
	if id := g.port(fwID, 4); id[0] != 3 {
		t.Errorf("features %#x, want traditional and DMA", id[0])
	}
	var sig [8]byte
	g.f.Read(fwDMA, sig[:4])
	g.f.Read(fwDMALow, sig[4:])
	if string(sig[:]) != "QEMU CFG" {
		t.Errorf("the DMA register reads %q", sig)
	}
	dir := g.port(fwDirectory, 4+2*64)
	if n := binary.BigEndian.Uint32(dir); n != 2 {
		t.Fatalf("%d files, want 2", n)
	}
	for i, want := range []struct{ name, text string }{{"etc/a", "first"}, {"etc/b", "second file"}} {
		e := dir[4+64*i:][:64]
		size, key := binary.BigEndian.Uint32(e), binary.BigEndian.Uint16(e[4:])
		if name := string(bytes.TrimRight(e[8:], "\x00")); name != want.name || int(size) != len(want.text) {
			t.Errorf("file %d: %q of %d bytes", i, name, size)
		}
		if got := g.dma(uint32(key)<<16|fwDMASelect|fwDMARead, size+3, fwBuffer); got != 0 {
			t.Errorf("DMA of %s: control %#x", want.name, got)
		}
		if got := g.buffer(len(want.text) + 3); string(got) != want.text+"\x00\x00\x00" {
			t.Errorf("%s holds %q", want.name, got)
		}
	}
	if got := g.port(0x11, 8); string(got) != "kernel\x00\x00" {
		t.Errorf("fixed key: %q", got)
	}
}

// Requests in parts go on where the one before ended, however they read.
func TestFWCfgDMAParts(t *testing.T) {
	text := "0123456789abcdef"
	g := newFWGuest(t, FWCfgItem{Key: 0x12, Data: bytes.NewReader([]byte(text))})
	if g.dma(0x12<<16|fwDMASelect, 0, 0) != 0 || g.dma(fwDMASkip, 3, 0) != 0 || g.dma(fwDMARead, 4, fwBuffer) != 0 {
		t.Error("a request failed")
	}
	if got := g.buffer(4); string(got) != text[3:7] {
		t.Errorf("read %q", got)
	}
	var b [1]byte
	if g.f.Read(fwData, b[:]); b[0] != text[7] {
		t.Errorf("the port goes on with %q", b)
	}
	for range 3 {
		g.dma(fwDMASkip, maxFWDMA, 0) // far behind the end is the end
	}
	if g.dma(fwDMARead, 2, fwBuffer) != 0 || string(g.buffer(2)) != "\x00\x00" {
		t.Errorf("behind the end: %q", g.buffer(2))
	}
}

func TestFWCfgRefuses(t *testing.T) {
	g := newFWGuest(t, FWCfgItem{Key: 0x12, Data: bytes.NewReader([]byte("text"))}, FWCfgItem{Key: 0x13, Data: shrunk{}})
	for name, r := range map[string]struct {
		control, length uint32
		at              uint64
	}{
		"a write":                {fwDMAWrite, 4, fwBuffer},
		"outside memory":         {fwDMARead, 4, fwMemory - 2},
		"an address that wraps":  {fwDMARead, 4, 1<<64 - 2},
		"more than memory":       {fwDMARead, fwMemory, fwBuffer},
		"a long request":         {fwDMARead, maxFWDMA + 1, fwBuffer},
		"a long skip":            {fwDMASkip, 1<<32 - 1, 0},
		"a file that was cut":    {0x13<<16 | fwDMASelect | fwDMARead, 4, fwBuffer},
		"a write of a key it is": {0x12<<16 | fwDMASelect | fwDMAWrite, 4, fwBuffer},
	} {
		if got := g.dma(r.control, r.length, r.at); got != fwDMAError {
			t.Errorf("%s: control %#x, want an error", name, got)
		}
	}
	before := g.buffer(fwMemory - fwBuffer)
	for _, at := range []uint32{fwMemory - 8, fwMemory, 0xffffffff} { // a request that is not all in memory
		g.f.Write(fwDMALow, binary.BigEndian.AppendUint32(nil, at))
	}
	g.f.Write(fwDMA, []byte{0, 0, 0, 1}) // above 4 GiB
	g.f.Write(fwDMALow, binary.BigEndian.AppendUint32(nil, fwRequest))
	if !slices.Equal(before, g.buffer(fwMemory-fwBuffer)) {
		t.Error("a refused request wrote to memory")
	}
}

// shrunk is a file that became shorter.
type shrunk struct{}

func (shrunk) Size() int64                       { return 4 }
func (shrunk) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// counted is an item that notices reads outside of it.
type counted struct {
	*bytes.Reader
	t *testing.T
}

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > c.Size() {
		c.t.Errorf("%d bytes at %d of an item of %d", len(p), off, c.Size())
	}
	n, err := c.Reader.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// FuzzFWCfg: whatever a guest selects, reads and asks DMA for, and whatever lies
// in its memory, nothing panics, reads outside an item or writes outside memory.
func FuzzFWCfg(f *testing.F) {
	f.Add([]byte{0, 2, 0x19, 0, 0, 0, 0x81, 1, 0, 0, 0, 0})
	f.Add([]byte{0x40, 0, 0, 0, 0, 10, 0, 1, 0x40, 4, 0, 0, 0, 16, 0, 0, 0x40, 8, 0, 0, 0x10, 0, 0, 0, 8, 4, 0, 0, 8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		g := newFWGuest(t, FWCfgItem{Key: 0x11, Data: counted{bytes.NewReader(make([]byte, 5000)), t}},
			FWCfgItem{Name: "etc/empty", Data: counted{bytes.NewReader(nil), t}}, FWCfgItem{Name: "etc/file", Data: counted{bytes.NewReader([]byte("contents")), t}})
		for ; len(script) >= 6; script = script[6:] { // what, width or place, four bytes
			offset, width := uint64(script[0]%FWCfgPorts), 1<<(script[1]&3)
			data := append(slices.Clone(script[2:6]), 0, 0, 0, 0)[:width]
			switch {
			case script[0]&0x40 != 0: // a word of the request
				if err := g.mem.Write(fwRequest+memory.GPA(script[1]&0xc), script[2:6]); err != nil {
					t.Fatal(err)
				}
			case offset+uint64(width) > FWCfgPorts: // the bus passes on nothing like this
			case script[0]&0x80 != 0:
				g.f.Read(offset, data)
			default:
				g.f.Write(offset, data)
			}
			if g.f.pos < 0 || g.f.left() < 0 {
				t.Fatalf("position %d, %d bytes left", g.f.pos, g.f.left())
			}
		}
	})
}

func TestPMTimer(t *testing.T) {
	const hz = 3579545
	for _, c := range []struct {
		seconds, ticks uint64
	}{{0, 0}, {1, hz}, {5, 5 * hz & 0xffffff}, {1 << 30, 1 << 30 * hz & 0xffffff}} {
		if got := timer(time.Duration(c.seconds) * time.Second); uint64(got) != c.ticks {
			t.Errorf("after %d s: %#x, want %#x", c.seconds, got, c.ticks)
		}
	}
	var a, b [4]byte
	p := NewPowerManagement(nil)
	p.Read(8, a[:])
	for p.Read(8, b[:]); a == b; p.Read(8, b[:]) { // it runs
	}
	if b[3] != 0 {
		t.Errorf("%x: more than 24 bits", b)
	}
}

func TestPIIX(t *testing.T) {
	var ports, mmio Bus
	p, err := NewPCI(&ports, &mmio)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddPIIX(0x600); err != nil {
		t.Fatal(err)
	}
	config := func(address uint32) uint32 {
		var b [4]byte
		ports.Write(pciConfigPort, binary.LittleEndian.AppendUint32(nil, 1<<31|address))
		ports.Read(pciConfigPort+4, b[:])
		return binary.LittleEndian.Uint32(b[:])
	}
	for _, c := range []struct {
		what          string
		address, want uint32
	}{
		{"ISA bridge", 1 << 11, 0x70008086},
		{"its header type: alone in its slot", 1<<11 | 0xc, 0},
		{"power management", 1<<11 | 3<<8, 0x71138086},
		{"its base", 1<<11 | 3<<8 | piixPMBase, 0x601},
		{"its switch", 1<<11 | 3<<8 | piixPMMisc, 1},
		{"function 1", 1<<11 | 1<<8, 0xffffffff},
		{"function 3 of another slot", 3 << 8, 0xffffffff},
		{"function 3 of an empty slot", 5<<11 | 3<<8, 0xffffffff},
	} {
		if got := config(c.address); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
	// The firmware's attempts to move the ports leave them where they are.
	ports.Write(pciConfigPort, binary.LittleEndian.AppendUint32(nil, 1<<31|1<<11|3<<8|piixPMBase))
	ports.Write(pciConfigPort+4, []byte{0, 0xb0, 0, 0})
	if got := config(1<<11 | 3<<8 | piixPMBase); got != 0x601 {
		t.Errorf("the base moved to %#x", got)
	}
}

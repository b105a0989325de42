package devices

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// pciGuest accesses configuration space as a guest does.
type pciGuest struct {
	t           *testing.T
	ports, mmio Bus
	pci         *PCI
}

func newPCIGuest(t *testing.T) *pciGuest {
	g := &pciGuest{t: t}
	var err error
	if g.pci, err = NewPCI(&g.ports, &g.mmio); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *pciGuest) access(address uint32, port uint64, write bool, data []byte) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], address)
	if !g.ports.Write(0xcf8, b[:]) {
		g.t.Fatal("no configuration port")
	}
	if write {
		g.ports.Write(port, data)
	} else {
		g.ports.Read(port, data)
	}
}

func (g *pciGuest) in(slot, register, width int) uint32 {
	var b [4]byte
	g.access(1<<31|uint32(slot)<<11|uint32(register&^3), 0xcfc+uint64(register&3), false, b[:width])
	return binary.LittleEndian.Uint32(b[:])
}

func (g *pciGuest) out(slot, register, width int, v uint32) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	g.access(1<<31|uint32(slot)<<11|uint32(register&^3), 0xcfc+uint64(register&3), true, b[:width])
}

// region answers reads with its mark and notes what happens to its BAR.
type region struct {
	mark   byte
	places []uint64 // base when attached, its complement when detached
	fail   error
}

func (r *region) Read(_ uint64, data []byte) { data[0] = r.mark }
func (r *region) Write(uint64, []byte)       {}

func (r *region) bar(port bool, size uint32) PCIBAR {
	return PCIBAR{
		Port: port, Size: size, Handler: r,
		Attach: func(base uint64) error { r.places = append(r.places, base); return r.fail },
		Detach: func(base uint64) { r.places = append(r.places, ^base) },
	}
}

func (r *region) took(t *testing.T, what string, want ...uint64) {
	t.Helper()
	if !slices.Equal(r.places, want) {
		t.Errorf("%s: %#x, want %#x", what, r.places, want)
	}
	r.places = nil
}

func at(b *Bus, addr uint64) byte {
	p := []byte{0}
	b.Read(addr, p)
	return p[0]
}

type testLine struct{ raised, lowered int }

func (l *testLine) Raise() { l.raised++ }
func (l *testLine) Lower() { l.lowered++ }

func TestPCIHostBridge(t *testing.T) {
	g := newPCIGuest(t)
	if g.in(0, 0, 4) != 0x12378086 || g.in(0, 8, 4) != 0x06000000 || g.in(0, 0x0e, 1) != 0 {
		t.Errorf("host bridge %#x, class %#x", g.in(0, 0, 4), g.in(0, 8, 4))
	}
	if g.in(1, 0, 4) != 0xffffffff {
		t.Error("an empty slot answers")
	}
	var b [4]byte
	for _, address := range []uint32{0, 1<<31 | 1<<16, 1<<31 | 1<<8} { // off, bus 1, function 1
		b = [4]byte{0xff, 0xff, 0xff, 0xff}
		if g.access(address, 0xcfc, false, b[:]); b != [4]byte{0xff, 0xff, 0xff, 0xff} {
			t.Errorf("address %#x answers %x", address, b)
		}
	}
	// The address reads back (Linux probes for mechanism 1 so); narrow writes miss it.
	g.access(0x80001804, 0xcf8, false, b[:])
	g.ports.Write(0xcf9, []byte{6})
	g.ports.Write(0xcf8, []byte{1, 2})
	if g.ports.Read(0xcf8, b[:]); binary.LittleEndian.Uint32(b[:]) != 0x80001804 {
		t.Errorf("address reads %x", b)
	}
}

func TestPCIHeader(t *testing.T) {
	g := newPCIGuest(t)
	read, wrote := 0, []int(nil)
	line := &testLine{}
	f, err := g.pci.Add(PCIConfig{
		Name: "dev", Vendor: 0x1af4, Device: 0x1001, SubVendor: 0x1af4, Subsystem: 2, Revision: 3, Class: 0x018000,
		IRQ: 11, Line: line,
		Capabilities: []PCICapability{
			{Data: []byte{0x11, 0xee, 1, 0}, Writable: []byte{0, 0, 0, 0xc0}, Written: func(d []byte, at int) { wrote = append(wrote, at, int(d[3])) }},
			{Data: []byte{9, 0, 8, 0, 1, 2, 3, 4}, Read: func(d []byte, at int) { read++; d[7] = byte(at) }},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for register, want := range map[int]uint32{0: 0x10011af4, 8: 0x01800003, 0x2c: 0x00021af4, 0x3c: 0x010b, 0x34: 0x40, 0x40: 0x00014411} {
		if got := g.in(1, register, 4); got != want {
			t.Errorf("register %#x is %#x, want %#x", register, got, want)
		}
	}
	if g.in(1, 6, 2)&0x10 == 0 || g.in(1, 0x45, 1) != 0 {
		t.Error("capability list")
	}
	read = 0
	if g.in(1, 0x48, 4) != 0x04030201&0xffffff|4<<24 || read != 1 {
		t.Errorf("capability reads %#x after %d calls", g.in(1, 0x48, 4), read)
	}
	g.out(1, 0x42, 2, 0xffff)
	if !slices.Equal(wrote, []int{2, 0xc0}) || g.in(1, 0x40, 4) != 0xc0014411 {
		t.Errorf("written %v, capability %#x", wrote, g.in(1, 0x40, 4))
	}
	g.out(1, 0x3c, 1, 5)
	g.out(1, 0, 4, 0)
	g.out(1, 0x2c, 4, 0)
	g.out(1, 0x10, 4, 0xffffffff)
	if g.in(1, 0x3c, 2) != 0x0105 || g.in(1, 0, 4) != 0x10011af4 || g.in(1, 0x2c, 4) != 0x00021af4 || g.in(1, 0x10, 4) != 0 {
		t.Error("read-only registers change")
	}

	f.SetINTx(true)
	f.SetINTx(true)
	if line.raised != 1 || g.in(1, 6, 2)&8 == 0 {
		t.Errorf("raised %d times, status %#x", line.raised, g.in(1, 6, 2))
	}
	g.out(1, 4, 2, 0x407) // INTx Disable
	if line.lowered != 1 || g.in(1, 6, 2)&8 == 0 {
		t.Error("INTx Disable does not release the line, or clears the status")
	}
	g.out(1, 4, 2, 7)
	if f.SetINTx(false); line.raised != 2 || line.lowered != 2 || g.in(1, 6, 2)&8 != 0 {
		t.Errorf("raised %d, lowered %d", line.raised, line.lowered)
	}
}

func TestPCIRanges(t *testing.T) {
	g := newPCIGuest(t)
	a, b, c := &region{mark: 1}, &region{mark: 2}, &region{mark: 3}
	fa, err := g.pci.Add(PCIConfig{Name: "a", BARs: []PCIBAR{a.bar(true, 0x80), b.bar(false, 0x4000)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.pci.Add(PCIConfig{Name: "c", BARs: []PCIBAR{c.bar(true, 0x80)}}); err != nil {
		t.Fatal(err)
	}
	// Placed and on from the start.
	if g.in(1, 0x10, 4) != 0xc001 || g.in(1, 0x14, 4) != 0xe0000000 || g.in(2, 0x10, 4) != 0xc081 || g.in(1, 4, 2) != 7 {
		t.Errorf("BARs %#x %#x %#x, command %#x", g.in(1, 0x10, 4), g.in(1, 0x14, 4), g.in(2, 0x10, 4), g.in(1, 4, 2))
	}
	if at(&g.ports, 0xc000) != 1 || at(&g.mmio, 0xe0003fff) != 2 || at(&g.ports, 0xc080) != 3 || at(&g.mmio, 0xe0004000) != 0xff {
		t.Error("ranges do not answer")
	}
	a.took(t, "start", 0xc000)
	b.took(t, "start", 0xe0000000)
	c.took(t, "start", 0xc080)

	// Sizing, switched off as Linux does it, and left on.
	g.out(1, 4, 2, 4)
	if at(&g.ports, 0xc000) != 0xff || at(&g.mmio, 0xe0000000) != 0xff {
		t.Error("ranges answer while they are off")
	}
	g.out(1, 4, 2, 7)
	g.out(1, 0x10, 4, 0xffffffff)
	g.out(1, 0x14, 4, 0xffffffff)
	g.out(1, 0x18, 4, 0xffffffff)
	if g.in(1, 0x10, 4) != 0xffffff81 || g.in(1, 0x14, 4) != 0xffffc000 || g.in(1, 0x18, 4) != 0 {
		t.Errorf("sizes %#x %#x %#x", g.in(1, 0x10, 4), g.in(1, 0x14, 4), g.in(1, 0x18, 4))
	}
	if at(&g.ports, 0xff80) != 0xff || at(&g.mmio, 0xffffc000) != 0xff {
		t.Error("the size is taken for a place")
	}
	g.out(1, 0x10, 4, 0xc001)
	g.out(1, 0x14, 4, 0xe0000000)
	if at(&g.ports, 0xc000) != 1 || at(&g.mmio, 0xe0000000) != 2 {
		t.Error("ranges are not back")
	}
	a.took(t, "sizing")
	b.took(t, "sizing")

	// Moves.
	g.out(1, 0x14, 4, 0xe8001234)
	if g.in(1, 0x14, 4) != 0xe8000000 || at(&g.mmio, 0xe8000000) != 2 || at(&g.mmio, 0xe0000000) != 0xff {
		t.Errorf("moved to %#x", g.in(1, 0x14, 4))
	}
	b.took(t, "move", ^uint64(0xe0000000), 0xe8000000)
	// Off, another takes the place: notifications must make way.
	g.out(1, 4, 2, 6)
	a.took(t, "off")
	g.out(2, 0x10, 4, 0xc000)
	a.took(t, "evicted", ^uint64(0xc000))
	c.took(t, "takes over", ^uint64(0xc080), 0xc000)
	g.out(1, 4, 2, 7) // on top of the other: stays off
	if at(&g.ports, 0xc000) != 3 {
		t.Error("two ranges at one place")
	}
	a.took(t, "overlap")
	g.out(1, 0x10, 4, 0x12340) // not a port number
	a.took(t, "no port")
	g.out(1, 0x10, 4, 0xd000)
	a.took(t, "elsewhere", 0xd000)

	fa.Remove()
	fa.Remove()
	if at(&g.ports, 0xd000) != 0xff || g.in(1, 0, 4) != 0xffffffff {
		t.Error("a removed function answers")
	}
}

func TestPCIErrors(t *testing.T) {
	g := newPCIGuest(t)
	r := &region{}
	for name, c := range map[string]PCIConfig{
		"size":         {BARs: []PCIBAR{r.bar(false, 0x3000)}},
		"small":        {BARs: []PCIBAR{r.bar(false, 8)}},
		"many ports":   {BARs: []PCIBAR{r.bar(true, 512)}},
		"handler":      {BARs: []PCIBAR{{Size: 16}}},
		"seven":        {BARs: make([]PCIBAR, 7)},
		"capability":   {Capabilities: []PCICapability{{Data: []byte{1, 2, 3}}}},
		"capabilities": {Capabilities: []PCICapability{{Data: make([]byte, 100)}, {Data: make([]byte, 96)}}},
	} {
		if _, err := g.pci.Add(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	r.fail = errors.New("busy")
	if _, err := g.pci.Add(PCIConfig{BARs: []PCIBAR{r.bar(false, 16)}}); !errors.Is(err, r.fail) || at(&g.mmio, 0xe0000000) != 0xff {
		t.Errorf("attach: %v", err)
	}
	for range PCISlots - 1 {
		if _, err := g.pci.Add(PCIConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.pci.Add(PCIConfig{Name: "last"}); err == nil {
		t.Error("more functions than slots")
	}
}

func TestPCIMapped(t *testing.T) {
	var mmio Bus
	const config, ports, memory = 0x3f000000, 0x3eff0000, 0x10000000
	for _, bridge := range []bool{true, false} {
		mmio = Bus{}
		p, err := NewPCIMapped(&mmio, PCIWindow{config, 1 << 20}, PCIWindow{ports, 0x10000}, PCIWindow{memory, 0x1000000}, bridge)
		if err != nil {
			t.Fatal(err)
		}
		a, b := &region{mark: 1}, &region{mark: 2}
		f, err := p.Add(PCIConfig{Vendor: 0x1af4, Device: 0x1001, BARs: []PCIBAR{a.bar(true, 0x80), b.bar(false, 0x4000)}})
		if err != nil {
			t.Fatal(err)
		}
		slot := uint64(0)
		if bridge {
			if slot = 1; word32(&mmio, config) != 0x00081b36 {
				t.Errorf("host bridge %#x", word32(&mmio, config))
			}
		}
		at0 := config + slot<<15
		if id := word32(&mmio, at0); id != 0x10011af4 {
			t.Errorf("function %#x", id)
		}
		var wide [8]byte
		if mmio.Read(at0, wide[:]); binary.LittleEndian.Uint64(wide[:]) != 0x7_1001_1af4 {
			t.Errorf("8 bytes %x", wide)
		}
		for _, offset := range []uint64{slot<<15 | 0x1000, (slot + 1) << 15, 0x80000 + 1<<19 - 4, slot<<15 | 0x100} {
			if v := word32(&mmio, config+offset); v != 0xffffffff {
				t.Errorf("offset %#x answers %#x", offset, v)
			}
			mmio.Write(config+offset, wide[:])
		}
		if at(&mmio, ports+0x1000) != 1 || at(&mmio, memory) != 2 {
			t.Error("ranges do not answer")
		}
		a.took(t, "ports", 0x1000)
		b.took(t, "memory", memory)
		// The guest moves both.
		mmio.Write(at0+0x10, []byte{0, 0x20, 0, 0})
		mmio.Write(at0+0x14, []byte{0, 0, 0x80, 0x10})
		if at(&mmio, ports+0x2000) != 1 || at(&mmio, memory+0x800000) != 2 || at(&mmio, ports+0x1000) != 0xff || at(&mmio, memory) != 0xff {
			t.Error("ranges do not move")
		}
		f.Remove()
		if at(&mmio, ports+0x2000) != 0xff || word32(&mmio, at0) != 0xffffffff {
			t.Error("a removed function answers")
		}
	}
}

func word32(b *Bus, addr uint64) uint32 {
	var w [4]byte
	b.Read(addr, w[:])
	return binary.LittleEndian.Uint32(w[:])
}

package virtio

import (
	"runtime"
	"testing"
)

// TestMSIX masks, unmasks and unassigns vectors.
func TestMSIX(t *testing.T) {
	m := newFakeMachine(t)
	var c Chain
	dev := &testDevice{id: 19, sizes: []uint16{64}, serve: echo(&c)} // a type without legacy interface
	d := newModernDriver(t, m, dev, nil, true)
	cfg, cfgOut := configSpace(m)
	if cfg(2, 2) != 0x1040+19 || cfg(8, 1) != 1 || cfg(0x10, 4) != 0 || cfg(0x42, 2) != 0x8001 {
		t.Errorf("device %#x, revision %d, BAR 0 %#x, MSI-X control %#x", cfg(2, 2), cfg(8, 1), cfg(0x10, 4), cfg(0x42, 2))
	}
	table := cfg(0x14, 4) + cfg(0x44, 4)&^7
	bits := func() uint64 { return m.in(false, table+pciPending-pciTable, 8) }
	mask := func(vector, v uint64) { m.out(false, table+16*vector+12, 4, v) }
	r := newGuestRing(t, m.mem, ringAt, 64)
	d.probe(FeatureVersion1, r)
	request := func() {
		r.add(guestBuffer{dataAt, 7, false})
		d.kick(0)
	}
	quiet := func(what string) {
		t.Helper()
		before := m.interrupts()
		request()
		for ok := false; !ok; _, _, ok = r.take() {
			runtime.Gosched()
		}
		d.t.Quiesce() // Serve and its Flush are over
		d.t.Resume()
		if m.interrupts() != before {
			t.Errorf("%s: interrupted", what)
		}
	}
	request()
	m.await(t, "message", func() bool { return m.interrupts() == 1 })
	if m.msis[0] != 0x41 || m.raised != 0 {
		t.Errorf("messages %#x, line raised %d times", m.msis, m.raised)
	}
	r.take()
	mask(1, 1)
	quiet("masked vector")
	if bits() != 2 {
		t.Errorf("pending %#x", bits())
	}
	if mask(1, 0); m.interrupts() != 2 || bits() != 0 {
		t.Errorf("unmasked: %d messages, pending %#x", m.interrupts(), bits())
	}
	cfgOut(0x42, 2, 0xc000)
	quiet("masked function")
	if cfgOut(0x42, 2, 0x8000); m.interrupts() != 3 {
		t.Errorf("function unmasked: %d messages", m.interrupts())
	}
	common := cfg(0x14, 4)
	m.out(false, common+commonQueueVector, 2, 2) // there are only 0 and 1
	if got := m.in(false, common+commonQueueVector, 2); got != noVector {
		t.Errorf("vector 2 reads back as %#x", got)
	}
	quiet("no vector")
}

// TestLegacyMSIX: with MSI-X on, the device's configuration moves up to make
// room for the vectors (virtio 1.3 4.1.4.10).
func TestLegacyMSIX(t *testing.T) {
	m := newFakeMachine(t)
	d := newLegacyDriver(t, m, newBlk(t, &fakeDisk{cap: 0x1234 * 512}), nil)
	if d.config(0, 4) != 0x1234 {
		t.Errorf("capacity %#x", d.config(0, 4))
	}
	_, cfgOut := configSpace(m)
	cfgOut(0x42, 2, 0x8000)
	if d.config(0, 4) != 0xffffffff || d.config(4, 4) != 0x1234 {
		t.Errorf("vectors %#x, capacity %#x", d.config(0, 4), d.config(4, 4))
	}
	m.out(true, 0xc000+legacyQueueVector, 2, 1)
	if d.config(0, 4) != 1<<16|0xffff {
		t.Errorf("vectors %#x", d.config(0, 4))
	}
}

// TestPCIWindow reaches the memory BAR through configuration space (4.1.4.9).
func TestPCIWindow(t *testing.T) {
	m := newFakeMachine(t)
	d := newLegacyDriver(t, m, newBlk(t, &fakeDisk{cap: 0x1234 * 512}), nil)
	cfg, cfgOut := configSpace(m)
	at := int(cfg(0x34, 1))
	for cfg(at, 1) != 9 || cfg(at+3, 1) != 5 {
		at = int(cfg(at+1, 1))
	}
	set := func(bar, offset, n uint64) {
		cfgOut(at+4, 1, bar)
		cfgOut(at+8, 4, offset)
		cfgOut(at+12, 4, n)
	}
	set(pciMemoryBAR, pciDevice, 4)
	if got := cfg(at+16, 4); got != 0x1234 {
		t.Errorf("capacity %#x", got)
	}
	set(pciMemoryBAR, pciCommon+commonStatus, 1)
	if cfgOut(at+16, 1, 3); d.status() != 3 {
		t.Errorf("status %d", d.status())
	}
	for _, x := range [][3]uint64{{0, 0, 4}, {pciMemoryBAR, pciMemory, 4}, {pciMemoryBAR, 1, 4}, {pciMemoryBAR, 0, 3}, {pciMemoryBAR, 0xfffffffc, 4}} {
		set(x[0], x[1], x[2])
		cfgOut(at+16, 4, 0)
		cfg(at+16, 4)
	}
	if d.status() != 3 {
		t.Error("a bad window wrote something")
	}
}

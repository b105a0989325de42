package virtio

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"
)

// hostile replays a script of register accesses and memory writes. Each step
// takes 8 bytes: what, width, place (2), value (4).
func hostile(m *fakeMachine, script []byte, ranges []hostileRange) {
	for ; len(script) >= 8; script = script[8:] {
		what, width := script[0], 1<<(script[1]&3)
		place := uint64(binary.LittleEndian.Uint16(script[2:]))
		value := uint64(binary.LittleEndian.Uint32(script[4:]))
		if what&0x80 != 0 { // a ring word
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], uint32(value))

			copy(m.mem.Regions()[0].Host()[0x1000+place&0x3ffc:], b[:])
			continue
		}
		r := ranges[int(what>>1)%len(ranges)]
		addr := r.base + place%r.size
		if r.port {
			width = min(width, 4)
		}
		if what&1 == 0 {
			m.out(r.port, addr, width, value)
		} else {
			m.in(r.port, addr, width)
		}
	}
}

type hostileRange struct {
	port       bool
	base, size uint64
}

// step encodes a register write for the seed corpus.
func step(ranges, width byte, place uint16, value uint32) []byte {
	b := []byte{ranges << 1, width, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(b[2:], place)
	binary.LittleEndian.PutUint32(b[4:], value)
	return b
}

func seed(steps ...[]byte) (s []byte) {
	for _, b := range steps {
		s = append(s, b...)
	}
	return s
}

// checkNoLeak fails when a closed device leaves a worker behind.
func checkNoLeak(t *testing.T) {
	var stacks [64 << 10]byte
	for range 100000 {
		if !bytes.Contains(stacks[:runtime.Stack(stacks[:], true)], []byte("(*worker).run")) {
			return
		}
		runtime.Gosched() // a worker says it is done before it is gone
	}
	t.Errorf("a worker is left:\n%s", stacks[:])
}

// FuzzMMIO lets a guest do anything to a block device over MMIO.
func FuzzMMIO(f *testing.F) {
	f.Add(seed(step(0, 2, mmioStatus, 3), step(0, 2, mmioDescLow, 0x1000), step(0, 2, mmioAvailLow, 0x2000),
		step(0, 2, mmioUsedLow, 0x3000), step(0, 2, mmioQueueReady, 1), []byte{0x80, 0, 0x00, 0x10, 0, 0, 1, 0},
		step(0, 2, mmioStatus, 15), step(0, 2, mmioQueueNotify, 0), step(0, 2, mmioStatus, 0)))
	m := newFakeMachine(f)
	path := newImage(f, 16<<10)
	f.Fuzz(func(t *testing.T, script []byte) {
		clear(m.mem.Regions()[0].Host()[:0x8000])
		disk := openRaw(t, path, false, false)
		m := m.fresh()
		d, err := NewMMIO(m, &m.mmio, fakeMMIO, 5, newBlk(t, disk), nil)
		if err != nil {
			t.Fatal(err)
		}
		hostile(m, script, []hostileRange{{false, fakeMMIO, 0x100}, {false, fakeMMIO, MMIOSize}})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		checkNoLeak(t)
	})
}

// FuzzPCI does the same to one over PCI, configuration space included.
func FuzzPCI(f *testing.F) {
	f.Add(seed(step(1, 0, legacyStatus, 3), step(1, 2, legacyPFN, 1), []byte{0x80, 0, 0x00, 0x10, 0, 0, 1, 0},
		step(1, 0, legacyStatus, 7), step(1, 1, legacyNotify, 0), step(1, 0, legacyStatus, 0)))
	f.Add(seed(step(0, 2, 0, 0x80000804), step(0, 2, 4, 0x407), step(0, 2, 0, 0x80000814), step(0, 2, 4, 0xe0000000),
		step(0, 2, 0, 0x80000840), step(0, 2, 4, 0x80000000), step(2, 0, commonStatus, 15), step(2, 2, pciTable+12, 0)))
	path := newImage(f, 16<<10)
	m := newFakeMachine(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		clear(m.mem.Regions()[0].Host()[:0x8000])
		m := m.fresh()
		disk := openRaw(t, path, false, false)
		d := newPCIDevice(t, m, newBlk(t, disk), nil)
		hostile(m, script, []hostileRange{
			{true, 0xcf8, 8}, {true, 0xc000, 0x100}, {false, 0xe0000000, pciMemory}, {true, 0xcf8, 8},
		})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		checkNoLeak(t)
	})
}

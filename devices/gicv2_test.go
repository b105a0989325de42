package devices

import (
	"encoding/binary"
	"testing"
)

// gicGuest is a driver of a GICv2, as Linux and Unikraft are.
type gicGuest struct {
	t         *testing.T
	g         *GICv2
	dist, cpu Handler
	irq       bool // the processor's input
}

func newGICGuest(t *testing.T) *gicGuest {
	d := &gicGuest{t: t}
	d.g = NewGICv2(func(asserted bool) {
		if asserted == d.irq {
			t.Errorf("output told twice of %t", asserted)
		}
		d.irq = asserted
	})
	d.dist, d.cpu = d.g.Distributor(), d.g.Interface()
	return d
}

func (d *gicGuest) write(h Handler, at uint64, v uint32) {
	h.Write(at, binary.LittleEndian.AppendUint32(nil, v))
}

func (d *gicGuest) read(h Handler, at uint64) uint32 {
	b := []byte{0xff, 0xff, 0xff, 0xff}
	h.Read(at, b)
	return binary.LittleEndian.Uint32(b)
}

// takes acknowledges the next interrupt, which must be the given one.
func (d *gicGuest) takes(irq uint32) {
	d.t.Helper()
	if want := irq != gicSpurious; d.irq != want {
		d.t.Errorf("interrupt input is %t, want %t", d.irq, want)
	}
	if got := d.read(d.cpu, giccIAR); got != irq {
		d.t.Errorf("acknowledged %d, want %d", got, irq)
	}
}

// open enables everything: interrupts 27, 40 (edge) and 41 (level, more urgent).
func (d *gicGuest) open() {
	d.write(d.dist, gicdICFGR+8, 2<<(2*8))
	d.write(d.dist, gicdISENABLER, 1<<27|1<<3)
	d.write(d.dist, gicdISENABLER+4, 1<<8|1<<9)
	for _, p := range []struct {
		irq  uint64
		prio byte
	}{{3, 0xa0}, {27, 0xa0}, {40, 0xa0}, {41, 0x40}} {
		d.dist.Write(gicdIPRIORITYR+p.irq, []byte{p.prio})
	}
	d.write(d.cpu, giccPMR, 0xf0)
	d.write(d.cpu, giccCTLR, 1)
	d.write(d.dist, gicdCTLR, 1)
}

func TestGICv2(t *testing.T) {
	d := newGICGuest(t)
	d.g.Set(41, true)
	d.takes(gicSpurious) // nothing is on yet
	d.open()
	if got := d.read(d.dist, gicdTYPER); got != 3 {
		t.Errorf("TYPER %#x: want 128 interrupts and one processor", got)
	}
	if got := d.read(d.dist, gicdICFGR+8); got != 2<<16 {
		t.Errorf("ICFGR2 reads %#x", got)
	}
	d.takes(41)
	d.takes(gicSpurious) // active, still asserted
	d.write(d.cpu, giccEOIR, 41)
	d.takes(41) // a level
	d.g.Set(41, false)
	d.write(d.cpu, giccEOIR, 41)
	d.takes(gicSpurious)

	d.g.Set(40, true) // an edge is kept, once
	d.g.Set(40, false)
	d.g.Set(40, true)
	d.g.Set(40, false)
	if got := d.read(d.dist, gicdISPENDR+4); got != 1<<8 {
		t.Errorf("pending %#x", got)
	}
	d.takes(40)
	d.g.Set(27, true)
	d.takes(gicSpurious) // no more urgent than what runs
	d.g.Set(41, true)
	d.takes(41) // which is
	if got := d.read(d.cpu, giccRPR); got != 0x40 {
		t.Errorf("running priority %#x", got)
	}
	d.g.Set(41, false)
	d.write(d.cpu, giccEOIR, 41)
	d.write(d.cpu, giccEOIR, 40)
	d.takes(27)
	d.g.Set(27, false)
	d.write(d.cpu, giccEOIR, 27)

	d.write(d.dist, gicdSGIR, 1<<16|3) // to itself
	d.takes(3)
	d.write(d.cpu, giccEOIR, 3)
	d.write(d.dist, gicdISENABLER+0x84, 1<<8) // disabled
	d.g.Set(40, true)
	d.takes(gicSpurious)
	d.write(d.dist, gicdISPENDR+0x84, 1<<8)
	d.write(d.dist, gicdISENABLER+4, 1<<8)
	d.takes(gicSpurious) // its pending bit was cleared
	d.write(d.cpu, giccPMR, 0xa0)
	d.g.Set(27, true)
	d.takes(gicSpurious) // masked by priority
	d.write(d.cpu, giccBPR, 7)
	d.write(d.cpu, giccPMR, 0xff)
	d.takes(27) // nothing runs: even without group priorities
	d.write(d.cpu, giccEOIR, gicSpurious)
}

// FuzzGICv2 lets a guest do what it likes. The output must follow the state.
func FuzzGICv2(f *testing.F) {
	f.Add([]byte{0x11, 0x04, 0xff, 4, 0x02, 0x40, 0x01, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := newGICGuest(t)
		d.open()
		for ; len(ops) >= 4; ops = ops[4:] {
			h := d.dist
			if ops[0]&0x80 != 0 {
				h = d.cpu
			}
			at := uint64(ops[0]&0xf)<<8 | uint64(ops[1])
			data := make([]byte, 1<<(ops[3]&3))
			for i := range data {
				data[i] = ops[2] >> (i & 3)
			}
			switch ops[0] >> 5 & 3 {
			case 0:
				h.Write(at, data)
			case 1:
				h.Read(at, data)
			default:
				d.g.Set(int(ops[1]&127), ops[2]&1 != 0)
			}
			if got := d.g.next() != gicSpurious; got != d.irq {
				t.Fatalf("interrupt input is %t with interrupt %d next", d.irq, d.g.next())
			}
		}
	})
}

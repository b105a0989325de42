package devices

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// Registers of a GICv2 by offset (Arm IHI 0048B.b, tables 4-1 and 4-2), and what
// reads of interrupts return when there is none.
const (
	gicdCTLR       = 0x000
	gicdTYPER      = 0x004
	gicdIIDR       = 0x008
	gicdISENABLER  = 0x100 // and the clearing registers 0x80 behind
	gicdISPENDR    = 0x200
	gicdISACTIVER  = 0x300
	gicdIPRIORITYR = 0x400
	gicdICFGR      = 0xc00
	gicdSGIR       = 0xf00
	gicdPIDR2      = 0xfe8

	giccCTLR  = 0x00
	giccPMR   = 0x04
	giccBPR   = 0x08
	giccIAR   = 0x0c
	giccEOIR  = 0x10
	giccRPR   = 0x14
	giccHPPIR = 0x18
	giccIIDR  = 0xfc

	gicWords    = 4 // 128 interrupts
	gicSpurious = 1023
	gicIdle     = 0xff // running priority
	gicArm      = 0x0002043b
	gicArchV2   = 0x2b
)

// gicBits has a bit an interrupt.
type gicBits [gicWords]uint32

func (b *gicBits) set(irq int, on bool) {
	if b[irq/32] &^= 1 << (irq % 32); on {
		b[irq/32] |= 1 << (irq % 32)
	}
}

// GICv2 is an Arm interrupt controller of version 2 with 128 interrupts and one
// processor, for hosts whose own controller cannot show guests one. As on any
// such system there are no targets to choose.
type GICv2 struct {
	output func(asserted bool) // the processor's interrupt input

	mu       sync.Mutex
	on       uint32 // of the distributor
	cpuOn    uint32
	mask     uint8 // only what has a lower number gets through
	point    uint32
	asserted bool

	enabled, pending, active, level, edge gicBits
	priority                              [32 * gicWords]uint8
}

// NewGICv2 returns a controller; output is told of every change of the
// processor's interrupt input.
func NewGICv2(output func(asserted bool)) *GICv2 { return &GICv2{output: output} }

// Set drives an interrupt's input, by INTID below 128.
func (g *GICv2) Set(irq int, asserted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	bit := uint32(1) << (irq % 32)
	if asserted && g.level[irq/32]&bit == 0 && g.edge[irq/32]&bit != 0 {
		g.pending[irq/32] |= bit
	}
	g.level.set(irq, asserted)
	g.update()
}

// waiting is a word of the interrupts that are pending.
func (g *GICv2) waiting(w int) uint32 { return g.pending[w] | g.level[w]&^g.edge[w] }

// urgent returns the interrupt with the lowest priority number of those in a
// set, and that number.
func (g *GICv2) urgent(set func(w int) uint32) (irq int, priority uint8) {
	irq, priority = gicSpurious, gicIdle
	for w := range gicWords {
		for b := set(w); b != 0; b &= b - 1 {
			if i := 32*w + bits.TrailingZeros32(b); g.priority[i] < priority {
				irq, priority = i, g.priority[i]
			}
		}
	}
	return irq, priority
}

func (g *GICv2) running() uint8 {
	_, p := g.urgent(func(w int) uint32 { return g.active[w] })
	return p
}

// next is the interrupt the processor is to take, or none.
func (g *GICv2) next() int {
	irq, p := g.urgent(func(w int) uint32 { return g.enabled[w] & g.waiting(w) &^ g.active[w] })
	r := g.running()
	if g.on == 0 || g.cpuOn == 0 || p >= g.mask || r != gicIdle && p>>(g.point+1) >= r>>(g.point+1) {
		return gicSpurious
	}
	return irq
}

func (g *GICv2) update() {
	if now := g.next() != gicSpurious; now != g.asserted {
		g.asserted = now
		g.output(now)
	}
}

// Distributor returns the controller's common registers, 4 KiB.
func (g *GICv2) Distributor() Handler { return gicRegisters{g, g.readDist, g.writeDist} }

// Interface returns the processor's registers, 4 KiB.
func (g *GICv2) Interface() Handler { return gicRegisters{g, g.readCPU, g.writeCPU} }

// gicRegisters are registers of 32 bits. Those for priorities have bytes too.
type gicRegisters struct {
	g     *GICv2
	read  func(offset uint64) uint32
	write func(offset uint64, v uint32)
}

func (r gicRegisters) Read(offset uint64, data []byte) {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	var word [8]byte
	binary.LittleEndian.PutUint32(word[:], r.read(offset&^3))
	clear(data)
	copy(data, word[offset&3:4])
	r.g.update()
}

func (r gicRegisters) Write(offset uint64, data []byte) {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if len(data) == 4 && offset&3 == 0 {
		r.write(offset, binary.LittleEndian.Uint32(data))
	} else if at := offset - gicdIPRIORITYR; at < uint64(len(r.g.priority)) {
		copy(r.g.priority[at:], data)
	}
	r.g.update()
}

func (g *GICv2) readDist(offset uint64) uint32 {
	w := int(offset % 0x80 / 4)
	switch offset {
	case gicdCTLR:
		return g.on
	case gicdTYPER:
		return gicWords - 1
	case gicdIIDR:
		return gicArm
	case gicdPIDR2:
		return gicArchV2
	}
	switch at := offset - gicdIPRIORITYR; {
	case at < uint64(len(g.priority)):
		return binary.LittleEndian.Uint32(g.priority[at:])
	case offset >= gicdICFGR && offset < gicdICFGR+8*gicWords:
		var v uint32 // two bits an interrupt, the upper for edges
		half := g.edge[(offset-gicdICFGR)/8] >> (offset % 8 * 4)
		for i := range 16 {
			v |= half >> i & 1 << (2*i + 1)
		}
		return v
	case w >= gicWords:
		return 0
	}
	switch offset &^ 0xff {
	case gicdISENABLER:
		return g.enabled[w]
	case gicdISPENDR:
		return g.waiting(w)
	case gicdISACTIVER:
		return g.active[w]
	}
	return 0
}

func (g *GICv2) writeDist(offset uint64, v uint32) {
	w := int(offset % 0x80 / 4)
	switch at := offset - gicdIPRIORITYR; {
	case offset == gicdCTLR:
		g.on = v & 1
	case offset == gicdSGIR:
		g.pending.set(int(v&15), true)
	case at < uint64(len(g.priority)):
		binary.LittleEndian.PutUint32(g.priority[at:], v)
	case offset >= gicdICFGR+8 && offset < gicdICFGR+8*gicWords:
		for i := range 16 {
			g.edge.set(int(offset-gicdICFGR)*4+i, v>>(2*i+1)&1 != 0)
		}
	case w < gicWords && offset >= gicdISENABLER && offset < gicdIPRIORITYR:
		b := [...]*gicBits{&g.enabled, &g.pending, &g.active}[offset>>8-1]
		if b[w] |= v; offset&0x80 != 0 {
			b[w] &^= v
		}
	}
}

func (g *GICv2) readCPU(offset uint64) uint32 {
	switch offset {
	case giccCTLR:
		return g.cpuOn
	case giccPMR:
		return uint32(g.mask)
	case giccBPR:
		return g.point
	case giccIAR:
		irq := g.next()
		if irq != gicSpurious {
			g.active.set(irq, true)
			g.pending.set(irq, false)
		}
		return uint32(irq)
	case giccRPR:
		return uint32(g.running())
	case giccHPPIR:
		return uint32(g.next())
	case giccIIDR:
		return gicArm
	}
	return 0
}

func (g *GICv2) writeCPU(offset uint64, v uint32) {
	switch offset {
	case giccCTLR:
		g.cpuOn = v & 1
	case giccPMR:
		g.mask = uint8(v)
	case giccBPR:
		g.point = v & 7
	case giccEOIR:
		if irq := int(v & gicSpurious); irq < len(g.priority) {
			g.active.set(irq, false)
		}
	}
}

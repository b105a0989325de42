package devices

import (
	"sync"
	"time"
)

// Registers of a PL031 by offset (Arm DDI 0224, chapter 3).
const (
	pl031Data    = 0x00 // seconds since 1970
	pl031Load    = 0x08
	pl031Control = 0x0c
)

// PL031 is Arm's clock, in UTC. Its alarm never fires.
type PL031 struct {
	now func() time.Time

	mu     sync.Mutex
	offset uint32 // what the guest has set it forward, seconds
	load   uint32 // last value the guest set
}

// NewPL031 returns a clock that tells the time of now.
func NewPL031(now func() time.Time) *PL031 { return &PL031{now: now} }

// Read implements [Handler].
func (p *PL031) Read(offset uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var v uint32
	switch r := offset &^ 3; r {
	case pl031Data:
		v = uint32(p.now().Unix()) + p.offset
	case pl031Load:
		v = p.load
	case pl031Control:
		v = 1 // it runs
	default:
		v = primeCellID(0x00041031, r)
	}
	putWord(data, offset, v)
}

// Write implements [Handler].
func (p *PL031) Write(offset uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset == pl031Load {
		p.load = getWord(data)
		p.offset = p.load - uint32(p.now().Unix())
	}
}

package devices

import (
	"sync"
	"time"
)

// CMOS is the MC146818 clock chip behind ports 0x70 (index) and 0x71 (data),
// with the RAM bytes that firmware leaves there for memory sizes. It never
// shows an update in progress: a guest that waits for one to pass waits for ever
// on a chip that reads 0xff. Times are UTC, BCD, 24-hour.
type CMOS struct {
	now func() time.Time

	mu    sync.Mutex
	index uint8
	ram   [128]byte
}

// CMOSPorts is how many ports a [CMOS] takes.
const CMOSPorts = 2

// Registers (MC146818A data sheet; RAM bytes as in Ralf Brown's CMOS list).
const (
	cmosSeconds  = 0x00
	cmosMinutes  = 0x02
	cmosHours    = 0x04
	cmosWeekday  = 0x06
	cmosDay      = 0x07
	cmosMonth    = 0x08
	cmosYear     = 0x09
	cmosStatusA  = 0x0a
	cmosStatusB  = 0x0b
	cmosStatusC  = 0x0c
	cmosStatusD  = 0x0d
	cmosBaseLow  = 0x15 // conventional memory, KiB
	cmosExtLow   = 0x17 // memory above 1 MiB, KiB, at most 65535
	cmosExt2Low  = 0x30 // the same
	cmosCentury  = 0x32
	cmosHighLow  = 0x34 // memory above 16 MiB, 64 KiB units
	statusB24    = 0x02
	statusDValid = 0x80
)

// NewCMOS returns a chip that tells the time of now and the size, in bytes, of
// the RAM below 4 GiB.
func NewCMOS(now func() time.Time, lowRAM uint64) *CMOS {
	c := &CMOS{now: now}
	put := func(i int, v uint64) {
		v = min(v, 0xffff)
		c.ram[i], c.ram[i+1] = byte(v), byte(v>>8)
	}
	put(cmosBaseLow, 640)
	ext, high := uint64(0), uint64(0)
	if lowRAM > 1<<20 {
		ext = (lowRAM - 1<<20) >> 10
	}
	if lowRAM > 16<<20 {
		high = (lowRAM - 16<<20) >> 16
	}
	put(cmosExtLow, ext)
	put(cmosExt2Low, ext)
	put(cmosHighLow, high)
	return c
}

// Read implements [Handler].
func (c *CMOS) Read(offset uint64, data []byte) {
	if offset != 1 {
		return // the index is write-only
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.now().UTC()
	switch c.index {
	case cmosSeconds:
		data[0] = bcd(t.Second())
	case cmosMinutes:
		data[0] = bcd(t.Minute())
	case cmosHours:
		data[0] = bcd(t.Hour())
	case cmosWeekday:
		data[0] = bcd(int(t.Weekday()) + 1)
	case cmosDay:
		data[0] = bcd(t.Day())
	case cmosMonth:
		data[0] = bcd(int(t.Month()))
	case cmosYear:
		data[0] = bcd(t.Year() % 100)
	case cmosCentury:
		data[0] = bcd(t.Year() / 100)
	case cmosStatusA:
		data[0] = 0x26 // 32768 Hz, 1024 Hz; no update in progress
	case cmosStatusB:
		data[0] = statusB24
	case cmosStatusC:
		data[0] = 0
	case cmosStatusD:
		data[0] = statusDValid
	default:
		data[0] = c.ram[c.index]
	}
}

// Write implements [Handler].
func (c *CMOS) Write(offset uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if offset == 0 {
		c.index = data[0] & 0x7f // the top bit masks NMI
		return
	}
	if c.index > cmosStatusD && c.index != cmosCentury {
		c.ram[c.index] = data[0]
	}
}

func bcd(n int) byte { return byte(n/10<<4 | n%10) }

package devices

import (
	"encoding/binary"
	"io"
)

// Registers of a PL011 by offset (Arm DDI 0183, chapter 3), and their bits.
const (
	pl011Data    = 0x000
	pl011Flags   = 0x018
	pl011Control = 0x030
	pl011Mask    = 0x038 // interrupt mask: set bits let interrupts through
	pl011Raw     = 0x03c
	pl011Masked  = 0x040
	pl011Clear   = 0x044
	pl011End     = 0x04c // of the registers before the identification

	pl011RXEmpty, pl011TXEmpty = 1 << 4, 1 << 7         // flags
	pl011RX, pl011TX, pl011RT  = 1 << 4, 1 << 5, 1 << 6 // interrupts: data, room, data that waits
	pl011On                    = 1<<0 | 1<<8 | 1<<9     // control: UART, transmitter and receiver enabled
)

// PL011 is Arm's UART. What the guest sends goes to an [io.Writer] at once, byte
// for byte; input waits in a queue and flows in no faster than the guest takes it.
type PL011 struct {
	out  io.Writer
	line Line

	typed
	raw       uint32 // interrupts that are latched: TX
	registers [pl011End / 4]uint32
}

// NewPL011 returns a UART that writes to out and interrupts by line, which is
// level-triggered. It is enabled from the start, for guests that rely on firmware.
func NewPL011(out io.Writer, line Line) *PL011 {
	p := &PL011{out: out, line: line}
	p.registers[pl011Control/4] = pl011On
	p.open(p.update)
	return p
}

// pending returns the raw interrupt status.
func (p *PL011) pending() uint32 {
	if len(p.rx) > 0 {
		return p.raw | pl011RX | pl011RT
	}
	return p.raw
}

func (p *PL011) update() {
	if p.pending()&p.registers[pl011Mask/4] != 0 {
		p.line.Raise()
	} else {
		p.line.Lower()
	}
}

// Read implements [Handler].
func (p *PL011) Read(offset uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var v uint32
	switch r := offset &^ 3; {
	case r == pl011Data && offset == r:
		v = uint32(p.next())
		p.update()
	case r == pl011Flags:
		if v = pl011TXEmpty; len(p.rx) == 0 {
			v |= pl011RXEmpty
		}
	case r == pl011Raw:
		v = p.pending()
	case r == pl011Masked:
		v = p.pending() & p.registers[pl011Mask/4]
	case r < pl011End:
		v = p.registers[r/4]
	default:
		v = primeCellID(0x00141011, r)
	}
	putWord(data, offset, v)
}

// Write implements [Handler].
func (p *PL011) Write(offset uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := getWord(data)
	switch {
	case offset == pl011Data:
		_, _ = p.out.Write(data[:1]) // a console that is gone must not stop the guest
		p.raw |= pl011TX
	case offset == pl011Clear:
		p.raw &^= v
	case offset < pl011End && offset%4 == 0:
		p.registers[offset/4] = v
	}
	p.update()
}

// putWord gives a read at offset the bytes of a 32-bit register that it covers.
func putWord(data []byte, offset uint64, v uint32) {
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], v)
	copy(data, b[offset&3:])
}

// getWord returns what a write, at the start of a 32-bit register, puts there.
func getWord(data []byte) uint32 {
	var b [8]byte
	copy(b[:], data)
	return binary.LittleEndian.Uint32(b[:])
}

// primeCellID returns a byte of a PrimeCell's identification, which ends the
// 4 KiB of its registers: eight words with one byte each.
func primeCellID(peripheral uint32, offset uint64) uint32 {
	const first, cell = 0xfe0, 0xb105f00d
	if offset < first || offset > 0xffc {
		return 0
	}
	return uint32((cell<<32 | uint64(peripheral)) >> ((offset - first) / 4 * 8) & 0xff)
}

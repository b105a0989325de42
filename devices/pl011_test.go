package devices

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

// levelLine remembers its level.
type levelLine struct{ high bool }

func (l *levelLine) Raise() { l.high = true }
func (l *levelLine) Lower() { l.high = false }

func word(h Handler, offset uint64) uint32 {
	b := []byte{0xff, 0xff, 0xff, 0xff}
	h.Read(offset, b)
	return binary.LittleEndian.Uint32(b)
}

func setWord(h Handler, offset uint64, v uint32) {
	h.Write(offset, binary.LittleEndian.AppendUint32(nil, v))
}

func TestPL011(t *testing.T) {
	var console bytes.Buffer
	line := &levelLine{}
	p := NewPL011(&console, line)
	for _, b := range []byte{'a', 0, 0xff} {
		p.Write(pl011Data, []byte{b})
		p.Write(pl011Data, []byte{b, 0x12, 0, 0}) // of a word only the lowest byte is sent
	}
	if got, want := console.String(), "aa\x00\x00\xff\xff"; got != want {
		t.Errorf("console %q, want %q", got, want)
	}
	if f := word(p, pl011Flags); f != pl011TXEmpty|pl011RXEmpty {
		t.Errorf("flags %#x of an idle port", f)
	}
	if line.high {
		t.Error("interrupt with all of them masked")
	}
	setWord(p, pl011Mask, pl011TX|pl011RX|pl011RT)
	if !line.high || word(p, pl011Masked) != pl011TX {
		t.Errorf("line %v, interrupts %#x after sending", line.high, word(p, pl011Masked))
	}
	setWord(p, pl011Clear, pl011TX)
	if line.high || word(p, pl011Raw) != 0 {
		t.Errorf("line %v, interrupts %#x after the acknowledgement", line.high, word(p, pl011Raw))
	}

	if !p.Input([]byte("xy")) || !line.high || word(p, pl011Masked) != pl011RX|pl011RT {
		t.Errorf("line %v, interrupts %#x with input", line.high, word(p, pl011Masked))
	}
	setWord(p, pl011Clear, pl011RX|pl011RT)
	if word(p, pl011Flags)&pl011RXEmpty != 0 || !line.high {
		t.Error("input is gone before it is read")
	}
	if a, b := word(p, pl011Data), word(p, pl011Data); a != 'x' || b != 'y' || line.high || word(p, pl011Data) != 0 {
		t.Errorf("read %#x %#x, line %v", a, b, line.high)
	}

	setWord(p, 0x024, 13) // baud rate
	if word(p, 0x024) != 13 || word(p, pl011Control) != pl011On {
		t.Error("plain registers do not keep their values")
	}
	var b [2]byte
	if p.Read(pl011Control, b[:]); binary.LittleEndian.Uint16(b[:]) != pl011On {
		t.Errorf("control register by halves: % x", b)
	}
	for i, want := range []uint32{0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1} {
		if got := word(p, 0xfe0+4*uint64(i)); got != want {
			t.Errorf("identification %d: %#x, want %#x", i, got, want)
		}
	}
	for _, offset := range []uint64{0, 1, 3, 0x4c, 0x1000, ^uint64(0)} { // nothing panics
		p.Read(offset, make([]byte, 8))
		p.Write(offset, make([]byte, 8))
	}
	done := make(chan bool)
	go func() { done <- p.Input(make([]byte, 2*rxLimit)) }()
	p.Close()
	if <-done {
		t.Error("Input did not report the closed port")
	}
}

func TestPL031(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := NewPL031(func() time.Time { return now })
	if s := word(p, pl031Data); s != 1_800_000_000 || word(p, pl031Control) != 1 {
		t.Errorf("%d s, control %d", s, word(p, pl031Control))
	}
	setWord(p, pl031Load, 1000)
	now = now.Add(5 * time.Second)
	if word(p, pl031Data) != 1005 || word(p, pl031Load) != 1000 {
		t.Errorf("%d s after the clock was set, load %d", word(p, pl031Data), word(p, pl031Load))
	}
	for i, want := range []uint32{0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1} {
		if got := word(p, 0xfe0+4*uint64(i)); got != want {
			t.Errorf("identification %d: %#x, want %#x", i, got, want)
		}
	}
}

// TestSerialOnALevelLine: the interrupt ends when the guest has served it.
func TestSerialOnALevelLine(t *testing.T) {
	line := &levelLine{}
	s := NewSerial(&bytes.Buffer{}, line)
	out(s, uartIER, ierRX)
	if s.Input([]byte("x")); !line.high {
		t.Error("no interrupt with input")
	}
	if in(s, uartData); line.high {
		t.Error("the interrupt stays when the input was read")
	}
	if out(s, uartIER, ierTHRE); !line.high {
		t.Error("no interrupt with an empty transmitter")
	}
	if in(s, uartIIR); line.high {
		t.Error("the interrupt stays when it was acknowledged")
	}
}

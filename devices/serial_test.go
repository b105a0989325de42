package devices

import (
	"bytes"
	"testing"
)

// countingLine counts how often it was raised.
type countingLine struct{ raised int }

func (l *countingLine) Raise() { l.raised++ }
func (l *countingLine) Lower() {}

func out(s *Serial, offset uint64, b byte) { s.Write(offset, []byte{b}) }

func in(s *Serial, offset uint64) byte {
	b := []byte{0xff}
	s.Read(offset, b)
	return b[0]
}

func TestSerialSendsByteForByte(t *testing.T) {
	var console bytes.Buffer
	s := NewSerial(&console, &countingLine{})
	for _, b := range []byte{'a', 0, 0x80, 0xff, '\n'} {
		out(s, uartData, b)
	}
	s.WriteString([]byte("string\xfe"))
	if got, want := console.String(), "a\x00\x80\xff\nstring\xfe"; got != want {
		t.Errorf("console %q, want %q", got, want)
	}
	if lsr := in(s, uartLSR); lsr&(lsrTHRE|lsrIdle) != lsrTHRE|lsrIdle || lsr&lsrData != 0 {
		t.Errorf("line status %#x", lsr)
	}
}

func TestSerialDivisorIsNotOutput(t *testing.T) {
	var console bytes.Buffer
	s := NewSerial(&console, &countingLine{})
	out(s, uartLCR, lcrDLAB)
	out(s, uartData, 12)
	s.WriteString([]byte{13})
	out(s, uartIER, 1)
	if in(s, uartData) != 13 || in(s, uartIER) != 1 || console.Len() != 0 {
		t.Errorf("divisor %d %d, console %q", in(s, uartData), in(s, uartIER), console.String())
	}
	out(s, uartLCR, 3)
	if in(s, uartIER) != 0 {
		t.Error("the divisor's high byte went to the interrupt enable register")
	}
}

func TestSerialInterrupts(t *testing.T) {
	line := &countingLine{}
	s := NewSerial(&bytes.Buffer{}, line)
	if !s.Input([]byte("x")) || line.raised != 0 {
		t.Fatalf("raised %d times with interrupts off", line.raised)
	}
	out(s, uartIER, ierRX|ierTHRE)
	if line.raised == 0 {
		t.Fatal("no interrupt when enabling it with input waiting")
	}
	if id := in(s, uartIIR) & 0xf; id != iirRX {
		t.Errorf("interrupt id %d, want received data", id)
	}
	if b := in(s, uartData); b != 'x' {
		t.Errorf("received %q", b)
	}
	if id := in(s, uartIIR) & 0xf; id != iirTHRE {
		t.Errorf("interrupt id %d, want transmitter empty", id)
	}
	if id := in(s, uartIIR) & 0xf; id != iirNone {
		t.Errorf("interrupt id %d after the acknowledgement, want none", id)
	}
	before := line.raised
	out(s, uartData, 'y')
	if line.raised == before {
		t.Error("no interrupt after the byte was sent")
	}
}

func TestSerialLoopback(t *testing.T) {
	var console bytes.Buffer
	s := NewSerial(&console, &countingLine{})
	out(s, uartMCR, mcrLoop|mcrOut2)
	if msr := in(s, uartMSR); msr != 0x80 {
		t.Errorf("modem status %#x in loop mode, want the carrier that OUT2 drives", msr)
	}
	for range 2 * rxLimit {
		out(s, uartData, 'z')
	}
	if len(s.rx) != rxLimit || console.Len() != 0 {
		t.Errorf("%d bytes looped back, %d sent", len(s.rx), console.Len())
	}
	if in(s, uartLSR)&lsrOverrun == 0 {
		t.Error("no overrun")
	}
}

func TestSerialInputWaitsForTheGuest(t *testing.T) {
	s := NewSerial(&bytes.Buffer{}, &countingLine{})
	want := bytes.Repeat([]byte("0123456789"), rxLimit/4)
	done := make(chan bool)
	go func() { done <- s.Input(want) }()
	var got []byte
	for len(got) < len(want) {
		if in(s, uartLSR)&lsrData != 0 {
			got = append(got, in(s, uartData))
		}
	}
	if !<-done || !bytes.Equal(got, want) {
		t.Error("input was lost or changed")
	}
	go func() { done <- s.Input(make([]byte, 2*rxLimit)) }()
	s.Close()
	if <-done {
		t.Error("Input did not report the closed port")
	}
}

package devices

import (
	"io"
	"sync"
)

// SerialPorts is how many ports or bytes of MMIO a [Serial] takes.
const SerialPorts = 8

// Registers of a 16550A by offset (NS16550A data sheet, table I), and their bits.
const (
	uartData = iota // receive buffer, transmit holding, divisor low
	uartIER         // interrupt enable, divisor high
	uartIIR         // interrupt identification; write: FIFO control
	uartLCR
	uartMCR
	uartLSR
	uartMSR
	uartScratch

	ierRX, ierTHRE, ierLine, ierModem = 1, 2, 4, 8

	iirNone, iirTHRE, iirRX, iirTimeout = 1, 2, 4, 12
	iirFIFO                             = 0xc0

	fcrEnable, fcrClearRX = 1, 2

	lcrDLAB = 0x80
	mcrLoop = 0x10
	mcrOut2 = 0x08

	lsrData, lsrOverrun, lsrBreak, lsrTHRE, lsrIdle = 1, 2, 0x10, 0x20, 0x40

	msrReady = 0xb0 // carrier, data set ready, clear to send

	rxLimit = 4096 // bytes of input that wait for the guest; then the source waits
)

// Serial is a 16550A UART. What the guest sends goes to an [io.Writer] at once,
// byte for byte; input waits in a queue and flows in no faster than the guest
// takes it.
type Serial struct {
	out  io.Writer
	line Line

	typed
	ier, lcr, mcr, scr uint8
	dll, dlm           uint8
	fifo               bool
	overrun            bool
	thre               bool // a "transmitter empty" interrupt is due
	one                [1]byte
	brk                int // bytes of rx in front of a break, and one; 0: none
}

// typed is input that waits for the guest, and the lock of the port it belongs to.
type typed struct {
	mu     sync.Mutex
	rx     []byte
	room   sync.Cond // signalled when rx shrinks or the port closes
	closed bool
	came   func() // there is more in rx
}

// NewSerial returns a port that writes to out and interrupts by line, which may
// be of either kind.
func NewSerial(out io.Writer, line Line) *Serial {
	s := &Serial{out: out, line: line, dll: 1}
	s.open(s.update)
	return s
}

// Read implements [Handler].
func (s *Serial) Read(offset uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(data)
	data[0] = s.read(offset)
	s.update()
}

// Write implements [Handler]. Only the lowest byte counts.
func (s *Serial) Write(offset uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(offset, data[0])
	s.update()
}

// WriteString sends a run of bytes to the data register, as a string output
// instruction (rep outsb) does, with one write to the host.
func (s *Serial) WriteString(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lcr&lcrDLAB != 0 || s.mcr&mcrLoop != 0 {
		for _, b := range p {
			s.write(uartData, b)
		}
	} else {
		s.send(p)
	}
	s.update()
}

func (s *Serial) read(offset uint64) uint8 {
	switch offset {
	case uartData:
		if s.lcr&lcrDLAB != 0 {
			return s.dll
		}
		s.brk = max(0, s.brk-1)
		return s.next()
	case uartIER:
		if s.lcr&lcrDLAB != 0 {
			return s.dlm
		}
		return s.ier
	case uartIIR:
		id := s.pending()
		if id == iirTHRE {
			s.thre = false // reading it is the acknowledgement
		}
		if s.fifo {
			id |= iirFIFO
		}
		return id
	case uartLCR:
		return s.lcr
	case uartMCR:
		return s.mcr
	case uartLSR:
		v := uint8(lsrTHRE | lsrIdle)
		if len(s.rx) > 0 {
			v |= lsrData
		}
		if s.brk == 1 {
			v |= lsrBreak
		}
		if s.overrun {
			v |= lsrOverrun
			s.overrun = false
		}
		return v
	case uartMSR:
		if s.mcr&mcrLoop != 0 { // outputs are wired to inputs
			return (s.mcr&1)<<5 | (s.mcr&2)<<3 | (s.mcr&4)<<4 | (s.mcr&8)<<4
		}
		return msrReady
	default:
		return s.scr
	}
}

func (s *Serial) write(offset uint64, b uint8) {
	switch offset {
	case uartData:
		switch {
		case s.lcr&lcrDLAB != 0:
			s.dll = b
		case s.mcr&mcrLoop != 0:
			if len(s.rx) >= rxLimit {
				s.overrun = true
				return
			}
			s.rx = append(s.rx, b)
		default:
			s.one[0] = b
			s.send(s.one[:])
		}
	case uartIER:
		if s.lcr&lcrDLAB != 0 {
			s.dlm = b
			return
		}
		if b&ierTHRE != 0 && s.ier&ierTHRE == 0 {
			s.thre = true // the holding register is empty whenever one asks
		}
		s.ier = b & 0x0f
	case uartIIR:
		s.fifo = b&fcrEnable != 0
		if b&fcrClearRX != 0 {
			s.rx, s.brk = nil, 0
			s.room.Signal()
		}
	case uartLCR:
		s.lcr = b
	case uartMCR:
		s.mcr = b & 0x1f
	case uartScratch:
		s.scr = b
	}
}

// SysRq sends a break and a key behind what is typed already: Linux' magic SysRq.
func (s *Serial) SysRq(key byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rx)+2 <= rxLimit && s.brk == 0 {
		s.brk = len(s.rx) + 1
		s.rx = append(s.rx, 0, key)
		s.update()
	}
}

// send hands bytes to the host. A console that is gone must not stop the guest.
func (s *Serial) send(p []byte) {
	_, _ = s.out.Write(p)
	s.thre = true
}

// pending names the most urgent enabled interrupt.
func (s *Serial) pending() uint8 {
	switch {
	case s.ier&ierRX != 0 && len(s.rx) > 0:
		return iirRX
	case s.ier&ierTHRE != 0 && s.thre:
		return iirTHRE
	default:
		return iirNone
	}
}

// update drives the line. On an edge-triggered one an edge that the guest
// already saw is harmless, a missed one is not.
func (s *Serial) update() {
	if s.mcr&mcrLoop == 0 && s.pending() != iirNone {
		s.line.Raise()
	} else {
		s.line.Lower()
	}
}

func (t *typed) open(came func()) { t.room.L, t.came = &t.mu, came }

// next takes a byte, 0 if there is none.
func (t *typed) next() (b byte) {
	if len(t.rx) > 0 {
		b, t.rx = t.rx[0], t.rx[1:]
		t.room.Signal()
	}
	return b
}

// Input queues bytes typed by the user. It blocks while the queue is full and
// reports false when the port was closed.
func (t *typed) Input(p []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		for len(t.rx) >= rxLimit && !t.closed {
			t.room.Wait()
		}
		if t.closed {
			return false
		}
		n := min(len(p), rxLimit-len(t.rx))
		t.rx = append(t.rx, p[:n]...)
		p = p[n:]
		t.came()
	}
	return true
}

// Close lets a blocked Input return.
func (t *typed) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.room.Broadcast()
}

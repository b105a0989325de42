package devices

import "sync"

// I8042 is what is left of the keyboard controller: no keyboard, but the pulse
// that resets the machine and the output port with the A20 gate. Ports 0x60
// (data) and 0x64 (status, command); port 0x61 beside them belongs to the timer.
type I8042 struct {
	// Absent has the status read as on an empty bus, but ready to take the reset
	// pulse: OVMF waits a minute, at worst, for a keyboard behind a controller.
	Absent bool

	end func(End)

	mu      sync.Mutex
	out     []byte // answers waiting at the data port
	command uint8  // command that waits for a data byte
	config  uint8
	outPort uint8
}

// The ports of an [I8042]: two ranges of one port each.
const (
	PortI8042Data    = 0x60
	PortI8042Command = 0x64
)

const (
	i8042OutputFull = 1
	i8042InputFull  = 2
	i8042System     = 4 // self test passed
	i8042A20        = 2
	i8042Answers    = 8 // unread answers kept
)

// NewI8042 returns a controller; end is called when the guest pulses the reset line.
func NewI8042(end func(End)) *I8042 {
	return &I8042{end: end, outPort: i8042A20 | 1}
}

// Data returns the handler of port 0x60, Command that of port 0x64.
func (k *I8042) Data() Handler { return i8042Data{k} }

// Command returns the handler of port 0x64.
func (k *I8042) Command() Handler { return i8042Command{k} }

type (
	i8042Data    struct{ *I8042 }
	i8042Command struct{ *I8042 }
)

func (k *I8042) answer(b uint8) {
	if len(k.out) < i8042Answers {
		k.out = append(k.out, b)
	}
}

// Read implements [Handler].
func (d i8042Data) Read(_ uint64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	data[0] = 0
	if len(d.out) > 0 {
		data[0] = d.out[0]
		d.out = d.out[1:]
	}
}

// Write implements [Handler].
func (d i8042Data) Write(_ uint64, data []byte) {
	d.mu.Lock()
	cmd := d.command
	d.command = 0
	reset := false
	switch cmd {
	case 0x60:
		d.config = data[0]
	case 0xd1:
		d.outPort = data[0] | i8042A20
		reset = data[0]&1 == 0
	}
	d.mu.Unlock()
	if reset {
		d.end(End{Kind: EndReset, Why: "reset by the keyboard controller"})
	}
}

// Read implements [Handler].
func (c i8042Command) Read(_ uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	data[0] = i8042System
	if c.Absent {
		data[0] = 0xff &^ i8042InputFull
	} else if len(c.out) > 0 {
		data[0] |= i8042OutputFull
	}
}

// Write implements [Handler].
func (c i8042Command) Write(_ uint64, data []byte) {
	c.mu.Lock()
	reset := false
	switch cmd := data[0]; {
	case cmd == 0x20:
		c.answer(c.config)
	case cmd == 0x60, cmd == 0xd1:
		c.command = cmd
	case cmd == 0xaa: // self test
		c.answer(0x55)
	case cmd == 0xab: // interface test: no error
		c.answer(0)
	case cmd == 0xd0:
		c.answer(c.outPort)
	case cmd >= 0xf0: // pulse output lines whose bit is 0; bit 0 is reset
		reset = cmd&1 == 0
	}
	c.mu.Unlock()
	if reset {
		c.end(End{Kind: EndReset, Why: "reset by the keyboard controller"})
	}
}

package virtio

import (
	"encoding/binary"
	"io"
	"sync"
)

const (
	consoleSize = 1 << 0 // feature: the configuration has columns and rows

	consoleRx = 0
	consoleTx = 1

	// consoleBuffer bounds the input that waits for the guest.
	consoleBuffer = 4096
	// consoleMax bounds the output taken from one request; the rest is dropped.
	consoleMax = 1 << 20
)

// Console is a virtio console with one port (virtio 1.3 5.3). It implements
// [io.Writer] for what the user types.
type Console struct {
	out    io.Writer
	tx, rx Chain
	part   Buffers

	mu      sync.Mutex
	room    sync.Cond // input has become shorter, or the console closed
	input   []byte
	session *Session
	config  [4]byte // columns and rows
	closed  bool
}

// NewConsole makes a console that prints to out. A guest that prints waits
// while out blocks, and so do reset, pause and close of the device.
func NewConsole(out io.Writer) *Console {
	c := &Console{out: out}
	c.room.L = &c.mu
	return c
}

// Write hands input to the guest. It blocks while too much of it waits for the
// guest, until Close; the error is then [io.ErrClosedPipe].
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for done < len(p) {
		for len(c.input) == consoleBuffer && !c.closed {
			c.room.Wait()
		}
		if c.closed {
			return done, io.ErrClosedPipe
		}
		n := min(len(p)-done, consoleBuffer-len(c.input))
		c.input = append(c.input, p[done:done+n]...)
		done += n
		if c.session != nil {
			c.session.Wake(consoleRx)
		}
	}
	return done, nil
}

// Close makes Write fail. The device goes on without input.
func (c *Console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.room.Broadcast()
	return nil
}

// Resize tells the guest the size of the terminal in characters.
func (c *Console) Resize(columns, rows uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	binary.LittleEndian.PutUint16(c.config[0:], columns)
	binary.LittleEndian.PutUint16(c.config[2:], rows)
	if c.session != nil {
		c.session.ConfigChanged()
	}
}

// Name implements [Device].
func (c *Console) Name() string { return "virtio-console" }

// ID implements [Device].
func (c *Console) ID() uint16 { return 3 }

// Features implements [Device].
func (c *Console) Features() uint64 { return consoleSize }

// QueueSizes implements [Device].
func (c *Console) QueueSizes() []uint16 { return consoleQueues[:] }

var consoleQueues = [...]uint16{64, 64}

// ReadConfig implements [Device].
func (c *Console) ReadConfig(offset uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	readConfig(c.config[:], offset, data)
}

// WriteConfig implements [Device].
func (c *Console) WriteConfig(uint64, []byte) {}

// Activate implements [Device].
func (c *Console) Activate(s *Session) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	return nil
}

// Reset implements [Device].
func (c *Console) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = nil
}

// Serve implements [Device].
func (c *Console) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	if queue == consoleRx {
		c.serveInput(q)
		return
	}
	for q.Pop(&c.tx) {
		c.part = c.tx.Readable.AppendRange(c.part[:0], 0, consoleMax)
		for _, b := range c.part {
			_, _ = c.out.Write(b) // nobody to tell; the guest goes on
		}
		q.Push(&c.tx, 0)
	}
}

// serveInput fills the guest's buffers as far as there is input.
func (c *Console) serveInput(q *Queue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.input) > 0 && q.Pop(&c.rx) {
		n := c.rx.Writable.CopyFrom(c.input, 0)
		c.input = append(c.input[:0], c.input[n:]...)
		c.room.Broadcast()
		q.Push(&c.rx, uint32(n))
	}
}

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
	base
	out    io.Writer
	tx, rx Chain
	part   Buffers

	room   sync.Cond // on mu: input has become shorter, or the console closed
	input  []byte
	closed bool
}

// NewConsole makes a console that prints to out. A guest that prints waits
// while out blocks, and so do reset, pause and close of the device.
func NewConsole(out io.Writer) *Console {
	c := &Console{out: out, base: base{name: "virtio-console", id: 3, features: consoleSize,
		queues: []uint16{64, 64}, config: make([]byte, 4)}} // columns and rows
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

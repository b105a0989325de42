package control

import (
	"io"
	"sync"
)

// consoleBacklog is what is kept for a client that reads slowly, in bytes. What
// is more is lost to it: the guest does not wait for an onlooker.
const consoleBacklog = 64 << 10

// Console passes a guest's output on to a writer, and to clients beside it.
type Console struct {
	out io.Writer

	mu      sync.Mutex
	clients map[*onlooker]bool
}

// NewConsole returns a console that prints to out.
func NewConsole(out io.Writer) *Console { return &Console{out: out} }

// Write implements [io.Writer].
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	for o := range c.clients {
		o.add(p)
	}
	c.mu.Unlock()
	return c.out.Write(p)
}

// Attach returns a client's hold of the console; input is where what it types goes.
func (c *Console) Attach(input func([]byte) bool) *Attachment {
	o := &onlooker{}
	o.more.L = &o.mu
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clients == nil {
		c.clients = map[*onlooker]bool{}
	}
	c.clients[o] = true
	return &Attachment{Output: o, Input: input, Detach: func() {
		c.mu.Lock()
		delete(c.clients, o)
		c.mu.Unlock()
		o.end()
	}}
}

// onlooker is what a client has not read yet.
type onlooker struct {
	mu    sync.Mutex
	more  sync.Cond
	data  []byte
	ended bool
}

func (o *onlooker) add(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.data = append(o.data, p[:min(len(p), consoleBacklog-len(o.data))]...)
	o.more.Signal()
}

func (o *onlooker) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.more.Signal()
}

// Read implements [io.Reader].
func (o *onlooker) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.data) == 0 {
		if o.ended {
			return 0, io.EOF
		}
		o.more.Wait()
	}
	n := copy(p, o.data)
	o.data = append(o.data[:0], o.data[n:]...)
	return n, nil
}

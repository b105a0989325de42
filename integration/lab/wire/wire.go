// Package wire is the conversation between a test and the agent in a lab: frames
// of many streams over one byte pipe.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Port is the name of the virtio-serial port that carries the conversation.
const Port = "lab"

// Kind says what a frame is.
type Kind byte

// The kinds. A stream begins with Run or File from the test's side and ends
// with Exit from the agent's.
const (
	Ready  Kind = iota // agent: the lab is up; stream 0
	Run                // test: start a program; a JSON [Program]
	File               // test: write a file; its path, contents follow as Data
	Data               // test: bytes for standard input or the file
	EOF                // test: no more of those
	Signal             // test: one byte, a signal for the program
	Stdout             // agent: output
	Stderr             // agent: output
	Exit               // agent: a JSON [Result]
)

// Program is what a Run frame asks for.
type Program struct {
	Argv []string
	Env  []string
}

// Result is how a program or file ended.
type Result struct {
	Code   int
	Signal int
	Err    string // it could not be started or written
}

// Frame is one message.
type Frame struct {
	Stream  uint32
	Kind    Kind
	Payload []byte
}

// MaxPayload is the longest payload in bytes.
const MaxPayload = 64 << 10

const headerSize = 9

// Conn sends and receives frames.
type Conn struct {
	r  *bufio.Reader
	mu sync.Mutex // serializes writes
	w  io.Writer
}

// NewConn returns a conversation over rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, MaxPayload), w: rw}
}

// Send sends one frame. It may be called from any goroutine.
func (c *Conn) Send(stream uint32, kind Kind, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes: longer than %d", len(payload), MaxPayload)
	}
	b := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(b, stream)
	b[4] = byte(kind)
	binary.LittleEndian.PutUint32(b[5:], uint32(len(payload)))
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(append(b, payload...))
	return err
}

// SendJSON sends one frame with v as its payload.
func (c *Conn) SendJSON(stream uint32, kind Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(stream, kind, b)
}

// Receive returns the next frame.
func (c *Conn) Receive() (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[5:])
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("frame of %d bytes: longer than %d", n, MaxPayload)
	}
	f := Frame{Stream: binary.LittleEndian.Uint32(h[:]), Kind: Kind(h[4]), Payload: make([]byte, n)}
	_, err := io.ReadFull(c.r, f.Payload)
	return f, err
}

// Writer returns a writer that sends what it is given as frames of one kind.
func (c *Conn) Writer(stream uint32, kind Kind) io.Writer { return writer{c, stream, kind} }

type writer struct {
	c      *Conn
	stream uint32
	kind   Kind
}

func (w writer) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		m := min(len(p)-n, MaxPayload)
		if err := w.c.Send(w.stream, w.kind, p[n:n+m]); err != nil {
			return n, err
		}
		n += m
	}
	return len(p), nil
}

package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Client speaks to one VM.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
}

// Dial connects to the VM of a name.
func Dial(dir, name string) (*Client, error) {
	p, err := path(dir, name)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", p)
	if err != nil {
		return nil, fmt.Errorf("no running VM has the name %q (`gvmm ps` lists them): %w", name, err)
	}
	return &Client{c, bufio.NewReader(c)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Do sends a request and waits for its reply, at most for the time given, or
// for ever if that is 0. A reply that says error is one.
func (c *Client) Do(q Request, within time.Duration) (Reply, error) {
	var deadline time.Time
	if within > 0 {
		deadline = time.Now().Add(within)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return Reply{}, err
	}
	if err := json.NewEncoder(c.conn).Encode(q); err != nil {
		return Reply{}, fmt.Errorf("%s: %w", q.Op, err)
	}
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		return Reply{}, fmt.Errorf("%s: no reply: %w", q.Op, err)
	}
	var reply Reply
	if err := json.Unmarshal(line, &reply); err != nil {
		return reply, fmt.Errorf("%s: reply: %w", q.Op, err)
	}
	if reply.Error != "" {
		return reply, fmt.Errorf("%s: %s", q.Op, reply.Error)
	}
	return reply, c.conn.SetDeadline(time.Time{})
}

// Carry makes the connection the console: it copies in to the guest and what
// the guest prints to out, until the VM ends.
func (c *Client) Carry(in io.Reader, out io.Writer) error {
	if _, err := c.Do(Request{Op: OpConsole}, 0); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(c.conn, in) }() // ends with in, or at the first key behind the VM's end
	_, err := io.Copy(out, c.r)
	return err
}

// patience is how long a list waits for a VM to say what it is.
const patience = 2 * time.Second

// List asks every VM in dir what it is. Sockets whose monitors are gone are
// removed and named.
func List(dir string) (vms []Status, removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		c, dialErr := Dial(dir, name)
		if dialErr != nil {
			if Reap(dir, name) {
				removed = append(removed, e.Name())
			}
			continue
		}
		reply, doErr := c.Do(Request{Op: OpStatus}, patience)
		if doErr == nil && reply.Status != nil {
			vms = append(vms, *reply.Status)
		} else {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, doErr))
		}
		_ = c.Close()
	}
	return vms, removed, err
}

// Reap removes the socket of a name if its monitor is gone.
func Reap(dir, name string) bool {
	p, err := path(dir, name)
	if err != nil {
		return false
	}
	unlock, err := lock(dir)
	if err != nil {
		return false
	}
	defer unlock()
	return stale(p) && os.Remove(p) == nil
}

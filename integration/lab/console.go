package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"
)

// Errors of [Console.Expect] and [VM.Wait].
var (
	// ErrTimeout means that what was waited for did not come in time.
	ErrTimeout = errors.New("time-out")
	// ErrEnded means that the console was closed first.
	ErrEnded = errors.New("console ended")
)

// Console is what a program has printed so far. It is safe for concurrent use.
type Console struct {
	mu     sync.Mutex
	buf    []byte
	seen   int           // bytes that Expect went past
	ended  bool          // no more will come
	tee    io.Writer     // gets everything too; may be nil
	change chan struct{} // closed and replaced when any of the above changes
}

// Write appends p.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p...)
	c.changed()
	if c.tee != nil {
		_, _ = c.tee.Write(p)
	}
	return len(p), nil
}

// Tee has w get what was and will be written.
func (c *Console) Tee(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = w.Write(c.buf)
	c.tee = w
}

// Close tells the waiting that no more will come.
func (c *Console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.changed()
	return nil
}

func (c *Console) changed() {
	if c.change != nil {
		close(c.change)
		c.change = nil
	}
}

// String returns everything printed so far.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// Expect waits until text appears behind the place the last Expect reached.
// It fails with [ErrTimeout] or [ErrEnded].
func (c *Console) Expect(text string, timeout time.Duration) error {
	_, err := c.expect(fmt.Sprintf("%q", text), func(b []byte) []int {
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			return []int{i, i + len(text)}
		}
		return nil
	}, timeout)
	return err
}

// ExpectMatch is [Console.Expect] for a regular expression. It returns the
// match and its groups.
func (c *Console) ExpectMatch(re *regexp.Regexp, timeout time.Duration) ([]string, error) {
	return c.expect(fmt.Sprintf("match of %q", re), re.FindSubmatchIndex, timeout)
}

// expect waits until find finds something: pairs of indices as of
// [regexp.Regexp.FindSubmatchIndex].
func (c *Console) expect(what string, find func([]byte) []int, timeout time.Duration) ([]string, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		match, change, err := c.look(find)
		if match != nil {
			return match, nil
		}
		if err != nil {
			return nil, fmt.Errorf("expect %s: %w", what, err)
		}
		select {
		case <-change:
		case <-timer.C:
			return nil, fmt.Errorf("expect %s: %w after %v; the console ends with %q", what, ErrTimeout, timeout, c.tail())
		}
	}
}

// look searches once. Without a match it returns a channel that tells of news.
func (c *Console) look(find func([]byte) []int) ([]string, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := c.buf[c.seen:]
	if at := find(rest); at != nil {
		c.seen += at[1]
		match := make([]string, len(at)/2)
		for i := range match {
			if at[2*i] >= 0 {
				match[i] = string(rest[at[2*i]:at[2*i+1]])
			}
		}
		return match, nil, nil
	}
	if c.ended {
		return nil, nil, fmt.Errorf("%w with %q", ErrEnded, tail(c.buf))
	}
	if c.change == nil {
		c.change = make(chan struct{})
	}
	return nil, c.change, nil
}

func (c *Console) tail() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(tail(c.buf))
}

func tail(b []byte) []byte { return b[max(0, len(b)-400):] }

package netdev

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor is what all back ends here have: a file or socket of the host's,
// through Go's poller. It is closed when it is broken for good.
type descriptor struct {
	name     string // in errors
	file     *os.File
	conn     syscall.RawConn
	patience time.Duration // how long Send waits for a peer that is slow; 0: for ever
	stuck    bool          // the peer has had its time and has not moved since

	// One call of Receive and of Wait at a time, and one of Send: what their
	// callbacks use.
	in, out       []byte
	got, put      int
	inErr, outErr error
	read, write   func(fd uintptr)
	readable      func(fd uintptr) bool
}

// init takes over a descriptor, which is in non-blocking mode.
func (d *descriptor) init(fd int, name string) (err error) {
	d.name, d.file = name, os.NewFile(uintptr(fd), name)
	if d.conn, err = d.file.SyscallConn(); err != nil {
		_ = d.file.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	d.read = func(fd uintptr) {
		d.got, d.inErr = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), d.in) })
	}
	d.readable = func(fd uintptr) bool {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := ignoringEINTR(func() (int, error) { return unix.Poll(p[:], 0) })
		return n > 0 || err != nil
	}
	d.write = func(fd uintptr) {
		d.put, d.outErr = ignoringEINTR(func() (int, error) { return unix.Write(int(fd), d.out) })
	}
	return nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// send writes b. What the peer has no room for in time is lost, as on any wire.
func (d *descriptor) send(b []byte) error {
	d.out = b
	err := d.conn.Control(d.write)
	d.out = nil
	switch {
	case err != nil:
		return err
	case d.outErr == nil && d.put == len(b):
		d.stuck = false
		return nil
	case d.outErr == nil: // a stream: the rest must follow
	case !errors.Is(d.outErr, unix.EAGAIN) || d.stuck:
		return d.outErr
	default:
		d.put = 0
	}
	if d.patience > 0 {
		_ = d.file.SetWriteDeadline(time.Now().Add(d.patience))
		defer func() { _ = d.file.SetWriteDeadline(time.Time{}) }()
	}
	n, err := d.file.Write(b[d.put:])
	d.stuck = err != nil
	if n += d.put; err != nil && n > 0 { // where the next packet begins is lost
		_ = d.Close()
	}
	return err
}

// receive reads once; 0 bytes mean that there is nothing at the moment.
func (d *descriptor) receive(buf []byte) (int, error) {
	d.in = buf
	err := d.conn.Control(d.read) // conn.Read would wait for Wait
	d.in = nil
	switch {
	case err != nil:
		return 0, d.closed(err)
	case errors.Is(d.inErr, unix.EAGAIN):
		return 0, nil
	case d.inErr != nil:
		_ = d.Close()
		return 0, fmt.Errorf("%s: read: %w", d.name, d.inErr)
	case d.got == 0:
		_ = d.Close()
		return 0, d.closed(errors.New("the other side has ended"))
	}
	return d.got, nil
}

// Wait implements [Backend].
func (d *descriptor) Wait() error {
	if err := d.conn.Read(d.readable); err != nil {
		return d.closed(err)
	}
	return nil
}

// closed gives an error the identity that is documented.
func (d *descriptor) closed(err error) error {
	return fmt.Errorf("%s: %w (%w)", d.name, os.ErrClosed, err)
}

// Close implements [Backend].
func (d *descriptor) Close() error {
	if err := d.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

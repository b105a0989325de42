package cli

import (
	"context"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/gvmm/gvmm/vmm"
)

// The escape sequence of a terminal: Ctrl-A x ends the VM, Ctrl-A Ctrl-A (or
// Ctrl-A a) sends one Ctrl-A, any other key is sent as typed.
const escapeKey = 1 // Ctrl-A

// terminal is the user's side of the guest's console. On a terminal in the
// foreground it is switched to raw mode, so that every key but the escape
// sequence reaches the guest; anything else is read as it comes.
type terminal struct {
	in     *os.File
	cancel context.CancelCauseFunc
	saved  *term.State
	once   sync.Once
	escape bool // the last byte was the escape key
}

func openTerminal(in *os.File, cancel context.CancelCauseFunc) *terminal {
	t := &terminal{in: in, cancel: cancel}
	fd := int(in.Fd())
	if !term.IsTerminal(fd) {
		return t
	}
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || group != unix.Getpgrp() {
		t.in = nil // in the background, reading would stop the process
		return t
	}
	t.saved, _ = term.MakeRaw(fd) // a terminal that refuses is used as it is
	return t
}

// restore gives the terminal back as it was.
func (t *terminal) restore() {
	t.once.Do(func() {
		if t.saved != nil {
			_ = term.Restore(int(t.in.Fd()), t.saved)
		}
	})
}

// Read implements [io.Reader] for the guest's console.
func (t *terminal) Read(p []byte) (int, error) {
	if t.in == nil {
		return 0, io.EOF
	}
	for {
		n, err := t.in.Read(p)
		if t.saved != nil {
			n = t.filter(p[:n])
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// filter takes the escape sequences out of p in place and returns what is left.
func (t *terminal) filter(p []byte) int {
	n := 0
	for _, b := range p {
		switch {
		case !t.escape && b == escapeKey:
			t.escape = true
			continue
		case t.escape && (b == 'x' || b == 'X'):
			t.cancel(vmm.Stopped{Status: vmm.StatusInterrupted, Why: "ended by Ctrl-A x"})
			return n
		case t.escape && b == 'a':
			b = escapeKey
		}
		t.escape = false
		p[n] = b
		n++
	}
	return n
}

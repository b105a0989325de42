package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/internal/sibling"
	"github.com/gvmm/gvmm/vmm/control"
)

// machine is a running `gvmm run`.
type machine struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed at its end; what follows is then known
	code int           // its exit status, -1 for a signal
	last string        // the last line it wrote on standard error
}

// startVM starts gvmm and returns when the guest runs, or has run; at points to
// it meanwhile. A gvmm that cannot start the guest is an error, in gvmm's words.
func startVM(r *resources, name string, at *atomic.Pointer[machine], log func(string)) (*machine, error) {
	gvmm, err := sibling.Find("gvmm")
	if err != nil {
		return nil, err
	}
	m := &machine{name: name, cmd: exec.Command(gvmm, r.flags(name)...), done: make(chan struct{})}
	m.cmd.Stdin, m.cmd.Stdout = os.Stdin, os.Stdout
	// SIGTERM has gvmm tidy up, even where this process is killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	said, err := m.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the death signal comes when this thread ends
		err := m.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for s := bufio.NewScanner(said); s.Scan(); {
			m.last = s.Text()
			log(m.last)
		}
		_, _ = io.Copy(io.Discard, said) // behind a line that is too long
		_ = m.cmd.Wait()
		if m.code = m.cmd.ProcessState.ExitCode(); m.code < 0 {
			m.last = "gvmm was killed: " + m.cmd.ProcessState.String()
			if dir, err := control.Dir(); err == nil {
				control.Reap(dir, name)
			}
		}
		close(m.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", gvmm, err)
	}
	at.Store(m)
	if err := m.ready(); err != nil {
		at.Store(nil)
		return nil, err
	}
	return m, nil
}

// ready waits until the VM answers on its control socket.
func (m *machine) ready() error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-m.done:
			if m.code == 125 || m.code == 126 { // of gvmm run: it could not start, the host lacks something
				return errors.New(cmp.Or(m.last, "gvmm says nothing"))
			}
			return nil // it was quick
		case <-poll.C:
			if _, err := m.do(control.Request{Op: control.OpStatus}); err == nil {
				return nil
			}
		}
	}
}

// patience is how long the VM may take for an answer, or for its end.
const patience = 10 * time.Second

// do has the VM do something.
func (m *machine) do(q control.Request) (control.Reply, error) {
	dir, err := control.Dir()
	if err != nil {
		return control.Reply{}, err
	}
	c, err := control.Dial(dir, m.name)
	if err != nil {
		return control.Reply{}, err
	}
	defer func() { _ = c.Close() }()
	return c.Do(q, patience)
}

// stop ends the VM and waits for that.
func (m *machine) stop() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(patience, func() { _ = m.cmd.Process.Kill() })
	defer kill.Stop()
	<-m.done
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/integration/lab/wire"
)

// agent serves the test until the conversation ends: over a serial line, or
// over virtio when the path is empty.
func agent(path string) error {
	err := linkUp("lo")
	if err == nil && path == "" {
		if runtime.GOARCH == "amd64" {
			if err := holdVM(); err != nil {
				fmt.Println("lab: no KVM:", err) // who needs it will say so
			}
		}
		path, err = findPort()
	}
	if err != nil {
		return err
	}
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if strings.HasPrefix(path, "/dev/tty") {
		if err := setLine(int(port.Fd())); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	a := &server{conn: wire.NewConn(port), streams: map[uint32]*stream{}}
	if err := a.conn.Send(0, wire.Ready, nil); err != nil {
		return err
	}
	for {
		f, err := a.conn.Receive()
		if err != nil {
			return fmt.Errorf("conversation with the test: %w", err)
		}
		a.serve(f)
	}
}

// setLine makes a serial line carry plain bytes. It is slow so that an emulated
// UART's 16 bytes of buffer never overflow.
func setLine(fd int) error {
	t := &unix.Termios{Cflag: unix.B57600 | unix.CS8 | unix.CREAD | unix.CLOCAL, Ispeed: 57600, Ospeed: 57600}
	t.Cc[unix.VMIN] = 1
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// holdVM keeps one idle virtual machine for the lab's whole life. KVM patches the
// kernel's code when the first VM comes and when the last one goes (static keys
// in the scheduler and the local APIC), and QEMU 7.2 may go on running the
// breakpoint that stands there meanwhile, on every processor, for ever.
func holdVM() error {
	const createVM, createIRQChip, createVCPU = 0xae01, 0xae60, 0xae41
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	vm, err := unix.IoctlRetInt(kvm, createVM)
	if err != nil {
		return err
	}
	if _, err := unix.IoctlRetInt(vm, createIRQChip); err != nil {
		return err
	}
	_, err = unix.IoctlRetInt(vm, createVCPU)
	return err
}

// findPort returns the device of the virtio-serial port named [wire.Port].
func findPort() (string, error) {
	for range 100 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == wire.Port {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n))), nil
			}
		}
		time.Sleep(20 * time.Millisecond) // the name arrives by a control message
	}
	return "", errors.New("no virtio-serial port named " + wire.Port)
}

type server struct {
	conn *wire.Conn

	mu      sync.Mutex
	streams map[uint32]*stream
}

// stream is a running program or a file being written.
type stream struct {
	in   chan []byte // input in order; closed at its end
	proc *os.Process
	open bool // in is not closed yet; only serve touches it
}

func (a *server) serve(f wire.Frame) {
	a.mu.Lock()
	s := a.streams[f.Stream]
	a.mu.Unlock()
	switch f.Kind {
	case wire.Run, wire.File:
		// Deep enough that no test's input ever blocks the other streams.
		s = &stream{in: make(chan []byte, 4096), open: true}
		a.mu.Lock()
		a.streams[f.Stream] = s
		a.mu.Unlock()
		if f.Kind == wire.File {
			go func() { a.end(f.Stream, writeFile(string(f.Payload), s.in)) }()
			return
		}
		if err := a.run(f.Stream, s, f.Payload); err != nil {
			a.end(f.Stream, wire.Result{Code: -1, Err: err.Error()})
		}
	case wire.Data:
		if s != nil && s.open {
			s.in <- f.Payload
		}
	case wire.EOF:
		if s != nil && s.open {
			s.open = false
			close(s.in)
		}
	case wire.Signal:
		if s != nil && s.proc != nil && len(f.Payload) == 1 {
			_ = s.proc.Signal(syscall.Signal(f.Payload[0]))
		}
	}
}

func (a *server) end(id uint32, r wire.Result) {
	a.mu.Lock()
	delete(a.streams, id)
	a.mu.Unlock()
	if err := a.conn.SendJSON(id, wire.Exit, r); err != nil {
		fmt.Println("lab: agent:", err)
	}
}

func writeFile(path string, in <-chan []byte) wire.Result {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	}
	for b := range in {
		if err == nil {
			_, err = f.Write(b)
		}
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return wire.Result{Code: -1, Err: err.Error()}
	}
	return wire.Result{}
}

func (a *server) run(id uint32, s *stream, payload []byte) error {
	var p wire.Program
	if err := json.Unmarshal(payload, &p); err != nil {
		return err
	}
	if len(p.Argv) == 0 {
		return errors.New("no program")
	}
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Env = append([]string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}, p.Env...)
	cmd.Stdout = a.conn.Writer(id, wire.Stdout)
	cmd.Stderr = a.conn.Writer(id, wire.Stderr)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.proc = cmd.Process
	go func() {
		for b := range s.in {
			if _, err := in.Write(b); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				break // it reads no more; what comes is dropped
			}
		}
		_ = in.Close()
	}()
	go func() {
		r := wire.Result{}
		if err := cmd.Wait(); cmd.ProcessState == nil {
			r = wire.Result{Code: -1, Err: err.Error()}
		} else if w, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			r = wire.Result{Code: -1, Signal: int(w.Signal())}
		} else {
			r.Code = cmd.ProcessState.ExitCode()
		}
		a.end(id, r)
	}()
	return nil
}

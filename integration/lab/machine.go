package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/integration/lab/wire"
)

// Machine is a machine with a full-fidelity KVM, emulated by QEMU ([StartX86],
// [StartARM64]) or, with CET, by Bochs ([StartCET]). Its programs see /dev, /proc, /sys and a
// writable /tmp. /init is there with its tools.
type Machine struct {
	dir      string // sockets and archives
	emulator *VM
	console  *Console // the host kernel's
	conn     *wire.Conn
	close    []io.Closer // what the conversation goes over

	mu      sync.Mutex
	next    uint32
	streams map[uint32]*stream
	put     map[string]string // files there, by path here
	dirs    map[string]int    // the names of their folders
	failed  error             // why the conversation ended
}

// stream is a program that runs in the lab, or a file on its way there.
type stream struct {
	vm *VM
	r  wire.Result
}

var libraryPath = regexp.MustCompile(`(?m)(/[^ ]+) \(0x`)

// bootTime is how long a lab may take to come up on a slow machine; 5 s is usual.
const bootTime = 3 * time.Minute

func newMachine() (l *Machine, err error) {
	l = &Machine{streams: map[uint32]*stream{}, put: map[string]string{}, dirs: map[string]int{}}
	l.dir, err = os.MkdirTemp("", "gvmm-lab")
	return l, err
}

// await waits until the agent answers.
func (l *Machine) await(ctx context.Context, limit time.Duration) error {
	ready := make(chan struct{})
	go l.receive(ready)
	var err error
	select {
	case <-ready:
		return nil
	case <-l.emulator.done:
		err = errors.New("the emulator ended")
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(limit):
		err = fmt.Errorf("%w after %v", ErrTimeout, limit)
	}
	return fmt.Errorf("lab: %w before its agent answered: %s%s%s", err, l.emulator.Stderr().tail(), l.emulator.Console().tail(), l.console.tail())
}

// Console is the console of the lab's own kernel.
func (l *Machine) Console() *Console { return l.console }

// Close ends the lab and everything in it.
func (l *Machine) Close() error {
	if l.emulator != nil {
		_ = l.emulator.Signal(syscall.SIGKILL)
	}
	for _, c := range l.close {
		_ = c.Close()
	}
	if l.emulator != nil {
		if _, err := l.emulator.Wait(10 * time.Second); err != nil {
			return err
		}
	}
	return os.RemoveAll(l.dir)
}

// receive hands the agent's frames out until the conversation ends.
func (l *Machine) receive(ready chan<- struct{}) {
	var err error
	for {
		var f wire.Frame
		if f, err = l.conn.Receive(); err != nil {
			break
		}
		if f.Kind == wire.Ready {
			close(ready)
			continue
		}
		l.mu.Lock()
		s := l.streams[f.Stream]
		if f.Kind == wire.Exit {
			delete(l.streams, f.Stream)
		}
		l.mu.Unlock()
		if s == nil {
			continue
		}
		switch f.Kind {
		case wire.Stdout:
			_, _ = s.vm.stdout.Write(f.Payload)
		case wire.Stderr:
			_, _ = s.vm.stderr.Write(f.Payload)
		case wire.Exit:
			if e := json.Unmarshal(f.Payload, &s.r); e != nil {
				s.r = wire.Result{Code: -1, Err: e.Error()}
			}
			s.end()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = fmt.Errorf("the lab is gone: %w", err)
	for _, s := range l.streams {
		s.r = wire.Result{Code: -1, Err: l.failed.Error()}
		s.end()
	}
	l.streams = nil
}

func (s *stream) end() {
	if s.r.Err != "" {
		_, _ = fmt.Fprintln(&s.vm.stderr, "lab:", s.r.Err)
	}
	s.vm.ended(Status{Code: s.r.Code, Signal: syscall.Signal(s.r.Signal)})
}

// open begins a stream.
func (l *Machine) open(vm *VM) (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return 0, l.failed
	}
	l.next++
	l.streams[l.next] = &stream{vm: vm}
	return l.next, nil
}

// Put copies a file into the lab's /tmp, once. Files of one folder here share one there.
func (l *Machine) Put(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	there, ok := l.put[abs]
	if !ok {
		n, ok := l.dirs[filepath.Dir(abs)]
		if !ok {
			n = len(l.dirs)
			l.dirs[filepath.Dir(abs)] = n
		}
		there = fmt.Sprintf("/tmp/%d/%s", n, filepath.Base(abs))
		l.put[abs] = there
	}
	l.mu.Unlock()
	if ok {
		return there, nil
	}
	f, err := os.Open(abs)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return there, l.Copy(there, f)
}

// Copy writes what r holds to an executable file in the lab, making its folder.
func (l *Machine) Copy(there string, r io.Reader) error {
	vm := &VM{argv: []string{"file " + there}, done: make(chan struct{})}
	id, err := l.open(vm)
	if err != nil {
		return err
	}
	if err := l.conn.Send(id, wire.File, []byte(there)); err != nil {
		return err
	}
	if _, err := io.Copy(l.conn.Writer(id, wire.Data), r); err != nil {
		return err
	}
	if err := l.conn.Send(id, wire.EOF, nil); err != nil {
		return err
	}
	if _, err := vm.Wait(bootTime); err != nil || vm.status != (Status{}) {
		return fmt.Errorf("copy to the lab's %s: %w", there, errors.Join(err, errors.New(vm.stderr.String())))
	}
	return nil
}

// Program copies a program of this machine with all its shared libraries into
// the lab, to the same paths.
func (l *Machine) Program(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	files := []string{path}
	for _, m := range libraryPath.FindAllSubmatch(out, -1) {
		files = append(files, string(m[1]))
	}
	for _, file := range files {
		if err := l.CopyFile(file); err != nil {
			return err
		}
	}
	return nil
}

// CopyFile copies a file of this machine to the same path in the lab.
func (l *Machine) CopyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return l.Copy(path, f)
}

type labProcess struct {
	l  *Machine
	id uint32
}

func (p labProcess) Write(b []byte) (int, error) {
	return p.l.conn.Writer(p.id, wire.Data).Write(b)
}

func (p labProcess) Close() error { return p.l.conn.Send(p.id, wire.EOF, nil) }

func (p labProcess) signal(sig syscall.Signal) error {
	return p.l.conn.Send(p.id, wire.Signal, []byte{byte(sig)})
}

func (l *Machine) start(v *VM) (process, error) {
	if v.terminal {
		return nil, errors.New("the lab has no terminals")
	}
	id, err := l.open(v)
	if err != nil {
		return nil, err
	}
	return labProcess{l, id}, l.conn.SendJSON(id, wire.Run, wire.Program{Argv: v.argv, Env: v.env})
}

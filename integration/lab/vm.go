package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// Host is a place where programs run.
type Host interface {
	// Put makes a file of this machine available on the host and returns its
	// path there. The same file is put only once.
	Put(path string) (string, error)
	// start runs a program; its output goes to the VM's consoles.
	start(vm *VM) (process, error)
}

// process is a running program of a host.
type process interface {
	io.WriteCloser // its standard input
	signal(sig syscall.Signal) error
}

// Status is how a program ended.
type Status struct {
	Code   int            // exit status, or -1
	Signal syscall.Signal // the signal that ended it, or 0
}

func (s Status) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("killed by %v", s.Signal)
	}
	return fmt.Sprintf("status %d", s.Code)
}

// VM is a running program, most often a virtual machine monitor, and its
// consoles.
type VM struct {
	argv     []string
	env      []string
	terminal bool

	stdout, stderr Console
	proc           process
	pid            int // on this machine; 0 in a lab
	done           chan struct{}
	status         Status // valid once done is closed
}

// Option changes how a program is started.
type Option func(*VM)

// WithTerminal gives the program a terminal as standard input and output.
// Only [Local] has terminals.
func WithTerminal() Option { return func(v *VM) { v.terminal = true } }

// WithEnv adds variables ("K=V") to the program's environment.
func WithEnv(env ...string) Option {
	return func(v *VM) { v.env = append(v.env, env...) }
}

// Start runs argv on the host. The program is killed when the test ends, and
// its output is logged when the test failed.
func Start(t testing.TB, host Host, argv []string, opts ...Option) *VM {
	t.Helper()
	v, err := New(host, argv, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = v.Signal(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%q\nconsole:\n%s\nstandard error:\n%s", argv, v.stdout.String(), v.stderr.String())
		}
	})
	return v
}

// New is [Start] without a test: the caller sees to the program's end.
func New(host Host, argv []string, opts ...Option) (*VM, error) {
	v := &VM{argv: argv, done: make(chan struct{})}
	for _, o := range opts {
		o(v)
	}
	var err error
	if v.proc, err = host.start(v); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return v, nil
}

// ended is called by the host, once, when all output has arrived.
func (v *VM) ended(s Status) {
	v.status = s
	_ = v.stdout.Close()
	_ = v.stderr.Close()
	close(v.done)
}

// Console is the program's standard output.
func (v *VM) Console() *Console { return &v.stdout }

// Stderr is the program's standard error. It stays empty on a terminal.
func (v *VM) Stderr() *Console { return &v.stderr }

// PID is the process on this machine, 0 for a program in a lab.
func (v *VM) PID() int { return v.pid }

// Write sends p to the program's standard input.
func (v *VM) Write(p []byte) (int, error) { return v.proc.Write(p) }

// Signal sends a signal. A program that has ended is no error.
func (v *VM) Signal(sig syscall.Signal) error {
	select {
	case <-v.done:
		return nil
	default:
		return v.proc.signal(sig)
	}
}

// Wait waits until the program has ended. After the time-out the program is
// killed and the error wraps [ErrTimeout].
func (v *VM) Wait(timeout time.Duration) (Status, error) {
	select {
	case <-v.done:
		return v.status, nil
	case <-time.After(timeout):
	}
	if v.proc != nil {
		_ = v.proc.signal(syscall.SIGKILL)
	}
	return Status{Code: -1}, fmt.Errorf("%s still runs: %w after %v; its console ends with %q", v.argv[0], ErrTimeout, timeout, v.stdout.tail())
}

// Run runs a program to its end and returns what it printed. A status other
// than 0 is an error.
func Run(ctx context.Context, host Host, argv ...string) (string, error) {
	v, err := New(host, argv)
	if err != nil {
		return "", err
	}
	select {
	case <-v.done:
	case <-ctx.Done():
		_ = v.proc.signal(syscall.SIGKILL)
		return "", fmt.Errorf("%q: %w", argv, context.Cause(ctx))
	}
	if v.status != (Status{}) {
		return v.stdout.String(), fmt.Errorf("%q: %v: %s", argv, v.status, v.stderr.String())
	}
	return v.stdout.String(), nil
}

// HaveKVM reports why this machine's /dev/kvm cannot be used, or nil.
func HaveKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w (a Linux machine with KVM is needed; add yourself to the group that owns /dev/kvm)", err)
	}
	return f.Close()
}

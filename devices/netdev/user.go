package netdev

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// UserProgram is the name of the program that a [User] runs.
const UserProgram = "gvmm-net"

// LinkFD is the program's end of the [Link]. The sockets of the forwards follow
// it, in their order.
const LinkFD = 3

// endTime is how long the program may take to end connections.
const endTime = time.Second

// UserConfig is what the program is told, as JSON in its only argument.
type UserConfig struct {
	MAC      [6]byte   // the guest's
	Forwards []Forward // what of them concerns the guest

	Guest, Gateway netip.Addr // the plan of addresses; zero: the usual one
}

// User is a [Backend] whose network is a process of its own, so that no TCP/IP
// stack shares memory with the monitor. The process starts when the guest's
// driver comes; until then connections to the forwards wait in their sockets.
// It ends with the link, thus with the monitor, however that ends.
type User struct {
	*Link
	program []string
	cfg     UserConfig
	report  func(error)
	once    sync.Once

	mu      sync.Mutex
	closed  bool
	files   []*os.File // for the process, until it has them
	process *os.Process
	ended   chan struct{} // closed when the process is gone
}

// NewUser opens the host's side of the forwards and makes the link. program is
// the path of gvmm-net, or of what stands in for it, and its first arguments; report is told of the process's end unless it is by Close.
func NewUser(program []string, cfg UserConfig, report func(error)) (*User, error) {
	link, other, err := NewLinks("user network")
	if err != nil {
		return nil, err
	}
	u := &User{Link: link, program: program, cfg: cfg, report: report, files: []*os.File{other}, ended: make(chan struct{})}
	for _, f := range cfg.Forwards {
		file, err := f.Listen()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("user network: %w", err), u.Close())
		}
		u.files = append(u.files, file)
	}
	return u, nil
}

// SetOffloads implements [Backend]. With the first call the guest's driver is there.
func (u *User) SetOffloads(o Offloads) error {
	u.once.Do(func() { go u.start() }) // which takes milliseconds
	return u.Link.SetOffloads(o)
}

func (u *User) start() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	defer u.closeFiles() // without a process the link goes down with that
	arg, err := json.Marshal(u.cfg)
	if err == nil {
		u.process, err = os.StartProcess(u.program[0], slices.Concat([]string{UserProgram}, u.program[1:], []string{string(arg)}), &os.ProcAttr{
			Dir:   "/",
			Files: append([]*os.File{nil, nil, os.Stderr}, u.files...),
			Sys:   &syscall.SysProcAttr{Setpgid: true}, // the terminal's Ctrl-C is not for it
		})
	}
	if err != nil {
		u.report(fmt.Errorf("user network: start its process: %w; the guest's link is down", err))
		return
	}
	go u.reap()
}

// reap waits for the end of the process.
func (u *User) reap() {
	state, _ := u.process.Wait()
	close(u.ended)
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed {
		u.report(fmt.Errorf("user network: process %d has ended (%v); the guest's link is down", u.process.Pid, state))
	}
}

func (u *User) closeFiles() {
	for _, f := range u.files {
		_ = f.Close()
	}
	u.files = nil
}

// Close implements [Backend]. It returns when the process has ended.
func (u *User) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.closeFiles()
	err := u.Link.Close()
	if u.process != nil {
		defer time.AfterFunc(endTime, func() { _ = u.process.Kill() }).Stop()
		<-u.ended
	}
	return err
}

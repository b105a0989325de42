// Package netproc is the process of one VM's user network. gvmm starts it, so
// that the TCP/IP stack which the guest talks to is not in the process that has
// the guest's memory and /dev/kvm. It ends when gvmm does.
package netproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/devices/usernet"
)

// Main is the whole process, but for its exit status. args are without the
// program's name.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", netdev.UserProgram, err)
		return 1
	}
	return 0
}

func run(args []string) error {
	var cfg netdev.UserConfig
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &cfg) != nil {
		return errors.New("gvmm starts this program: gvmm run -n user IMAGE")
	}
	if err := confine(); err != nil {
		return err
	}
	link, err := netdev.NewLink(netdev.LinkFD, "link to gvmm")
	if err != nil {
		return err
	}
	c := usernet.Config{MAC: cfg.MAC, Forwards: cfg.Forwards, Guest: cfg.Guest, Gateway: cfg.Gateway}
	for i, f := range cfg.Forwards {
		fd := netdev.LinkFD + 1 + i
		unix.CloseOnExec(fd)
		c.Sockets = append(c.Sockets, os.NewFile(uintptr(fd), f.String()))
	}
	n, err := usernet.New(c)
	if err != nil {
		return err
	}
	link.Peer = n.SetOffloads
	go func() {
		carry(link, n)
		_ = link.Close()
	}()
	carry(n, link) // until gvmm has gone, or its VM
	time.AfterFunc(2*time.Second, func() { os.Exit(1) })
	return n.Close() // the host's connections are reset, not ended in order
}

// carry passes packets on until no more come.
func carry(to, from netdev.Backend) {
	buf := make([]byte, netdev.MaxPacket)
	for from.Wait() == nil {
		for {
			k, err := from.Receive(buf)
			if k == 0 || err != nil {
				break // Wait knows if it is for good
			}
			_ = to.Send(buf[:k]) // a packet that is lost is nobody's error
		}
	}
}

// confine takes from the process what it never needs: new privileges, writing
// to files, being looked into by the user's other processes.
func confine() error {
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if e == unix.ENOTSUP { // built with cgo, whose threads Go does not reach: this one, then
		_, _, e = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	}
	if e != 0 {
		return fmt.Errorf("give up new privileges: %w", e)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit files: %w", err)
	}
	return nil
}

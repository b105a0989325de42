package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Local is this machine.
type Local struct{}

// Put returns the absolute path.
func (Local) Put(path string) (string, error) { return filepath.Abs(path) }

type localProcess struct {
	io.WriteCloser
	p *os.Process
}

func (p localProcess) signal(sig syscall.Signal) error {
	if err := p.p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (Local) start(v *VM) (process, error) {
	cmd := exec.Command(v.argv[0], v.argv[1:]...)
	cmd.Env = append(os.Environ(), v.env...)
	cmd.Stderr = &v.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that dies leaves nothing behind
	p := localProcess{}
	var tty *os.File
	if v.terminal {
		ptmx, pts, err := openTerminal()
		if err != nil {
			return nil, err
		}
		defer func() { _ = pts.Close() }()
		tty = ptmx
		cmd.Stdin, cmd.Stdout, cmd.Stderr = pts, pts, pts
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
		p.WriteCloser = ptmx
	} else {
		cmd.Stdout = &v.stdout
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		p.WriteCloser = in
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.p, v.pid = cmd.Process, cmd.Process.Pid
	go func() {
		if tty != nil {
			_, _ = io.Copy(&v.stdout, tty) // ends with EIO when the program has gone
		}
		_ = cmd.Wait()
		if tty != nil {
			_ = tty.Close()
		}
		v.ended(statusOf(cmd.ProcessState))
	}()
	return p, nil
}

func statusOf(s *os.ProcessState) Status {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return Status{Code: -1, Signal: w.Signal()}
	}
	return Status{Code: s.ExitCode()}
}

// openTerminal returns both ends of a new pseudo terminal.
func openTerminal() (ptmx, pts *os.File, err error) {
	ptmx, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(ptmx.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		pts, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		_ = ptmx.Close()
		return nil, nil, fmt.Errorf("pseudo terminal: %w", err)
	}
	return ptmx, pts, nil
}

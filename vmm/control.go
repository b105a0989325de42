//go:build amd64 || arm64

package vmm

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/vmm/control"
)

// Serve answers on a control socket of the VM's name in dir until the VM is
// closed ([control.Dir] is where gvmm's own commands look).
func (m *VM) Serve(dir string) error {
	s, err := control.Serve(dir, m.cfg.Name, controlled{m})
	if err == nil {
		m.closers = append(m.closers, s)
	}
	return err
}

// controlled is a VM as its control socket sees it.
type controlled struct{ *VM }

var _ control.VM = controlled{}

// statsTime bounds the wait for a guest's own statistics.
const statsTime = time.Second

// Status implements [control.VM].
func (c controlled) Status(counters bool) control.Status {
	m := c.VM
	s := control.Status{
		Name: m.cfg.Name, PID: os.Getpid(), State: control.Running, Image: m.cfg.Image, Machine: string(m.plan.Machine),
		CPUs: len(m.cpus), Memory: m.cfg.Memory,
	}
	if at := m.started.Load(); at != nil {
		s.Uptime = time.Since(*at).Milliseconds()
	}
	if m.state.Load() == paused {
		s.State = control.Paused
	}
	if !counters {
		return s
	}
	s.Stats = &control.Stats{Resident: resident(), CPUTime: cpuTime().Milliseconds()}
	for _, v := range m.cpus {
		s.Stats.Exits = append(s.Stats.Exits, v.exits.Load())
	}
	if b := m.balloon; b != nil {
		target, actual := b.Sizes()
		s.Stats.Balloon = &control.Balloon{Target: target, Actual: actual}
		if guest, err := b.Statistics(statsTime); err == nil {
			s.Stats.Balloon.Guest = guest
		}
	}
	return s
}

// Terminate implements [control.VM].
func (c controlled) Terminate() {
	c.finish(Outcome{Status: StatusTerminated, Why: "stopped through the control socket"})
}

// SetBalloon implements [control.VM].
func (c controlled) SetBalloon(bytes uint64) error {
	if c.balloon == nil {
		return errors.New("the VM has no balloon: start it with --balloon")
	}
	return c.balloon.SetTarget(bytes)
}

// Debug implements [control.VM].
func (c controlled) Debug(d control.Debug) (dump string, err error) {
	if d.Dump || d.NMI != nil {
		if c.state.Load() == running {
			c.Pause()
			defer c.Resume()
		}
		for _, v := range c.cpus {
			if d.Dump {
				dump += v.dump()
			}
		}
		if n := d.NMI; n != nil && (*n < 0 || *n >= len(c.cpus)) {
			return dump, fmt.Errorf("vCPU %d: there are %d", *n, len(c.cpus))
		} else if n != nil {
			err = c.cpus[*n].NMI()
		}
	}
	if d.SysRq != "" && c.sysrq == nil {
		return dump, errors.New("the guest's console is no serial port that takes a break")
	} else if d.SysRq != "" {
		c.sysrq(d.SysRq[0])
	}
	return dump, err
}

// Console implements [control.VM].
func (c controlled) Console() (*control.Attachment, error) {
	return c.console.Attach(c.input), nil
}

// resident is the memory that this process keeps, in bytes (proc(5), statm).
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var n uint64
	field := 0
	for _, d := range b {
		if d == ' ' {
			if field++; field == 2 {
				break
			}
		} else if field == 1 {
			n = n*10 + uint64(d-'0')
		}
	}
	return n * uint64(os.Getpagesize())
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package lkvm

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/vmm/control"
)

// replyTime is how long a command waits for a machine.
const replyTime = 10 * time.Second

// chosen is which machines a command is for.
type chosen struct {
	all  bool
	name string
}

func (c *chosen) options() []option {
	return []option{title("Instance options:"), flag('a', "all", "All machines", &c.all), text('n', "name", "name", "The machine's name", &c.name)}
}

// each calls do for every machine that is chosen.
func (t *tool) each(c *chosen, do func(m *control.Client, s *control.Status) error) (int, error) {
	names := []string{c.name}
	if c.all {
		files, err := filepath.Glob(filepath.Join(t.dir, "*.sock"))
		if err != nil {
			return 0, err
		}
		names = nil
		for _, f := range files {
			names = append(names, filepath.Base(f[:len(f)-len(".sock")]))
		}
	} else if c.name == "" {
		return 0, misuse{}
	}
	for _, name := range names {
		m, err := t.dial(name)
		if err != nil && c.all {
			continue // it has just ended
		} else if err != nil {
			return 0, err
		}
		r, err := m.Do(control.Request{Op: control.OpStatus}, replyTime)
		if err == nil && r.Status == nil {
			err = errors.New("no status in the reply")
		}
		if err == nil {
			err = do(m, r.Status)
		}
		if err = errors.Join(err, m.Close()); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	return 0, nil
}

// dial connects to a machine. The socket of one that was killed is removed.
func (t *tool) dial(name string) (*control.Client, error) {
	m, err := control.Dial(t.dir, name)
	if err == nil {
		return m, nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		t.reap(name)
	}
	return nil, fatalf("Failed locating instance")
}

func (t *tool) reap(name string) {
	if control.Reap(t.dir, name) {
		t.say(levelInfo, "Removed ghost socket file \"%s/%s.sock\".", t.dir, name)
	}
}

// instance makes the table and body of a command for chosen machines.
func (t *tool) instance(more []option, check func() error, do func(*control.Client, *control.Status) error) ([]option, func([]string) (int, error)) {
	c := new(chosen)
	table := append(more, c.options()...)
	return table, func(args []string) (int, error) {
		rest, err := parse(table, args)
		if err == nil && len(rest) > 0 {
			err = misuse{}
		}
		if err == nil && check != nil {
			err = check()
		}
		if err != nil {
			return 0, err
		}
		return t.each(c, do)
	}
}

// tellOptions is stop, pause and resume.
func tellOptions(op control.Op) func(*tool) ([]option, func([]string) (int, error)) {
	return func(t *tool) ([]option, func([]string) (int, error)) {
		return t.instance(nil, nil, func(m *control.Client, s *control.Status) error {
			done := map[control.Op]string{control.OpPause: "paused", control.OpResume: "resumed"}[op]
			switch {
			case op == control.OpPause && s.State == control.Paused:
				fmt.Fprintf(t.stdout, "Guest %s is already paused.\n", s.Name)
				return nil
			case op == control.OpResume && s.State == control.Running:
				fmt.Fprintf(t.stdout, "Guest %s is still running.\n", s.Name)
				return nil
			}
			if _, err := m.Do(control.Request{Op: op}, replyTime); err != nil {
				return err
			}
			if done != "" {
				fmt.Fprintf(t.stdout, "Guest %s %s\n", s.Name, done)
			}
			return nil
		})
	}
}

func balloonOptions(t *tool) ([]option, func([]string) (int, error)) {
	var more, less uint64
	return t.instance([]option{title("Balloon options:"),
		number('i', "inflate", "MiB to take from the guest", &more), number('d', "deflate", "MiB to give back to it", &less)},
		func() error {
			if more == 0 && less == 0 || more > 1<<30 || less > 1<<30 {
				return misuse{}
			}
			return nil
		}, func(m *control.Client, _ *control.Status) error {
			r, err := m.Do(control.Request{Op: control.OpStats}, replyTime)
			if err != nil {
				return err
			}
			if r.Status == nil || r.Status.Stats == nil || r.Status.Stats.Balloon == nil {
				return errNoBalloon
			}
			size := r.Status.Stats.Balloon.Target>>20 + more
			_, err = m.Do(control.Request{Op: control.OpBalloon, MiB: int(size - min(size, less))}, replyTime)
			return err
		})
}

var errNoBalloon = errors.New("it has no balloon: start it with --balloon")

func statOptions(t *tool) ([]option, func([]string) (int, error)) {
	var memory bool
	return t.instance([]option{title("Commands options:"), flag('m', "memory", "The guest's memory", &memory)},
		func() error {
			if !memory {
				return misuse{}
			}
			return nil
		}, func(m *control.Client, s *control.Status) error {
			r, err := m.Do(control.Request{Op: control.OpStats}, replyTime)
			switch {
			case err != nil:
				return err
			case r.Status == nil || r.Status.Stats == nil || r.Status.Stats.Balloon == nil:
				return errNoBalloon
			}
			fmt.Fprintf(t.stdout, "\n\n\t*** Guest memory statistics ***\n\n")
			if len(r.Status.Stats.Balloon.Guest) == 0 {
				fmt.Fprintf(t.stdout, "%s's balloon driver reports none.\n", s.Name)
			}
			for _, name := range slices.Sorted(maps.Keys(r.Status.Stats.Balloon.Guest)) {
				fmt.Fprintf(t.stdout, "%s: %d\n", name, r.Status.Stats.Balloon.Guest[name])
			}
			fmt.Fprintln(t.stdout)
			return nil
		})
}

func listOptions(t *tool) ([]option, func([]string) (int, error)) {
	var running, roots bool
	table := []option{title("General options:"), flag('i', "run", "List running machines", &running), flag('r', "rootfs", "List root file systems", &roots)}
	return table, func(args []string) (int, error) {
		rest, err := parse(table, args)
		if err == nil && len(rest) > 0 {
			err = misuse{}
		}
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(t.stdout, "%6s %-20s %s\n------------------------------------\n", "PID", "NAME", "STATE")
		if running || !roots {
			vms, removed, err := control.List(t.dir)
			for _, s := range removed {
				t.say(levelInfo, "Removed ghost socket file \"%s/%s\".", t.dir, s)
			}
			for _, v := range vms {
				fmt.Fprintf(t.stdout, "%5d %-20s %s\n", v.PID, v.Name, v.State)
			}
			if err != nil {
				return 0, err
			}
		}
		if roots || !running {
			entries, err := os.ReadDir(t.dir)
			for _, e := range entries {
				if e.IsDir() {
					fmt.Fprintf(t.stdout, "%5s %-20s shut off\n", "", e.Name())
				}
			}
			return 0, err
		}
		return 0, nil
	}
}

func debugOptions(t *tool) ([]option, func([]string) (int, error)) {
	var d control.Debug
	nmi := call('m', "nmi", "n", "Inject an NMI into this vCPU", func(s string) error {
		n, err := strconv.Atoi(s)
		if d.NMI = &n; err != nil {
			return misusef("option `nmi': %q is no number", s)
		}
		return nil
	})
	return t.instance([]option{title("General options:"), flag('d', "dump", "Show every vCPU", &d.Dump), nmi,
		text('s', "sysrq", "key", "Send a SysRq key on the serial console", &d.SysRq)}, nil,
		func(m *control.Client, _ *control.Status) error {
			d.SysRq = d.SysRq[:min(len(d.SysRq), 1)]
			r, err := m.Do(control.Request{Op: control.OpDebug, Debug: &d}, replyTime)
			fmt.Fprint(t.stdout, r.Dump)
			return err
		})
}

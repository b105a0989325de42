package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/gvmm/gvmm/vmm/control"
)

const psUsage = `usage: gvmm ps [--json]

Lists the running VMs of this user. Sockets that killed monitors left behind are
removed.

`

// list is `gvmm ps`.
func list(args []string, stdout, stderr io.Writer) error {
	var asJSON bool
	fs := newFlags("ps", psUsage, stdout)
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	if help, err := parse(fs, args, noArguments); help || err != nil {
		return err
	}
	dir, err := control.Dir()
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	vms, removed, err := control.List(dir)
	for _, name := range removed {
		fmt.Fprintf(stderr, "gvmm: removed %s: its monitor is gone\n", name)
	}
	if asJSON {
		if vms == nil {
			vms = []control.Status{}
		}
		return errors.Join(err, writeJSON(stdout, vms))
	}
	fmt.Fprintf(stdout, "%-24s %7s %-8s %4s %8s %9s  %s\n", "NAME", "PID", "STATE", "CPUS", "MEMORY", "UPTIME", "IMAGE")
	for _, v := range vms {
		up := (time.Duration(v.Uptime) * time.Millisecond).Round(time.Second)
		fmt.Fprintf(stdout, "%-24s %7d %-8s %4d %7dM %9v  %s\n", v.Name, v.PID, v.State, v.CPUs, v.Memory>>20, up, v.Image)
	}
	return err
}

func noArguments(args []string, _ int) error {
	if len(args) > 0 {
		return usageError{errors.New("takes no arguments")}
	}
	return nil
}

// tellUsage is the help of the commands to one VM.
var tellUsage = map[string]string{
	"stop": `usage: gvmm stop NAME

Ends a running VM, as SIGTERM to its monitor does: its status is 143.

`,
	"pause": `usage: gvmm pause NAME

Stops every vCPU and every device of a running VM. When the command returns they
stand still.

`,
	"resume": `usage: gvmm resume NAME

Lets a paused VM run on.

`,
	"stats": `usage: gvmm stats NAME

Prints a running VM's state and counters: exits of each vCPU, memory and
processor time of the monitor with its guest, the balloon and what the guest's
driver reports. A guest that does not answer is waited for a second.

`,
	"console": `usage: gvmm console NAME

Connects to a running VM's console. On a terminal, Ctrl-A x leaves it; the VM
runs on. The output that was there before is not repeated.

`,
	"balloon": `usage: gvmm balloon NAME MIB

Asks the guest to give up MIB of its memory; 0 gives all of it back. The VM was
started with --balloon.

`,
}

// replyTime is how long a command waits for a VM. A pause waits for disks.
const replyTime = time.Minute

// tell is `gvmm stop` and its like: one request to one VM.
func tell(cmd string, args []string, stdout io.Writer) error {
	request := control.Request{Op: control.Op(cmd)}
	var name string
	var asJSON bool
	fs := newFlags(cmd, tellUsage[cmd], stdout)
	if cmd == "stats" {
		fs.BoolVar(&asJSON, "json", false, "print JSON")
	}
	help, err := parse(fs, args, func(args []string, _ int) (err error) {
		want := 1
		if cmd == "balloon" {
			want = 2
		}
		if len(args) != want {
			return usageError{errors.New("give the NAME of a running VM (`gvmm ps` lists them)" + map[bool]string{true: " and a number of MiB"}[want == 2])}
		}
		if name = args[0]; want == 2 {
			if request.MiB, err = strconv.Atoi(args[1]); err != nil || request.MiB < 0 {
				return usageError{fmt.Errorf("%q: give a number of MiB", args[1])}
			}
		}
		return nil
	})
	if help || err != nil {
		return err
	}
	dir, err := control.Dir()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	c, err := control.Dial(dir, name)
	if err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	if cmd == "console" {
		err = attachConsole(c, stdout)
	} else {
		var reply control.Reply
		if reply, err = c.Do(request, replyTime); err == nil && reply.Status != nil {
			err = printStats(stdout, reply.Status, asJSON)
		}
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// attachConsole is `gvmm console`.
func attachConsole(c *control.Client, stdout io.Writer) error {
	left := make(chan error, 1)
	term := openTerminal(os.Stdin, func(error) { left <- nil })
	defer term.restore()
	go func() { left <- c.Carry(term, stdout) }()
	return <-left
}

func printStats(w io.Writer, s *control.Status, asJSON bool) error {
	if asJSON {
		return writeJSON(w, s)
	}
	p := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	p("name", "%s (process %d)", s.Name, s.PID)
	p("state", "%s, up %v", s.State, time.Duration(s.Uptime)*time.Millisecond)
	p("guest", "%s on %s, %d vCPUs, %d MiB", s.Image, s.Machine, s.CPUs, s.Memory>>20)
	p("resident", "%d KiB", s.Stats.Resident>>10)
	p("processor", "%v", time.Duration(s.Stats.CPUTime)*time.Millisecond)
	for i, n := range s.Stats.Exits {
		p(fmt.Sprintf("vCPU %d", i), "%d exits", n)
	}
	if b := s.Stats.Balloon; b != nil {
		p("balloon", "%d MiB of %d MiB asked for", b.Actual>>20, b.Target>>20)
		for _, name := range []string{"total", "available", "free", "caches", "swap_in", "swap_out", "major_faults", "minor_faults"} {
			if v, ok := b.Guest[name]; ok {
				p("  "+name, "%d", v)
			}
		}
	}
	return nil
}

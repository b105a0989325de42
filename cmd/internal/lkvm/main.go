package lkvm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/gvmm/gvmm/vmm/control"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// Exit statuses, kvmtool's.
const (
	statusFatal   = 128
	statusUsage   = 129
	statusUnknown = 22 // no such command
)

// Is reports whether a program of that name is to be lkvm.
func Is(name string) bool { return slices.Contains([]string{"lkvm", "vm", "lkvm-static"}, name) }

// The levels of messages.
const (
	levelError = iota
	levelWarning
	levelInfo
	levelDebug
)

var levelNames = []string{"error", "warning", "info", "debug"}

// tool is one call of lkvm.
type tool struct {
	stdout, stderr io.Writer
	kernel         kvm.Kernel
	dir            string // of sockets and root file systems
	level          int
}

// say prints a message in kvmtool's form. What the guest's console is mixed with
// on standard output is information; the rest goes to standard error.
func (t *tool) say(level int, format string, args ...any) {
	if level > t.level {
		return
	}
	w := t.stderr
	if level == levelInfo {
		w = t.stdout
	}
	fmt.Fprintf(w, "  %s: %s\n", [...]string{"Error", "Warning", "Info", "Debug"}[level], fmt.Sprintf(format, args...))
}

// fatalf makes an error in kvmtool's words, which scripts may look for.
func fatalf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// command is a subcommand. run returns a [misuse] for which the usage is printed.
type command struct {
	name, line, help string
	options          func(t *tool) (table []option, run func(args []string) (int, error))
}

// commands are in the order in which help names them.
func commands() []command {
	const named = " [--all] [-n name]"
	return []command{
		{"run", "run [<options>] [<kernel image>]", "boot a virtual machine", runOptions(false)},
		{"setup", "setup [name]", "make a root file system for guests", setupOptions},
		{"pause", "pause" + named, "stop the vCPUs and devices of a machine", tellOptions(control.OpPause)},
		{"resume", "resume" + named, "let a paused machine run on", tellOptions(control.OpResume)},
		{"version", "version", "print the version", nil},
		{"list", "list", "list running machines and root file systems", listOptions},
		{"debug", "debug" + named + " [-d] [-m vcpu] [-s key]", "show the vCPUs of a machine, interrupt it", debugOptions},
		{"balloon", "balloon [-n name] [-i amount] [-d amount]", "take memory from a machine, or give it back", balloonOptions},
		{"stop", "stop" + named, "end a machine", tellOptions(control.OpStop)},
		{"stat", "stat -m" + named, "print statistics of a machine", statOptions},
		{"sandbox", "sandbox [<options>] [--] <command>", "run a command in a machine on the host's files", runOptions(true)},
	}
}

// Main is lkvm with the arguments behind its name. It returns the exit status.
func Main(args []string, stdout, stderr io.Writer, kernel kvm.Kernel) int {
	t := &tool{stdout: stdout, stderr: stderr, kernel: kernel, level: levelInfo}
	status, err := t.main(args)
	if err != nil {
		fmt.Fprintf(stderr, "  Fatal: %v\n", err)
		return statusFatal
	}
	return status
}

func (t *tool) main(args []string) (int, error) {
	t.dir = filepath.Join(cmp.Or(os.Getenv("HOME"), "/"), ".lkvm")
	_ = os.Mkdir(t.dir, 0o700) // what needs it says so
	if len(args) == 0 {
		args = []string{"help"}
	}
	name, rest := args[0], args[1:]
	if name == "help" && len(rest) > 0 {
		name, rest = rest[0], []string{"--help"}
	}
	table := commands()
	i := slices.IndexFunc(table, func(c command) bool { return c.name == name })
	switch {
	case name == "version" || name == "--version":
		fmt.Fprintln(t.stdout, "kvm tool", version())
		return 0, nil
	case i < 0:
		t.help(table)
		if args[0] == "help" {
			return 0, nil
		}
		return statusUnknown, nil
	}
	options, run := table[i].options(t)
	status, err := run(rest)
	if wrong := (misuse{}); errors.As(err, &wrong) {
		if wrong.error != nil {
			t.say(levelError, "%v", wrong.error)
		}
		usage(t.stderr, table[i].line, options)
		return statusUsage, nil
	}
	return status, err
}

// help is what kvm-unit-tests knows lkvm by.
func (t *tool) help(table []command) {
	fmt.Fprint(t.stdout, "\n lkvm runs Linux and other guests in KVM virtual machines; it is gvmm by another name\n\nusage: lkvm COMMAND [ARGS]\n\n The most commonly used lkvm commands are:\n")
	for _, c := range table {
		fmt.Fprintf(t.stdout, "   %-9s %s\n", c.name, c.help)
	}
	fmt.Fprint(t.stdout, "\n See 'lkvm help COMMAND' for more information on a specific command.\n\n")
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return "gvmm " + info.Main.Version
	}
	return "gvmm (devel)"
}

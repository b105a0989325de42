package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/internal/sibling"
	"github.com/gvmm/gvmm/vmm"
	"github.com/gvmm/gvmm/vmm/control"
	"github.com/gvmm/gvmm/vmm/kvm"
)

const runUsage = `usage: gvmm run [flags] IMAGE [-- ARG...]

Boots IMAGE (a Unikraft unikernel, a Linux bzImage or vmlinux, or any multiboot
or PVH kernel; the format is found by content) and waits for its end. The
guest's console is standard input and output; Ctrl-A x on a terminal ends it.

  gvmm run -p 8080:80 -i root.cpio nginx.elf
  gvmm run -M 512M -c 2 -i initramfs.gz -d disk.img -a 'root=/dev/vda' vmlinuz
  gvmm run --firmware OVMF.fd -M 1G -d disk.img

Exit status: 0 the guest powered off or reset; N its own code; 124 time-out;
125 it could not start; 126 the host lacks what was asked for; 130, 143
interrupted; 139 it crashed. One line on standard error says which and why.

`

// run is `gvmm run`.
func run(args []string, stdout, stderr io.Writer, kernel kvm.Kernel) (int, error) {
	cfg := vmm.Config{Kernel: kernel}
	var timeout time.Duration
	var quiet, dryRun, asJSON bool
	var level string
	fs := newFlags("run", runUsage, stdout)
	finish := machineFlags(fs, &cfg)
	fs.DurationVar(&timeout, "timeout", 0, "end the VM after `DURATION`, such as 30s")
	fs.BoolVar(&dryRun, "dry-run", false, "print the launch plan, start nothing")
	fs.BoolVar(&asJSON, "json", false, "with --dry-run: print it as JSON")
	fs.BoolVarP(&quiet, "quiet", "q", false, "no messages of gvmm's own, errors apart")
	fs.StringVar(&level, "log-level", "warn", "gvmm's own messages: `debug|info|warn|error`")
	fs.BoolVar(&cfg.Raw, "raw-append", false, "-a is the guest's whole command line, word 0 where it has one included: add no more than devices, as Firecracker does")
	if help, err := parse(fs, args, finish); help || err != nil {
		return vmm.StatusOK, err
	}
	cfg.Unnamed = cfg.Raw
	switch {
	case timeout < 0:
		return 0, usageError{fmt.Errorf("--timeout %v: give a positive duration", timeout)}
	case asJSON && !dryRun:
		return 0, usageError{errors.New("--json goes with --dry-run")}
	case dryRun:
		return vmm.StatusOK, printPlan(&cfg, stdout, asJSON)
	}
	log, err := newLog(stderr, level, quiet)
	if err != nil {
		return 0, err
	}
	cfg.Log, cfg.Stdout = log, stdout
	outcome, _, err := Carry(&cfg, timeout, func(m *vmm.VM) error { return serveControl(m, &cfg, log) })
	if err != nil {
		return 0, err
	}
	if outcome.Dump != "" {
		fmt.Fprint(stderr, outcome.Dump)
	}
	if !quiet || outcome.Status != vmm.StatusOK {
		fmt.Fprintf(stderr, "gvmm: %s: %v\n", cmp.Or(cfg.Name, cfg.Image, cfg.Firmware), outcome)
	}
	return outcome.Status, nil
}

// Carry runs a VM to its end with this process's terminal, or standard input,
// for the guest's: signals end it, and so does a timeout that is not 0. ready is
// called before the first instruction. signalled says that a signal was the end.
func Carry(cfg *vmm.Config, timeout time.Duration, ready func(*vmm.VM) error) (outcome vmm.Outcome, signalled bool, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if timeout > 0 {
		time.AfterFunc(timeout, func() {
			cancel(vmm.Stopped{Status: vmm.StatusTimeout, Why: fmt.Sprintf("--timeout: the guest still ran after %v", timeout)})
		})
	}
	term := openTerminal(os.Stdin, cancel)
	defer term.restore()
	cfg.Stdin = term

	cfg.NetProgram = NetProgram()
	m, err := vmm.New(*cfg)
	if err != nil {
		return outcome, false, err
	}
	caught := stopOnSignal(cancel)
	if err := ready(m); err != nil {
		return outcome, false, errors.Join(err, m.Close())
	}
	m.Start()
	time.AfterFunc(trimAfter, trimMemory)
	if outcome, err = m.Wait(ctx); err == nil { // or else a vCPU thread hangs in a host call: leave it to the end of the process
		if err := m.CloseForExit(); err != nil {
			cfg.Log.Error("close", "err", err)
		}
	}
	return outcome, caught.Load(), nil
}

// NetProgram is the program of the user network and its first arguments: nil for
// gvmm-net, this program where it is missing and this one can stand in.
func NetProgram() []string {
	if _, err := sibling.Find(netdev.UserProgram); err == nil || netProcess == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	return []string{self, netdev.UserProgram}
}

// serveControl has the VM answer `gvmm ps` and the others. Where there is no
// place for a socket the VM runs without; a name that was asked for is kept to.
func serveControl(m *vmm.VM, cfg *vmm.Config, log *slog.Logger) error {
	dir, err := control.Dir()
	if err == nil {
		err = m.Serve(dir)
	}
	if err != nil && cfg.Name != "" {
		return fmt.Errorf("--name %s: %w", cfg.Name, err)
	}
	if err != nil {
		log.Debug("no control socket: gvmm ps does not see this VM", "err", err)
	}
	return nil
}

// stopOnSignal ends the VM on SIGINT, SIGTERM and SIGHUP. caught says that one came.
func stopOnSignal(cancel context.CancelCauseFunc) (caught *atomic.Bool) {
	caught = new(atomic.Bool)
	signal.Ignore(unix.SIGXFSZ) // a share's file at its size limit is the guest's error, not ours
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		s := <-c
		caught.Store(true)
		switch s {
		case unix.SIGINT:
			cancel(vmm.Stopped{Status: vmm.StatusInterrupted, Why: "interrupted by SIGINT"})
		default:
			cancel(vmm.Stopped{Status: vmm.StatusTerminated, Why: fmt.Sprintf("ended by signal: %v", s)})
		}
	}()
	return caught
}

// newFlags returns an empty flag set whose --help prints usage and the flags.
func newFlags(name, usage string, out io.Writer) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard) // errors are printed once, by Main
	fs.Usage = func() { fmt.Fprint(out, usage, fs.FlagUsagesWrapped(100)) }
	return fs
}

// parse parses args and has finish check them. help says that --help was
// printed and nothing is left to do.
func parse(fs *pflag.FlagSet, args []string, finish func([]string, int) error) (help bool, err error) {
	err = fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return true, nil
	}
	if err == nil {
		err = finish(fs.Args(), fs.ArgsLenAtDash())
	} else {
		err = usageError{err}
	}
	if usage := (usageError{}); errors.As(err, &usage) {
		return false, fmt.Errorf("%s: %w (`gvmm %s --help` explains)", fs.Name(), err, fs.Name())
	}
	return false, err
}

// newLog returns the logger of gvmm's own messages.
func newLog(w io.Writer, level string, quiet bool) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: give debug, info, warn or error", level)}
	}
	if quiet {
		l = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

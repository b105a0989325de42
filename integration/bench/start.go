package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func lookPath(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// flatten writes the only segment of an ELF file to out and returns its entry.
func flatten(image, out string) (uint64, error) {
	f, err := elf.Open(image)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := io.ReadFull(p.Open(), b); err != nil {
			return 0, err
		}
		return f.Entry, os.WriteFile(out, b, 0o644)
	}
	return 0, fmt.Errorf("%s: no segment", image)
}

// contender is a command whose runs are timed.
type contender struct {
	name        string
	argv        []string
	anyStatus   bool   // its exit status means nothing
	first, exit sample // exec to the first byte on standard output, and to its end
	err         error  // the first run's, which ends its race
}

// limit is how long a contender may take.
const limit = 20 * time.Second

// run runs the command once.
func (c *contender) run() (first, exit time.Duration, err error) {
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	r, w, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = r.Close() }()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	start := time.Now()
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return 0, 0, err
	}
	kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	var b [1]byte
	_, readErr := io.ReadFull(r, b[:])
	first = time.Since(start)
	_, _ = io.Copy(io.Discard, r)
	err = cmd.Wait()
	exit = time.Since(start)
	if _, ended := errors.AsType[*exec.ExitError](err); ended && c.anyStatus {
		err = nil
	}
	if err == nil && readErr != nil {
		err = errors.New("printed nothing")
	}
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		err = fmt.Errorf("%w: %s", err, line)
	}
	return first, exit, err
}

// race runs the contenders in turn, n rounds, each round beginning with another:
// what one leaves to the kernel to tidy up slows the next.
func race(n int, cs []*contender) {
	for round := range n {
		for i := range cs {
			c := cs[(round+i)%len(cs)]
			if c.err != nil {
				continue
			}
			first, exit, err := c.run()
			if c.err = err; err == nil {
				c.first, c.exit = append(c.first, first), append(c.exit, exit)
			}
		}
	}
}

// printRace prints the race; the first contender is the base.
func printRace(what string, cs []*contender, get func(*contender) sample) {
	head(what, cs[0].name)
	for i, c := range cs {
		switch base := get(cs[0]); {
		case c.err != nil:
			fmt.Printf("  %-46s does not run here: %v\n", c.name, c.err)
		case i == 0:
			row(c.name, base, nil)
		default:
			row(c.name, get(c), base)
		}
	}
}

func startUp(t *tools, n int, images []string) error {
	for _, mib := range []string{"128", "4096"} {
		cs := []*contender{
			{name: "floor (bare Go program)", argv: []string{t.floor, t.flat, fmt.Sprint(t.entry), mib}},
			{name: "gvmm, multiboot", argv: []string{t.gvmm, "run", "-q", "-M", mib, t.guest("first.multiboot")}},
			{name: "gvmm, Linux 64-bit entry", argv: []string{t.gvmm, "run", "-q", "-M", mib, t.guest("first.linux")}},
			{name: "gvmm, with a disk and a user network", argv: []string{t.gvmm, "run", "-q", "-M", mib, "-d", t.disk, "-n", "user", t.guest("first.linux")}},
		}
		cs = append(cs, others(t, mib)...)
		race(n, cs)
		if cs[0].err != nil {
			return fmt.Errorf("the floor program: %w", cs[0].err)
		}
		printRace("exec to the guest's first byte, "+mib+" MiB", cs, func(c *contender) sample { return c.first })
		printRace("exec to exit, "+mib+" MiB", cs, func(c *contender) sample { return c.exit })
	}
	cs := []*contender{{name: "demo guest, no devices", argv: []string{t.gvmm, "run", "-q", "--no-rng", t.guest("demo.multiboot")}}}
	for _, i := range images {
		cs = append(cs, &contender{name: filepath.Base(i), argv: []string{t.gvmm, "run", "-q", i}})
	}
	race(n, cs)
	printRace("gvmm, exec to exit", cs, func(c *contender) sample { return c.exit })
	return nil
}

// others are the monitors that are installed. Their guest is the same.
func others(t *tools, mib string) []*contender {
	var cs []*contender
	if t.qemu != "" {
		cs = append(cs, &contender{name: "QEMU microvm", anyStatus: true, argv: []string{t.qemu, "-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,accel=kvm",
			"-cpu", "host,-arch-capabilities", "-m", mib, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-device", "isa-debug-exit,iobase=0x604,iosize=2", "-kernel", t.guest("first.pvh")}})
	}
	if t.lkvm != "" {
		cs = append(cs, &contender{name: "kvmtool", argv: []string{t.lkvm, "run", "-m", mib, "-k", t.guest("first.multiboot")}})
	}
	return cs
}

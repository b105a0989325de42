// Init is the first and only program of the lab's machines. It is process 1
// of the emulated host, where it serves the test's agent, and of the Linux
// guests, where it does what "lab." words on the kernel command line say.
// Called with a name ("init get URL") it is the small tool of that name.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		if err := tool(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		return
	}
	steps, err := prepare()
	if name, port, _ := strings.Cut(strings.Join(steps, " "), "="); err == nil && name == "agent" {
		err = agent(port)
	} else if err == nil {
		err = guest(steps)
	}
	fmt.Println("lab: init:", err)
	end("poweroff")
}

// prepare mounts the kernel's file systems, loads the modules and returns the
// "lab." words of the command line without that prefix.
func prepare() ([]string, error) {
	for _, m := range []struct{ source, dir, kind string }{
		{"dev", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"tmp", "/tmp", "tmpfs"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m.source, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := os.MkdirAll("/dev/pts", 0o755); err == nil {
		_ = unix.Mount("pts", "/dev/pts", "devpts", 0, "")
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	var steps []string
	for _, w := range strings.Fields(string(line)) {
		if s, ok := strings.CutPrefix(w, "lab."); ok {
			steps = append(steps, s)
		}
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return nil, err
	}
	cpus, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	fmt.Printf("lab: userspace after %d.%03d s, cpus %s", up.Sec, up.Nsec/1e6, cpus)
	return steps, loadModules(strings.Fields(string(line)))
}

// loadModules loads the files that /lib/modules.list names, in that order, with
// their parameters from the kernel's command line ("module.parameter=value"). A
// module that finds no device is no error.
func loadModules(line []string) error {
	list, err := os.Open("/lib/modules.list")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = list.Close() }()
	for s := bufio.NewScanner(list); s.Scan(); {
		f, err := os.Open(filepath.Join("/lib", s.Text()))
		if err != nil {
			return err
		}
		var params []string
		name := strings.ReplaceAll(strings.TrimSuffix(s.Text(), ".ko"), "-", "_")
		for _, w := range line {
			if p, ok := strings.CutPrefix(w, name+"."); ok {
				params = append(params, p)
			}
		}
		err = unix.FinitModule(int(f.Fd()), strings.Join(params, " "), 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EOPNOTSUPP) {
			fmt.Printf("lab: load %s: %v\n", s.Text(), err)
		}
	}
	return nil
}

// end ends the machine.
func end(how string) {
	syscall.Sync()
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // a panic does not wait for what the console still holds
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	switch how {
	case "reboot":
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	case "halt":
		cmd = unix.LINUX_REBOOT_CMD_HALT
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	fmt.Println("lab: reboot:", unix.Reboot(cmd))
	select {}
}

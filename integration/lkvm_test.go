package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// lkvm is gvmm by another name, with a home of its own.
type lkvm struct {
	*bench
	program, home string
}

func newLKVM(t *testing.T) *lkvm {
	b := here(t)
	dir := t.TempDir()
	l := &lkvm{b, filepath.Join(filepath.Dir(binary), "lkvm"), filepath.Join(dir, "home")}
	if err := os.Mkdir(l.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gvmm", l.program); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return l
}

func (l *lkvm) start(t *testing.T, args ...string) *lab.VM {
	t.Helper()
	return lab.Start(t, l, append([]string{l.program}, args...), lab.WithEnv("HOME="+l.home))
}

// says runs a command to its end, and wants its status and what it prints.
func (l *lkvm) says(t *testing.T, status int, stdout, stderr string, args ...string) {
	t.Helper()
	vm := l.start(t, args...)
	l.ends(t, vm, status, stderr)
	if got := vm.Console().String(); !strings.Contains(got, stdout) {
		t.Errorf("%q: standard output %q, want %q in it", args, got, stdout)
	}
}

func TestLKVM(t *testing.T) {
	l := newLKVM(t)
	first, exits := l.guest(t, "first.linux"), l.guest(t, "exits.linux")
	t.Run("statuses", func(t *testing.T) {
		for _, c := range []struct {
			status         int
			stdout, stderr string
			args           []string
		}{
			{0, "The most commonly used", "", nil},
			{0, "The most commonly used", "", []string{"help"}},
			{22, "The most commonly used", "", []string{"--help"}},
			{129, "", "usage: lkvm run [<options>] [<kernel image>]", []string{"run", "--help"}},
			{129, "", "Error: unknown option `bogus'", []string{"run", "--bogus"}},
			{129, "", "Error: unknown switch `z'", []string{"run", "-z"}},
			{129, "", "Error: switch `c' requires a value", []string{"run", "-c"}},
			{129, "", "Cannot handle parameter: b", []string{"run", "a", "b"}},
			{128, "", "Unable to open kernel /nonexistent", []string{"run", "-k", "/nonexistent", "--nodefaults"}},
			{128, "", "Invalid memory specifier: x", []string{"run", "-m", "x"}},
			{128, "", "Only one of --kernel or --firmware", []string{"run", "-k", "a", "-f", "b"}},
			{128, "", "framebuffer", []string{"run", "--vnc", first}},
			{128, "", "only with --realm", []string{"run", "--realm-pv", "a", first}},
			{128, "", "--realm", []string{"run", "--realm", "--restricted_mem", "--nodefaults", first}},
			{128, "", "SCSI", []string{"run", "-d", "scsi:naa.1", first}},
			{128, "", "Failed locating instance", []string{"stop", "-n", "nobody"}},
			{129, "", "usage: lkvm stat", []string{"stat", "-n", "nobody"}},
			{0, "Info: # lkvm run -k " + first + " -m 64 -c 2 --name one\n!", "", []string{"run", "-c2", "-m64", "--name=one", "--nodefaults", first}},
			{0, "!", "", []string{"run", "-k", first, "--cpus", "1", "--mem=67108864B", "-n", "mode=none", "--loglevel=warning"}},
			{0, "KVM session ended normally", "guest crashed", []string{"run", "--nodefaults", exits, "-p", "how=triple", "-m", "64"}},
		} {
			l.says(t, c.status, c.stdout, c.stderr, c.args...)
		}
		vm := lab.Start(t, l, []string{l.program, "run", "--nodefaults", "-p", "how=panic", exits}, lab.WithEnv("HOME="+l.home, "GVMM_LKVM_STRICT=1"))
		l.ends(t, vm, 139, "guest crashed")
		vm = lab.Start(t, l, []string{l.gvmm, "lkvm", "run", "--nodefaults", first, "--loglevel", "error"}, lab.WithEnv("HOME="+l.home))
		l.ends(t, vm, 0, "")
		vm2 := lab.Start(t, l, []string{l.gvmm, "lkvm", "run", "--nodefaults", first, "--loglevel", "warning"}, lab.WithEnv("HOME=/proc/1"))
		l.ends(t, vm2, 0, "does not see this machine") // no place for a socket
		l.says(t, 0, "net: 02:15:15:15:15:15, offered 192.168.33.15 by 192.168.33.1", "", "run", l.guest(t, "demo.linux"), "--nodefaults", "-m", "64", "-c1", "-n", "mode=user")
		if got := vm.Console().String(); got != "!" {
			t.Errorf("an unadorned run prints %q", got)
		}
	})
	t.Run("running", func(t *testing.T) { testLKVMRunning(t, l, exits) })
	t.Run("setup", func(t *testing.T) {
		l.says(t, 0, "has been created", "", "setup", "test")
		l.says(t, 255, "", "Unable to create rootfs", "setup", "test")
		l.says(t, 0, "      test                 shut off\n", "", "list")
		if got, err := os.Readlink(filepath.Join(l.home, ".lkvm/test/bin")); err != nil || got != "/host/bin" {
			t.Error(got, err)
		}
		l.says(t, 0, "--name test\n", "", "sandbox", "-d", "test", "-k", first, "-n", "mode=none", "-m", "64", "--", "echo", "it's")
		b, err := os.ReadFile(filepath.Join(l.home, ".lkvm/test/virt/sandbox.sh"))
		if err != nil || string(b) != "#!/bin/sh\n'echo' 'it'\"'\"'s'\n" {
			t.Errorf("script %q, %v", b, err)
		}
	})
}

func testLKVMRunning(t *testing.T, l *lkvm, guest string) {
	vm := l.start(t, "run", guest, "-p", "how=echo", "--nodefaults", "-m", "64", "-c1", "--balloon", "--name", "vm1")
	l.expect(t, vm, ">")
	line := func(state string) string { return fmt.Sprintf("%5d %-20s %s\n", vm.PID(), "vm1", state) }
	l.says(t, 0, "   PID NAME                 STATE\n------------------------------------\n"+line("running"), "", "list", "--run")
	l.says(t, 128, "", "vm1", "run", guest, "--nodefaults", "-m", "64", "--name", "vm1")
	l.says(t, 0, "Guest vm1 paused\n", "", "pause", "-n", "vm1")
	l.says(t, 0, "Guest vm1 is already paused.\n", "", "pause", "-a")
	l.says(t, 0, line("paused"), "", "list")
	l.says(t, 0, "rip", "", "debug", "-d", "-n", "vm1")
	l.says(t, 0, "Guest vm1 resumed\n", "", "resume", "-n", "vm1")
	l.says(t, 0, "Guest vm1 is still running.\n", "", "resume", "-a")
	if _, err := vm.Write([]byte("typed")); err != nil {
		t.Fatal(err)
	}
	l.expect(t, vm, "typed")
	l.says(t, 0, "balloon driver reports none", "", "stat", "-m", "-n", "vm1") // this guest has no driver
	l.says(t, 0, "", "", "balloon", "-n", "vm1", "-i", "16")
	l.says(t, 0, "", "", "balloon", "-n", "vm1", "-d", "8")
	l.says(t, 0, "", "", "stop", "-n", "vm1")
	l.ends(t, vm, 0, "")

	vm = l.start(t, "run", guest, "-p", "how=echo", "--nodefaults", "-m", "64", "--name", "vm2")
	l.expect(t, vm, ">")
	if err := vm.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Wait(l.slow); err != nil {
		t.Fatal(err)
	}
	l.says(t, 0, "Removed ghost socket file", "", "list")
	if left, _ := filepath.Glob(filepath.Join(l.home, ".lkvm/*.sock")); len(left) > 0 {
		t.Error("left behind:", left)
	}
}

// TestLKVMSandbox runs a command in a machine on the host's own files: Debian's
// kernel with a 9p root file system of lkvm's, whose init is ours.
func TestLKVMSandbox(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	x86, err := lab.StartX86(ctx, 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x86.Close() })
	b := newBench(t, x86, 3*time.Minute)
	for _, f := range []struct{ from, to string }{{binary, "/bin/lkvm"}, {"/bin/sh", "/bin/sh"}} {
		from, err := os.Open(f.from)
		if err != nil {
			t.Fatal(err)
		}
		if err := x86.Copy(f.to, from); err != nil {
			t.Fatal(err)
		}
		_ = from.Close()
	}
	if err := x86.Program(ctx, "/bin/sh"); err != nil {
		t.Fatal(err)
	}
	env := lab.WithEnv("HOME=/tmp")
	b.ends(t, lab.Start(t, b, []string{"/bin/lkvm", "setup", "test"}, env), 0, "")
	guest := newLinux(ctx, t, b, lab.GenericKernel)
	vm := lab.Start(t, b, []string{"/bin/lkvm", "sandbox", "-m", "512", "-c", "2", "-i", guest.initrd, "-k", guest.kernel, "-d", "test", "-n", "mode=none",
		"-p", "quiet lab.root=/dev/root", "--", "sh", "-c", `read -r line < /proc/cmdline; echo "in the sandbox: $line"; echo by the guest > /root/written; echo no > /host/written`}, env)
	b.expect(t, vm, "--name test\n", "Mounting...", "in the sandbox: noapic noacpi pci=conf1 reboot=k panic=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 earlyprintk=serial i8042.noaux=1"+
		" console=ttyS0 rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p init=/virt/init  ip=dhcp quiet lab.root=/dev/root", "Read-only", "KVM session ended normally.")
	b.ends(t, vm, 0, "")
	if got := b.contents(t, "/tmp/.lkvm/test/root/written"); got != "by the guest\n" {
		t.Errorf("the guest wrote %q", got)
	}
}

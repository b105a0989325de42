package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// kinds are the wrappings of our guests: how they are entered, and on which
// machine.
var kinds = []string{"multiboot", "linux", "pvh"}

// TestGuests runs our own guests on this machine's KVM.
func TestGuests(t *testing.T) { testGuests(t, here(t)) }

// testGuests runs our own guests on a host.
func testGuests(t *testing.T, b *bench) {
	t.Run("first", func(t *testing.T) {
		for _, kind := range kinds {
			vm := b.run(t, b.guest(t, "first."+kind))
			b.ends(t, vm, 0, "")
			if got := vm.Console().String(); got != "!" {
				t.Errorf("%s: console %q, want just \"!\"", kind, got)
			}
		}
	})
	for _, kind := range kinds {
		t.Run("demo/"+kind, func(t *testing.T) { testDemo(t, b, kind) })
	}
	t.Run("exits", func(t *testing.T) { testExits(t, b) })
	t.Run("echo", func(t *testing.T) {
		vm := b.run(t, "-a", "how=echo", b.guest(t, "exits.linux"))
		b.expect(t, vm, ">")
		text := "all bytes: \x00\x01\x03\x1b\x7f\x80\xff\r\n"
		if _, err := vm.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		b.expect(t, vm, text)
		b.ends(t, vm, 0, "")
	})
	for _, kind := range []string{"multiboot", "linux"} {
		t.Run("simd/"+kind, func(t *testing.T) {
			params := ""
			if !b.local() {
				params = "noxsave" // QEMU before 8 does not let KVM intercept XSETBV
			}
			vm := b.run(t, "-a", params, b.guest(t, "simd."+kind))
			b.ends(t, vm, 0, "")
			b.expect(t, vm, "ring 0", "ring 3", "simd: ok")
		})
	}
	for _, kind := range []string{"multiboot", "linux"} {
		seeds := []int{1, 2, 3, 4}
		if !b.local() {
			seeds = seeds[:1] // an exit costs five times as much there
		}
		for _, seed := range seeds {
			t.Run(fmt.Sprintf("rubbish/%s/%d", kind, seed), func(t *testing.T) {
				disk := b.temp(t, "rubbish.img", strings.Repeat("\x00", 1<<20))
				vm := b.run(t, "-d", disk, "-n", "user", "-a", fmt.Sprintf("seed=%d", seed), b.guest(t, "rubbish."+kind))
				// 150 000 exits: a second, or many on a loaded machine.
				if err := vm.Console().Expect(fmt.Sprintf("rubbish: survived seed %d", seed), 2*time.Minute); err != nil {
					t.Error(err)
				}
				b.ends(t, vm, 0, "")
			})
		}
	}
}

func testDemo(t *testing.T, b *bench, kind string) {
	local := filepath.Join(t.TempDir(), "demo.img")
	if err := os.WriteFile(local, append([]byte("sector zero"), make([]byte, 1<<20-11)...), 0o644); err != nil {
		t.Fatal(err)
	}
	disk := b.file(t, local)
	// A PVH guest is meant for microvm with ACPI; ours looks for PCI instead.
	machine := map[string]string{"multiboot": "auto", "linux": "auto", "pvh": "pc"}[kind]
	vm := b.run(t, "--machine", machine, "-d", disk, "-n", "user,mac=52:54:00:0a:0b:0c", "-a", `k="a b"`, b.guest(t, "demo."+kind), "--", "one", "two")
	b.expect(t, vm, "Hello from the gvmm demo guest.", `k="a b"`, " one two\n",
		`disk: 2048 sectors, sector 0 starts "sector zero", wrote sector 1`,
		"net: 52:54:00:0a:0b:0c, offered 10.0.2.15 by 10.0.2.2", "Good night.")
	b.ends(t, vm, 0, "")
	if got := b.contents(t, disk); !strings.HasPrefix(got[512:], "written by the demo guest\n") {
		t.Errorf("sector 1 of the disk is %q", got[512:540])
	}

	vm = b.run(t, "--machine", machine, "-d", disk+",ro", b.guest(t, "demo."+kind))
	b.expect(t, vm, "sectors, read-only", "Good night.")
	b.ends(t, vm, 0, "")
}

// contents returns a file of the host.
func (b *bench) contents(t *testing.T, path string) string {
	t.Helper()
	if b.local() {
		s, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(s)
	}
	s, err := lab.Run(t.Context(), b, "/init", "cat", path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testExits holds every end of a VM to its exit status and its line.
func testExits(t *testing.T, b *bench) {
	for _, c := range []struct {
		how  string
		code int
		says string
	}{
		{"how=poweroff", 0, ""},
		{"how=reset", 0, ""},
		{"how=debug code=0", 0, "code 0"},
		{"how=debug code=3", 3, "code 3"},
		{"how=debug501 code=7", 7, "code 7"},
		{"how=panic", 139, "panic"},
		{"how=triple", 139, "triple fault"},
		{"how=complete", 0, ""},
		{"how=refused", 139, ""},
	} {
		t.Run(c.how, func(t *testing.T) {
			for _, kind := range []string{"multiboot", "linux"} {
				vm := b.run(t, "-a", c.how, b.guest(t, "exits."+kind))
				b.expect(t, vm, ">")
				b.ends(t, vm, c.code, c.says)
				if c.how == "how=complete" {
					b.expect(t, vm, "completed")
				}
			}
		})
	}
	for _, how := range []string{"how=hlt", "how=spin"} {
		t.Run("timeout "+how, func(t *testing.T) {
			vm := b.run(t, "--timeout", "300ms", "-a", how, b.guest(t, "exits.linux"))
			b.ends(t, vm, 124, "time")
		})
		for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
			t.Run(fmt.Sprint(sig, " ", how), func(t *testing.T) {
				vm := b.run(t, "-c", "2", "-a", how, b.guest(t, "exits.linux"))
				b.expect(t, vm, ">")
				if err := vm.Signal(sig); err != nil {
					t.Fatal(err)
				}
				b.ends(t, vm, code, "")
			})
		}
	}
}

// TestTerminal ends a spinning guest by Ctrl-A x, the way out of a terminal,
// and sees that every other byte, a doubled Ctrl-A too, reaches the guest.
func TestTerminal(t *testing.T) {
	b := here(t)
	vm := lab.Start(t, b, []string{b.gvmm, "run", "-a", "how=spin", b.guest(t, "exits.linux")}, lab.WithTerminal())
	b.expect(t, vm, ">")
	if _, err := vm.Write([]byte("\x01x")); err != nil {
		t.Fatal(err)
	}
	b.ends(t, vm, 130, "")

	vm = lab.Start(t, b, []string{b.gvmm, "run", "-a", "how=echo", b.guest(t, "exits.linux")}, lab.WithTerminal())
	b.expect(t, vm, ">")
	if _, err := vm.Write([]byte("raw \x03\x01\x01\x1a bytes\n")); err != nil {
		t.Fatal(err)
	}
	b.expect(t, vm, "raw \x03\x01\x1a bytes\n")
	b.ends(t, vm, 0, "")
}

// TestMemory boots the smallest and a large memory, and asks for too little.
func TestMemory(t *testing.T) {
	b := here(t)
	for _, size := range []string{"2M", "4096", "6G"} {
		for _, kind := range kinds {
			vm := b.run(t, "-M", size, "-a", "how=poweroff", b.guest(t, "exits."+kind))
			b.ends(t, vm, 0, "")
		}
	}
	for _, kind := range kinds {
		vm := b.run(t, "-M", "1M", b.guest(t, "exits."+kind))
		b.ends(t, vm, 125, "need")
	}
}

// TestRefusals: what cannot start says so in one line, with status 125.
func TestRefusals(t *testing.T) {
	b := here(t)
	image := b.guest(t, "first.linux")
	text := b.temp(t, "text", "this is no image\n")
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "IMAGE"},
		{[]string{"/nonexistent/image"}, "/nonexistent/image"},
		{[]string{text}, text},
		{[]string{"--no-such-flag", image}, "no-such-flag"},
		{[]string{"-d", "/nonexistent/disk", image}, "/nonexistent/disk"},
		{[]string{"-c", "0", image}, "cpus"},
		{[]string{"-M", "lots", image}, "memory"},
	} {
		vm := b.run(t, c.args...)
		b.ends(t, vm, 125, c.says)
		if err := vm.Stderr().String(); !strings.HasPrefix(err, "gvmm: ") {
			t.Errorf("%q: standard error %q does not start with \"gvmm: \"", c.args, err)
		}
		if out := vm.Console().String(); out != "" {
			t.Errorf("%q: standard output %q", c.args, out)
		}
	}
}

// TestStops stops guests that spin on two vCPUs, many times: no stop may be lost.
func TestStops(t *testing.T) {
	b := here(t)
	for range 20 {
		start := time.Now()
		vm := b.run(t, "-c", "2", "-a", "how=spin", b.guest(t, "exits.linux"))
		b.expect(t, vm, ">")
		if err := vm.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		b.ends(t, vm, 143, "")
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v", d)
		}
	}
}

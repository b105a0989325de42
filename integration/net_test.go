package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// The monitor stays small, and has no TCP/IP stack in it.
func TestBinary(t *testing.T) {
	const promised = 8_000_000
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > promised {
		t.Errorf("gvmm has %d bytes, promised are %d", info.Size(), promised)
	}
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-deps", "./cmd/gvmm")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil || strings.Contains(string(out), "gvisor") {
		t.Errorf("gvmm links gVisor, or: %v", err)
	}
}

// networkOf waits for a VM's gvmm-net and returns its process ID, 0 for none.
func networkOf(t *testing.T, pid int, want bool) int {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		found := 0
		files, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, _ := os.ReadFile(f)
			var id, parent int
			var name, state string
			if _, err := fmt.Sscan(string(b), &id, &name, &state, &parent); err == nil && name == "(gvmm-net)" && parent == pid {
				found = id
			}
		}
		if found != 0 == want {
			return found
		}
	}
	t.Fatalf("a gvmm-net of process %d: want %v", pid, want)
	return 0
}

// The network is a process, and neither outlives what it belongs to nor takes
// that with it.
func TestNetworkProcess(t *testing.T) {
	b := here(t)
	start := func() (*lab.VM, int) {
		vm := b.run(t, "-n", "user,hostfwd=tcp:127.0.0.1:18089-:80", "-a", "stay=1", b.guest(t, "demo.linux"))
		b.expect(t, vm, "offered 10.0.2.15 by 10.0.2.2")
		return vm, networkOf(t, vm.PID(), true)
	}
	t.Run("network killed", func(t *testing.T) {
		vm, id := start()
		if err := syscall.Kill(id, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := vm.Stderr().Expect("link is down", b.slow); err != nil {
			t.Error(err)
		}
		if err := vm.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		b.ends(t, vm, 143, "")
	})
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "ended": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			vm, id := start() // the port is free again each time
			if err := vm.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if _, err := vm.Wait(b.slow); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(5 * time.Second); syscall.Kill(id, 0) == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("gvmm-net is still there")
				}
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		vm, _ := start()
		again := b.run(t, "-n", "user,hostfwd=tcp:127.0.0.1:18089-:80", b.guest(t, "first.linux"))
		b.ends(t, again, 125, "127.0.0.1:18089")
		_ = vm.Signal(syscall.SIGTERM)
		b.ends(t, vm, 143, "")
	})
}

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

var (
	binary string // gvmm
	images string // the folder of our guests
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gvmm-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	binary = filepath.Join(dir, "gvmm")
	if err = errors.Join(lab.Build(ctx, "./cmd/gvmm", binary), lab.Build(ctx, "./cmd/gvmm-net", binary+"-net")); err == nil {
		images, err = lab.Guests(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// bench is a host with gvmm on it.
type bench struct {
	lab.Host
	gvmm string
	slow time.Duration // how long anything may take
}

func newBench(t *testing.T, h lab.Host, slow time.Duration) *bench {
	t.Helper()
	b := &bench{Host: h, slow: slow}
	b.programs(t, binary)
	return b
}

// programs puts gvmm and its user network, which is beside it, on the host.
func (b *bench) programs(t *testing.T, gvmm string) {
	t.Helper()
	b.gvmm = b.file(t, gvmm)
	b.file(t, gvmm+"-net")
}

// here is this machine. Without KVM there is nothing to test on it.
func here(t *testing.T) *bench {
	t.Helper()
	if err := lab.HaveKVM(); err != nil {
		t.Skip("NOT TESTED: this machine's KVM cannot be used: ", err)
	}
	return newBench(t, lab.Local{}, 20*time.Second)
}

// local reports whether the host is this machine.
func (b *bench) local() bool {
	_, ok := b.Host.(lab.Local)
	return ok
}

// file puts a file on the host and returns its path there.
func (b *bench) file(t *testing.T, path string) string {
	t.Helper()
	there, err := b.Put(path)
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// guest is one of our images.
func (b *bench) guest(t *testing.T, name string) string {
	t.Helper()
	return b.file(t, filepath.Join(images, name))
}

// temp makes a file with the contents on the host.
func (b *bench) temp(t *testing.T, name, contents string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(contents), 0o644); err != nil {
		t.Fatal(err)
	}
	return b.file(t, path)
}

// run starts "gvmm run" with args.
func (b *bench) run(t *testing.T, args ...string) *lab.VM {
	t.Helper()
	return lab.Start(t, b, append([]string{b.gvmm, "run"}, args...))
}

// ends waits for the end of a VM and checks its status. What gvmm says of it on
// standard error must hold the given text.
func (b *bench) ends(t *testing.T, vm *lab.VM, code int, says string) {
	t.Helper()
	s, err := vm.Wait(b.slow)
	if err != nil {
		t.Fatal(err)
	}
	if s.Signal != 0 || s.Code != code {
		t.Errorf("ended with %v, want status %d", s, code)
	}
	if !strings.Contains(vm.Stderr().String(), says) {
		t.Errorf("standard error does not say %q", says)
	}
}

// expect is Console.Expect that ends the test.
func (b *bench) expect(t *testing.T, vm *lab.VM, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if err := vm.Console().Expect(s, b.slow); err != nil {
			t.Fatal(err)
		}
	}
}

package kvm

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/vmm/memory"
)

// TestGuestMemFD gives an ordinary VM a guest_memfd, which any KVM since 6.8 has:
// that much of a confidential guest's memory works without its processor.
func TestGuestMemFD(t *testing.T) {
	sys, err := Open(Host{})
	if err != nil {
		t.Skipf("NOT TESTED: guest_memfd on this machine's KVM: %v", err)
	}
	defer func() { _ = sys.Close() }()
	if sys.Check(CapGuestMemFD) == 0 {
		t.Skip("NOT TESTED: this machine's KVM has no guest_memfd")
	}
	vm, err := sys.CreateVM(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	const size = 1 << 20
	g, err := vm.CreateGuestMemFD(size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	if _, err := unix.FcntlInt(uintptr(g.FD()), unix.F_GETFD, 0); err != nil {
		t.Errorf("descriptor %d: %v", g.FD(), err)
	}
	if err := unix.Fallocate(g.FD(), unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(g.FD(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	if before := blocks(); g.Discard(size/2, size/2) != nil || blocks() > before {
		t.Errorf("%d blocks before Discard, %d behind it", before, blocks())
	}
	if err := g.Discard(1, 4096); err == nil {
		t.Error("half a page was given back")
	}
	if _, err := vm.CreateGuestMemFD(size + 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("half a page of private memory: %v", err)
	}
	mem, err := memory.New(memory.Range{Base: 0, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	if err := vm.SetPrivateMemory(0, 0, size, mem.Regions()[0].HostAddr(), g); err != nil {
		t.Error(err)
	}
	if sys.Check(CapMemoryAttributes) != 0 {
		return
	}
	// No VM of this KVM has private memory: it says so instead of ignoring it.
	if err := vm.SetMemoryAttributes(0, size, MemoryPrivate); err == nil {
		t.Error("memory attributes of a KVM that has none")
	}
	if _, err := os.Stat("/dev/sev"); err == nil {
		return
	}
	if _, err := sys.CreateVM(4); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an SNP machine: %v", err)
	}
}

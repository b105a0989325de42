package kvm

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// absent is a host without KVM.
type absent struct{ Host }

func (absent) Open(string) (int, error) { return -1, unix.ENOENT }

// What a host without KVM needs is said in the words of its own architecture.
func TestOpenSaysHowToHaveKVM(t *testing.T) {
	_, err := Open(absent{})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.ENOENT) {
		t.Fatalf("got %v", err)
	}
	want := map[string]string{"amd64": "kvm_intel", "arm64": "EL2"}
	for arch, text := range want {
		if strings.Contains(err.Error(), text) != (arch == runtime.GOARCH) {
			t.Errorf("on %s: %v", runtime.GOARCH, err)
		}
	}
}

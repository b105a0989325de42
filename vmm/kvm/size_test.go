package kvm

import (
	"testing"
	"unsafe"
)

// The sizes of include/uapi/linux/kvm.h; the ioctl numbers carry them, so a
// wrong one would be refused by the kernel.
func TestStructSizes(t *testing.T) {
	for name, c := range map[string]struct{ got, want uintptr }{
		"kvm_ioeventfd": {unsafe.Sizeof(IOEventFD{}), 64},
		"kvm_irqfd":     {unsafe.Sizeof(IRQFD{}), 32},
		"kvm_msi":       {unsafe.Sizeof(MSI{}), 32},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, c.got, c.want)
		}
	}
}

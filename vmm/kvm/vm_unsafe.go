package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// IOEventFD has KVM signal an eventfd on a guest write (KVM_IOEVENTFD).
func (v *VM) IOEventFD(e IOEventFD) error {
	if _, err := gokvm.Ioctl(uintptr(v.fd), gokvm.IIOW(nrIOEventFD, unsafe.Sizeof(e)), uintptr(unsafe.Pointer(&e))); err != nil {
		return fmt.Errorf("KVM_IOEVENTFD at %#x: %w", e.Addr, err)
	}
	return nil
}

// IRQFD ties an eventfd to an interrupt input (KVM_IRQFD).
func (v *VM) IRQFD(f IRQFD) error {
	if _, err := gokvm.Ioctl(uintptr(v.fd), gokvm.IIOW(nrIRQFD, unsafe.Sizeof(f)), uintptr(unsafe.Pointer(&f))); err != nil {
		return fmt.Errorf("KVM_IRQFD gsi %d: %w", f.GSI, err)
	}
	return nil
}

// SignalMSI delivers a message-signalled interrupt (KVM_SIGNAL_MSI).
func (v *VM) SignalMSI(m MSI) error {
	if _, err := gokvm.Ioctl(uintptr(v.fd), gokvm.IIOW(nrSignalMSI, unsafe.Sizeof(m)), uintptr(unsafe.Pointer(&m))); err != nil {
		return fmt.Errorf("KVM_SIGNAL_MSI %#x: %w", m.AddrLo, err)
	}
	return nil
}

// run enters the guest (KVM_RUN). Unlike gokvm's it reports EINTR, which is how
// a kick from another thread arrives.
func (c *VCPU) run() unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), gokvm.IIO(nrRun), 0)
	return errno
}

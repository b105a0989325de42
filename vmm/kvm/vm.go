package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// VM is a KVM virtual machine.
type VM struct {
	fd      int
	runSize int // bytes of a vCPU's shared kvm_run area
}

// Close drops the monitor's hold of the VM; it ends with its last vCPU.
func (v *VM) Close() error { return unix.Close(v.fd) }

// Check returns the value of a capability of this VM; 0 means absent.
func (v *VM) Check(capability int) int {
	n, err := gokvm.Ioctl(uintptr(v.fd), gokvm.IIO(nrCheckExtension), uintptr(capability))
	if err != nil {
		return 0
	}
	return int(n)
}

// SetMemory backs [gpa, gpa+size) with the host memory at hostAddr
// (KVM_SET_USER_MEMORY_REGION). Once an interrupt controller exists the call
// waits for a kernel grace period, milliseconds on some hosts: memory comes first.
func (v *VM) SetMemory(slot uint32, gpa, size uint64, hostAddr uintptr) error {
	err := gokvm.SetUserMemoryRegion(uintptr(v.fd), &gokvm.UserspaceMemoryRegion{
		Slot: slot, GuestPhysAddr: gpa, MemorySize: size, UserspaceAddr: uint64(hostAddr),
	})
	if err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION slot %d, %#x+%#x: %w", slot, gpa, size, err)
	}
	return nil
}

// IOEventFD flags (KVM_IOEVENTFD_FLAG_*).
const (
	IOEventMatch    = 1 << 0
	IOEventPort     = 1 << 1
	IOEventDeassign = 1 << 2
)

// IOEventFD is struct kvm_ioeventfd.
type IOEventFD struct {
	DataMatch uint64
	Addr      uint64
	Len       uint32 // bytes of the write, 0 for any
	FD        int32
	Flags     uint32
	_         [36]byte
}

// IRQFDDeassign is KVM_IRQFD_FLAG_DEASSIGN.
const IRQFDDeassign = 1

// IRQFD is struct kvm_irqfd.
type IRQFD struct {
	FD         uint32
	GSI        uint32
	Flags      uint32
	ResampleFD uint32
	_          [16]byte
}

// MSI is struct kvm_msi.
type MSI struct {
	AddrLo, AddrHi uint32
	Data           uint32
	Flags          uint32
	DevID          uint32
	_              [12]byte
}

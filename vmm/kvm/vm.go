package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// VM is a KVM virtual machine.
type VM struct {
	file
	runSize int // bytes of a vCPU's shared kvm_run area
}

// SetMemory backs [gpa, gpa+size) with the host memory at hostAddr
// (KVM_SET_USER_MEMORY_REGION). Once an interrupt controller exists the call
// waits for a kernel grace period, milliseconds on some hosts: memory comes first.
func (v *VM) SetMemory(slot uint32, gpa, size uint64, hostAddr uintptr) error {
	name := fmt.Sprintf("KVM_SET_USER_MEMORY_REGION slot %d, %#x+%#x", slot, gpa, size)
	return write(v.file, name, nrSetMemory, &gokvm.UserspaceMemoryRegion{
		Slot: slot, GuestPhysAddr: gpa, MemorySize: size, UserspaceAddr: uint64(hostAddr),
	})
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

// IOEventFD has KVM signal an eventfd on a guest write (KVM_IOEVENTFD).
func (v *VM) IOEventFD(e IOEventFD) error {
	return write(v.file, fmt.Sprintf("KVM_IOEVENTFD at %#x", e.Addr), nrIOEventFD, &e)
}

// IRQFD ties an eventfd to an interrupt input (KVM_IRQFD).
func (v *VM) IRQFD(f IRQFD) error {
	return write(v.file, fmt.Sprintf("KVM_IRQFD gsi %d", f.GSI), nrIRQFD, &f)
}

// SignalMSI delivers a message-signalled interrupt (KVM_SIGNAL_MSI).
func (v *VM) SignalMSI(m MSI) error {
	return write(v.file, "KVM_SIGNAL_MSI", nrSignalMSI, &m)
}

// SetIRQ drives an interrupt input of the in-kernel controllers (KVM_IRQ_LINE).
// irq is a GSI on x86, the controller's encoding on arm64.
func (v *VM) SetIRQ(irq uint32, asserted bool) error {
	level := struct{ irq, level uint32 }{irq: irq}
	if asserted {
		level.level = 1
	}
	return write(v.file, fmt.Sprintf("KVM_IRQ_LINE %#x", irq), nrIRQLine, &level)
}

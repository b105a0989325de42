package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// CreateIRQChip creates both PICs, the IOAPIC and, for vCPUs to come, the local
// APICs in the kernel (KVM_CREATE_IRQCHIP).
func (v *VM) CreateIRQChip() error {
	if err := gokvm.CreateIRQChip(uintptr(v.fd)); err != nil {
		return fmt.Errorf("KVM_CREATE_IRQCHIP: %w", err)
	}
	return nil
}

// SetTSSAddr gives KVM on Intel three pages of guest address space for itself
// (KVM_SET_TSS_ADDR).
func (v *VM) SetTSSAddr(addr uint32) error {
	if err := gokvm.SetTSSAddr(uintptr(v.fd), addr); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR %#x: %w", addr, err)
	}
	return nil
}

// SetIRQ drives an interrupt input of the in-kernel controllers (KVM_IRQ_LINE_STATUS).
func (v *VM) SetIRQ(gsi uint32, asserted bool) error {
	var level uint32
	if asserted {
		level = 1
	}
	if err := gokvm.IRQLineStatus(uintptr(v.fd), gsi, level); err != nil {
		return fmt.Errorf("KVM_IRQ_LINE gsi %d: %w", gsi, err)
	}
	return nil
}

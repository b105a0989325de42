package kvm

import "fmt"

// oneReg is struct kvm_one_reg.
type oneReg struct {
	id   uint64
	addr *uint64
}

// OneReg reads a register of 64 bits by its KVM_REG_* id (KVM_GET_ONE_REG).
func (c *VCPU) OneReg(id uint64) (uint64, error) {
	value := new(uint64)
	err := write(c.file, fmt.Sprintf("KVM_GET_ONE_REG %#x", id), nrGetOneReg, &oneReg{id, value})
	return *value, err
}

// SetOneReg writes a register of 64 bits by its KVM_REG_* id (KVM_SET_ONE_REG).
func (c *VCPU) SetOneReg(id, value uint64) error {
	return write(c.file, fmt.Sprintf("KVM_SET_ONE_REG %#x = %#x", id, value), nrSetOneReg, &oneReg{id, &value})
}

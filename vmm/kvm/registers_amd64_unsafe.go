//go:build amd64

package kvm

import (
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// maxMSRs bounds the registers of one call.
const maxMSRs = 16

type msrTable struct {
	n, _    uint32
	entries [maxMSRs]MSR
}

// MSRs reads the registers that list names into it (KVM_GET_MSRS) and returns
// how many KVM gave: it stops at the first it does not have. At most 16.
func (c *VCPU) MSRs(list []MSR) (int, error) {
	t := &msrTable{}
	t.n = uint32(copy(t.entries[:], list))
	n, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOWR(nrGetMSRs, 8), uintptr(unsafe.Pointer(t)))
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_MSRS: %w", err)
	}
	return copy(list, t.entries[:min(uint32(n), t.n)]), nil
}

// SetMSRs writes the registers of list in its order (KVM_SET_MSRS) and returns
// how many KVM took: it stops at the first it refuses. At most 16.
func (c *VCPU) SetMSRs(list []MSR) (int, error) {
	t := &msrTable{}
	t.n = uint32(copy(t.entries[:], list))
	n, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetMSRs, 8), uintptr(unsafe.Pointer(t)))
	if err != nil {
		return 0, fmt.Errorf("KVM_SET_MSRS: %w", err)
	}
	return int(n), nil
}

type oneReg struct {
	id   uint64
	addr *uint64
}

const (
	nrGetOneReg     = 0xab
	nrSetOneReg     = 0xac
	nrSetGuestDebug = 0x9b
	nrSetMPState    = 0x99
)

// OneReg reads a register of 64 bits by its KVM_REG_* id (KVM_GET_ONE_REG).
func (c *VCPU) OneReg(id uint64) (uint64, error) {
	value := new(uint64)
	r := &oneReg{id, value}
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrGetOneReg, unsafe.Sizeof(*r)), uintptr(unsafe.Pointer(r))); err != nil {
		return 0, fmt.Errorf("KVM_GET_ONE_REG %#x: %w", id, err)
	}
	return *value, nil
}

// SetOneReg writes a register of 64 bits by its KVM_REG_* id (KVM_SET_ONE_REG).
func (c *VCPU) SetOneReg(id, value uint64) error {
	r := &oneReg{id, &value}
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetOneReg, unsafe.Sizeof(*r)), uintptr(unsafe.Pointer(r))); err != nil {
		return fmt.Errorf("KVM_SET_ONE_REG %#x = %#x: %w", id, value, err)
	}
	return nil
}

// Halt has the vCPU wait for its next interrupt, as HLT does (KVM_SET_MP_STATE).
func (c *VCPU) Halt() error {
	halted := uint32(3) // KVM_MP_STATE_HALTED
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetMPState, unsafe.Sizeof(halted)), uintptr(unsafe.Pointer(&halted))); err != nil {
		return fmt.Errorf("KVM_SET_MP_STATE: %w", err)
	}
	return nil
}

// SingleStep has KVM_RUN return with [ExitDebug] behind the next instruction
// (KVM_SET_GUEST_DEBUG). KVM holds the trap flag in the vCPU's RFLAGS, which a
// guest's popf clears: the call is repeated before each entry.
func (c *VCPU) SingleStep() error {
	const enable, singleStep = 1, 2 // KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP
	d := &struct {
		control, _ uint32
		registers  [8]uint64
	}{control: enable | singleStep}
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetGuestDebug, unsafe.Sizeof(*d)), uintptr(unsafe.Pointer(d))); err != nil {
		return fmt.Errorf("KVM_SET_GUEST_DEBUG: %w", err)
	}
	return nil
}

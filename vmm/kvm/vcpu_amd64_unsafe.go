//go:build amd64

package kvm

import (
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// SupportedCPUID returns the CPUID leaves that the processor and KVM support
// (KVM_GET_SUPPORTED_CPUID).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	t := &cpuidTable{n: MaxCPUID}
	if _, err := gokvm.Ioctl(uintptr(s.fd), gokvm.IIOWR(nrGetSupportedCPUID, 8), uintptr(unsafe.Pointer(t))); err != nil {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	return t.entries[:min(t.n, MaxCPUID)], nil
}

func (c *VCPU) syncArea() *SyncRegs {
	area := c.shared[offSyncRegs:]
	_ = area[unsafe.Sizeof(SyncRegs{})-1]
	return (*SyncRegs)(unsafe.Pointer(unsafe.SliceData(area)))
}

// CreatePIT creates the i8254 timer in the kernel, with the speaker's gate port
// 0x61 that guests calibrate their clocks by (KVM_CREATE_PIT2).
func (v *VM) CreatePIT() error {
	const speakerDummy = 1 // KVM_PIT_SPEAKER_DUMMY
	config := struct {
		flags uint32
		_     [15]uint32
	}{flags: speakerDummy}
	if _, err := gokvm.Ioctl(uintptr(v.fd), gokvm.IIOW(nrCreatePIT2, unsafe.Sizeof(config)), uintptr(unsafe.Pointer(&config))); err != nil {
		return fmt.Errorf("KVM_CREATE_PIT2: %w", err)
	}
	return nil
}

// SetCPUID gives the vCPU its CPUID leaves, at most [MaxCPUID] (KVM_SET_CPUID2).
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	t := &cpuidTable{}
	t.n = uint32(copy(t.entries[:], entries))
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetCPUID2, 8), uintptr(unsafe.Pointer(t))); err != nil {
		return fmt.Errorf("KVM_SET_CPUID2: %w", err)
	}
	return nil
}

// SetMSR writes one model-specific register (KVM_SET_MSRS).
func (c *VCPU) SetMSR(index uint32, value uint64) error {
	t := struct {
		n, _ uint32
		e    MSR
	}{n: 1, e: MSR{Index: index, Data: value}}
	n, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetMSRs, 8), uintptr(unsafe.Pointer(&t)))
	if err == nil && n != 1 {
		err = fmt.Errorf("not accepted")
	}
	if err != nil {
		return fmt.Errorf("KVM_SET_MSRS %#x = %#x: %w", index, value, err)
	}
	return nil
}

// XSave reads the vCPU's extended state in the standard format of XSAVE into
// area, which [VM.XSaveSize] measures (KVM_GET_XSAVE2, or KVM_GET_XSAVE for 4 KiB).
func (c *VCPU) XSave(area []byte) error {
	nr := gokvm.IIOR(nrGetXSave, legacyXSaveSize)
	if len(area) > legacyXSaveSize {
		nr = gokvm.IIOR(nrGetXSave2, legacyXSaveSize)
	}
	if _, err := gokvm.Ioctl(uintptr(c.fd), nr, uintptr(unsafe.Pointer(unsafe.SliceData(area)))); err != nil {
		return fmt.Errorf("KVM_GET_XSAVE: %w", err)
	}
	return nil
}

// SetXSave writes the vCPU's extended state (KVM_SET_XSAVE).
func (c *VCPU) SetXSave(area []byte) error {
	if _, err := gokvm.Ioctl(uintptr(c.fd), gokvm.IIOW(nrSetXSave, legacyXSaveSize), uintptr(unsafe.Pointer(unsafe.SliceData(area)))); err != nil {
		return fmt.Errorf("KVM_SET_XSAVE: %w", err)
	}
	return nil
}

const legacyXSaveSize = 4096 // sizeof(struct kvm_xsave) without its tail

// XSaveSize returns the bytes of a vCPU's extended state (KVM_CAP_XSAVE2), 4096
// on kernels that know only KVM_GET_XSAVE.
func (v *VM) XSaveSize() int { return max(v.Check(CapXSave2), legacyXSaveSize) }

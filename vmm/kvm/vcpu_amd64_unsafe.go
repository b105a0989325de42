//go:build amd64

package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// headed is the size in the request numbers of calls whose structure ends in an
// array: its head alone.
const headed = 8

// SupportedCPUID returns the CPUID leaves that the processor and KVM support
// (KVM_GET_SUPPORTED_CPUID).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	t := &cpuidTable{n: MaxCPUID}
	_, err := s.ioctl("KVM_GET_SUPPORTED_CPUID", gokvm.IIOWR(nrGetSupportedCPUID, headed), unsafe.Pointer(t))
	return t.entries[:min(t.n, MaxCPUID)], err
}

// SetCPUID gives the vCPU its CPUID leaves, at most [MaxCPUID] (KVM_SET_CPUID2).
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	t := &cpuidTable{}
	t.n = uint32(copy(t.entries[:], entries))
	_, err := c.ioctl("KVM_SET_CPUID2", gokvm.IIOW(nrSetCPUID2, headed), unsafe.Pointer(t))
	return err
}

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
	n, err := c.ioctl("KVM_GET_MSRS", gokvm.IIOWR(nrGetMSRs, headed), unsafe.Pointer(t))
	return copy(list, t.entries[:min(uint32(n), t.n)]), err
}

// SetMSRs writes the registers of list in its order (KVM_SET_MSRS) and returns
// how many KVM took: it stops at the first it refuses. At most 16.
func (c *VCPU) SetMSRs(list []MSR) (int, error) {
	t := &msrTable{}
	t.n = uint32(copy(t.entries[:], list))
	return c.ioctl("KVM_SET_MSRS", gokvm.IIOW(nrSetMSRs, headed), unsafe.Pointer(t))
}

const legacyXSaveSize = 4096 // sizeof(struct kvm_xsave) without its tail

// XSaveSize returns the bytes of a vCPU's extended state (KVM_CAP_XSAVE2), 4096
// on kernels that know only KVM_GET_XSAVE.
func (v *VM) XSaveSize() int { return max(v.Check(CapXSave2), legacyXSaveSize) }

// XSave reads the vCPU's extended state in the standard format of XSAVE into
// area, which [VM.XSaveSize] measures (KVM_GET_XSAVE2, or KVM_GET_XSAVE for 4 KiB).
func (c *VCPU) XSave(area []byte) error {
	request := gokvm.IIOR(nrGetXSave, legacyXSaveSize)
	if len(area) > legacyXSaveSize {
		request = gokvm.IIOR(nrGetXSave2, legacyXSaveSize)
	}
	_, err := c.ioctl("KVM_GET_XSAVE", request, unsafe.Pointer(unsafe.SliceData(area)))
	return err
}

// SetXSave writes the vCPU's extended state (KVM_SET_XSAVE).
func (c *VCPU) SetXSave(area []byte) error {
	_, err := c.ioctl("KVM_SET_XSAVE", gokvm.IIOW(nrSetXSave, legacyXSaveSize), unsafe.Pointer(unsafe.SliceData(area)))
	return err
}

func (c *VCPU) syncArea() *SyncRegs {
	area := c.shared[offSyncRegs:]
	_ = area[unsafe.Sizeof(SyncRegs{})-1]
	return (*SyncRegs)(unsafe.Pointer(unsafe.SliceData(area)))
}

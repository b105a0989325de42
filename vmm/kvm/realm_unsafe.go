package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// This file is what only Arm CCA realms need of KVM, none of it in a released
// kernel: Steven Price's patch series, "arm64: Support for Arm CCA in KVM".

// RealmMachine is the machine type of a realm whose IPA space has so many bits
// (KVM_VM_TYPE_ARM_REALM).
func RealmMachine(ipaBits uint8) int { return 1<<8 | int(ipaBits) }

// EnableCapAction is [file.EnableCap] of a capability whose first argument says
// what to do and whose second points to a structure, or is nil.
func EnableCapAction[T any](v *VM, capability uint32, action uint64, arg *T) error {
	c := struct {
		number, _ uint32
		action    uint64
		arg       *T
		_         [80]byte
	}{number: capability, action: action, arg: arg}
	return write(v.file, fmt.Sprintf("KVM_ENABLE_CAP %d action %d", capability, action), nrEnableCap, &c)
}

// RealmPopulate is struct kvm_arm_rmi_populate.
type RealmPopulate struct {
	Base, Size uint64 // of realm memory, whole pages
	Source     uint64 // address of as many bytes in this process
	Flags, _   uint32
}

// PopulateRealm fills private memory before the realm runs (KVM_ARM_RMI_POPULATE).
// It may do less than all, and then returns the number of bytes done; where update
// is set it returns 0 and moves p's fields forward instead.
func (v *VM) PopulateRealm(p *RealmPopulate, update bool) (int, error) {
	request := gokvm.IIOW(nrPopulateRealm, unsafe.Sizeof(*p))
	if update {
		request = gokvm.IIOWR(nrPopulateRealm, unsafe.Sizeof(*p))
	}
	for {
		n, err := v.k.Ioctl(v.fd, request, unsafe.Pointer(p))
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // a signal, before the first page was done
			return 0, fmt.Errorf("KVM_ARM_RMI_POPULATE %#x+%#x: %w", p.Base, p.Size, err)
		}
	}
}

// LimitSVE takes from a vCPU the vector lengths above so many bits, before its
// SVE is finalized (KVM_REG_ARM64_SVE_VLS: bit n stands for n+1 quadwords).
func (c *VCPU) LimitSVE(bits uint16) error {
	var lengths [8]uint64
	reg := struct {
		id   uint64
		addr *[8]uint64
	}{0x6060_0000_0015_ffff, &lengths}
	if err := write(c.file, "KVM_GET_ONE_REG SVE_VLS", nrGetOneReg, &reg); err != nil {
		return err
	}
	n := int(bits/128) - 1
	if n < 0 || n >= 16 || lengths[0]>>n&1 == 0 { // an SVE register has 2048 bits at most
		return fmt.Errorf("SVE with vectors of %d bits: this host has not that length (the lengths it has, in bits of 128: %#x)", bits, lengths[0])
	}
	lengths = [8]uint64{lengths[0] & (2<<n - 1)}
	return write(c.file, fmt.Sprintf("KVM_SET_ONE_REG SVE_VLS = %#x", lengths[0]), nrSetOneReg, &reg)
}

const nrPopulateRealm = 0xd7

package kvm

import (
	"encoding/binary"
	"fmt"
)

// howToKVM says how a host gets [Path]: KVM is no module here.
const howToKVM = "boot Linux at EL2 with KVM in it"

// Features of [VCPU.Init] (KVM_ARM_VCPU_*).
const (
	VCPUPowerOff    = 1 << 0 // waits for PSCI CPU_ON
	VCPUPSCI02      = 1 << 2
	VCPUPMUv3       = 1 << 3
	VCPUSVE         = 1 << 4
	VCPUPtrAuthAddr = 1 << 5
	VCPUPtrAuthGen  = 1 << 6

	FinalizeSVE = 4 // KVM_ARM_VCPU_SVE
)

// Register ids for [VCPU.OneReg] (KVM_REG_ARM64 | KVM_REG_SIZE_U64, struct kvm_regs).
const (
	coreReg = 0x6030_0000_0010_0000

	RegX0     = coreReg // Xn: RegX0 + 2n
	RegSP     = coreReg + 2*31
	RegPC     = coreReg + 2*32
	RegPState = coreReg + 2*33
	RegSPEL1  = coreReg + 2*34
	RegELREL1 = coreReg + 2*35
	RegSPSR   = coreReg + 2*36
)

// SysReg is the id of a system register by its encoding.
func SysReg(op0, op1, crn, crm, op2 uint64) uint64 {
	return 0x6030_0000_0013_0000 | op0<<14 | op1<<11 | crn<<7 | crm<<3 | op2
}

// Bits of [VCPU.DeviceIRQs] (KVM_ARM_DEV_EL1_*TIMER).
const (
	IRQVTimer = 1 << 0
	IRQPTimer = 1 << 1
)

// DeviceIRQs returns which timers of the vCPU assert their interrupts, on a VM
// without an interrupt controller in the kernel. A change ends [VCPU.Run].
func (c *VCPU) DeviceIRQs() uint64 {
	const offSyncRegs = 304 // in struct kvm_run: device_irq_level
	return binary.LittleEndian.Uint64(c.shared[offSyncRegs:])
}

type vcpuInit struct {
	target   uint32
	features [7]uint32
}

// PreferredTarget returns the processor that [VCPU.Init] takes on this host
// (KVM_ARM_PREFERRED_TARGET).
func (v *VM) PreferredTarget() (uint32, error) {
	var t vcpuInit
	err := read(v.file, "KVM_ARM_PREFERRED_TARGET", nrPreferredTarget, &t)
	return t.target, err
}

// Init makes a vCPU a processor with the features, and resets it (KVM_ARM_VCPU_INIT).
func (c *VCPU) Init(target, features uint32) error {
	return write(c.file, fmt.Sprintf("KVM_ARM_VCPU_INIT, features %#x", features), nrVCPUInit,
		&vcpuInit{target, [7]uint32{features}})
}

// Finalize fixes a feature that may be tuned behind Init (KVM_ARM_VCPU_FINALIZE).
func (c *VCPU) Finalize(feature int32) error {
	return write(c.file, fmt.Sprintf("KVM_ARM_VCPU_FINALIZE %d", feature), nrVCPUFinalize, &feature)
}

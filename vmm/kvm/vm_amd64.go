package kvm

// CreateIRQChip creates both PICs, the IOAPIC and, for vCPUs to come, the local
// APICs in the kernel (KVM_CREATE_IRQCHIP).
func (v *VM) CreateIRQChip() error {
	_, err := v.call("KVM_CREATE_IRQCHIP", nrCreateIRQChip, 0)
	return err
}

// SetTSSAddr gives KVM on Intel three pages of guest address space for itself
// (KVM_SET_TSS_ADDR).
func (v *VM) SetTSSAddr(addr uint32) error {
	_, err := v.call("KVM_SET_TSS_ADDR", nrSetTSSAddr, uintptr(addr))
	return err
}

// CreatePIT creates the i8254 timer in the kernel, with the speaker's gate port
// 0x61 that guests calibrate their clocks by (KVM_CREATE_PIT2).
func (v *VM) CreatePIT() error {
	const speakerDummy = 1 // KVM_PIT_SPEAKER_DUMMY
	return write(v.file, "KVM_CREATE_PIT2", nrCreatePIT2, &struct {
		flags uint32
		_     [15]uint32
	}{flags: speakerDummy})
}

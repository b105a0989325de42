package kvm

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function, Index    uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

// CPUIDSignificantIndex says that Index is part of the leaf's name
// (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const CPUIDSignificantIndex = 1

// MaxCPUID is the number of entries KVM takes (KVM_MAX_CPUID_ENTRIES).
const MaxCPUID = 256

type cpuidTable struct {
	n, _    uint32
	entries [MaxCPUID]CPUIDEntry
}

// MSR is struct kvm_msr_entry.
type MSR struct {
	Index uint32
	_     uint32
	Data  uint64
}

package cca

import "github.com/gvmm/gvmm/vmm/kvm"

// Versions 8 to 10 of the series: the calls of [abi300] with numbers near
// mainline's. KVM_ARM_VCPU_REC moved from 8 to 9 as mainline took 8.
var (
	abi8  = abi{name: "v8", capability: 240, rmm: RMM1, explicit: &actions{240}, recs: []int32{9, 8}, private: kvm.CapMemoryAttributes}
	abi9  = abi{name: "v9", capability: 243, rmm: RMM1, explicit: &actions{243}, recs: []int32{9, 8}, private: kvm.CapMemoryAttributes}
	abi10 = abi{name: "v10", capability: 244, rmm: RMM1, explicit: &actions{244}, recs: []int32{9, 8}, private: kvm.CapMemoryAttributes}
)

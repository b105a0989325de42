package cca

import "github.com/gvmm/gvmm/vmm/kvm"

// abi14 is version 14 of the series: to a monitor that leaves PSCI to the kernel
// a new capability number and nothing else.
var abi14 = abi{name: "v14", capability: 249, rmm: RMM2, private: kvm.CapMemoryAttributes, populate: populateOn}

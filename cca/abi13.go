package cca

import "github.com/gvmm/gvmm/vmm/kvm"

// abi13 is version 13 of the series, the first for RMM 2.0: populating moves the
// fields of its argument forward.
var abi13 = abi{name: "v13", capability: 248, rmm: RMM2, private: kvm.CapMemoryAttributes, populate: populateOn}

func populateOn(vm *kvm.VM, p *kvm.RealmPopulate) error {
	_, err := vm.PopulateRealm(p, true)
	return err
}

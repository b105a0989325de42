package cca

import "github.com/gvmm/gvmm/vmm/kvm"

// abi12 is version 12 of the series: KVM_ARM_RMI_POPULATE creates the realm, the
// first KVM_RUN everything else. Populating returns how much of it was done.
var abi12 = abi{name: "v12", capability: 247, rmm: RMM1, private: kvm.CapMemoryAttributes, populate: func(vm *kvm.VM, p *kvm.RealmPopulate) error {
	n, err := vm.PopulateRealm(p, false)
	if err != nil {
		return err
	}
	done := min(uint64(max(n, 0)), p.Size)
	p.Base, p.Source, p.Size = p.Base+done, p.Source+done, p.Size-done
	return nil
}}

package cca

import (
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// abi300 are versions 2 to 7 of the series, whose capability is KVM_CAP_ARM_RME
// at a number beyond all others. From version 6 on a vCPU needs its feature.
var abi300 = abi{name: "300", capability: 300, rmm: RMM1, explicit: &actions{300}, recs: []int32{8}, private: kvm.CapMemoryAttributes}

// actions are the launch by KVM_ENABLE_CAP: each call names a capability and an
// action of it (arch/arm64/include/uapi/asm/kvm.h of the series, KVM_CAP_ARM_RME_*).
type actions struct{ capability uint32 }

const (
	actionConfig   = 0
	actionCreate   = 1
	actionRIPAS    = 2
	actionPopulate = 3
	actionActivate = 4

	configRPV  = 0
	configHash = 1
)

// actionArg is the structure of any action: struct arm_rme_config, with 260
// bytes the longest, or arm_rme_init_ripas or arm_rme_populate_realm in front of
// zeros. They were cap_arm_rme_config_item and so on before version 6.
type actionArg [65]uint32

func (a *actions) act(r *Realm, action uint64, arg *actionArg) error {
	return kvm.EnableCapAction(r.VM, a.capability, action, arg)
}

// configure sets the parameters and creates the realm.
func (a *actions) configure(r *Realm) error {
	if err := a.act(r, actionConfig, &actionArg{configHash, uint32(r.cfg.Hash)}); err != nil {
		return err
	}
	if len(r.cfg.RPV) > 0 {
		arg := &actionArg{configRPV}
		for i, b := range r.cfg.RPV {
			arg[1+i/4] |= uint32(b) << (8 * (i % 4))
		}
		if err := a.act(r, actionConfig, arg); err != nil {
			return err
		}
	}
	return a.act(r, actionCreate, nil)
}

func (a *actions) ripas(r *Realm, m memory.Range) error {
	return a.act(r, actionRIPAS, rangeArg(uint64(m.Base), m.Size, 0))
}

// populate takes the contents from the shared mapping of the same addresses.
func (a *actions) populate(r *Realm, p *kvm.RealmPopulate) error {
	return a.act(r, actionPopulate, rangeArg(p.Base, p.Size, p.Flags))
}

func rangeArg(base, size uint64, flags uint32) *actionArg {
	return &actionArg{uint32(base), uint32(base >> 32), uint32(size), uint32(size >> 32), flags}
}

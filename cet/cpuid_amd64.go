package cet

import (
	"slices"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// CPUID bits (Intel SDM vol. 2A, CPUID).
const (
	leafVendor   = 0
	leafExtended = 7
	leafXSave    = 0xd

	ecxShadowStack = 1 << 7  // 7.0
	edxIBT         = 1 << 20 // 7.0
	eaxXSaves      = 1 << 3  // 0xd.1
	xssUser        = 1 << 11 // 0xd.1 ECX, IA32_XSS: U_CET, PL3_SSP
	xssSupervisor  = 1 << 12 // likewise: PL0_SSP to PL2_SSP
	xssCET         = xssUser | xssSupervisor

	vendorIntel = 0x756e6547 // EBX of leaf 0, "Genu"
)

// Offered returns what of CET a vCPU can use that is given these leaves: the
// feature bits count only with the XSAVES state behind them, as KVM has it.
func Offered(leaves []kvm.CPUIDEntry) Features {
	ext, xsave := find(leaves, leafExtended, 0), find(leaves, leafXSave, 1)
	if xsave.EAX&eaxXSaves == 0 || xsave.ECX&xssCET != xssCET {
		return Features{}
	}
	return Features{ShadowStack: ext.ECX&ecxShadowStack != 0, IBT: ext.EDX&edxIBT != 0}
}

func find(leaves []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	i := slices.IndexFunc(leaves, func(e kvm.CPUIDEntry) bool { return e.Function == function && e.Index == index })
	if i < 0 {
		return kvm.CPUIDEntry{}
	}
	return leaves[i]
}

// Edit brings a vCPU's leaves in line with the features it is to have, never
// more than supported offers: KVM takes bits that it does not have, and the
// guest's MOV to CR4 then faults. The leaves are changed in place; the returned
// slice may be shorter.
func Edit(leaves, supported []kvm.CPUIDEntry, want Features) []kvm.CPUIDEntry {
	has := Offered(supported)
	want.ShadowStack = want.ShadowStack && has.ShadowStack
	want.IBT = want.IBT && has.IBT
	for i := range leaves {
		e := &leaves[i]
		switch {
		case e.Function == leafExtended && e.Index == 0:
			e.ECX, e.EDX = e.ECX&^ecxShadowStack, e.EDX&^edxIBT
			if want.ShadowStack {
				e.ECX |= ecxShadowStack
			}
			if want.IBT {
				e.EDX |= edxIBT
			}
		case e.Function == leafXSave && e.Index == 1:
			e.ECX &^= xssCET
			if want.Any() {
				e.EAX |= eaxXSaves
				e.ECX |= xssCET
			}
		}
	}
	if want.Any() {
		return leaves
	}
	return slices.DeleteFunc(leaves, func(e kvm.CPUIDEntry) bool {
		return e.Function == leafXSave && (e.Index == 11 || e.Index == 12)
	})
}

// Needed returns what a policy and a preset cannot do without on this
// processor: only Intel's have IBT.
func Needed(p Policy, preset Preset, supported []kvm.CPUIDEntry) Features {
	all := p == Require
	intel := find(supported, leafVendor, 0).EBX == vendorIntel
	return Features{
		ShadowStack: all || preset == PresetShadowStack,
		IBT:         all && intel || preset == PresetIBT,
	}
}

// Grant decides what a vCPU gets: the features of the policy, and of those it
// needs the ones that KVM does not offer.
func Grant(p Policy, preset Preset, supported []kvm.CPUIDEntry) (given, missing Features) {
	has, need := Offered(supported), Needed(p, preset, supported)
	missing = Features{ShadowStack: need.ShadowStack && !has.ShadowStack, IBT: need.IBT && !has.IBT}
	if p == Off {
		has = Features{}
	}
	return has, missing
}

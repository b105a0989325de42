package vmm

import (
	"math/bits"
	"slices"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// CPUID leaves this file edits (Intel SDM vol. 2A, CPUID; AMD APM vol. 3,
// appendix E; Documentation/virt/kvm/x86/cpuid.rst).
const (
	leafFeatures    = 0x1
	leafCaches      = 0x4
	leafTopology    = 0xb
	leafTSC         = 0x15
	leafTopologyV2  = 0x1f
	leafHypervisor  = 0x40000000
	leafHyperTiming = 0x40000010
	leafAMDCores    = 0x80000008
	leafAMDCaches   = 0x8000001d
	leafAMDTopology = 0x8000001e

	ecxHypervisor  = 1 << 31
	ecxTSCDeadline = 1 << 24
	edxHTT         = 1 << 28
)

// apicClock is the frequency of KVM's local APIC timer, which leaf 0x15 names
// as the crystal: one tick a nanosecond.
const apicClock = 1_000_000_000

// cpuidFor returns the leaves of the vCPU with the given APIC id in a machine
// of cpus vCPUs, one package of single-threaded cores. supported is what KVM
// offers; tscKHz the counter's frequency, 0 if unknown.
func cpuidFor(supported []kvm.CPUIDEntry, id, cpus int, tscKHz uint32, tscDeadline bool) []kvm.CPUIDEntry {
	apicBits := uint32(bits.Len(uint(cpus - 1))) // of an APIC id, within the package
	out := make([]kvm.CPUIDEntry, 0, len(supported)+8)
	for _, e := range supported {
		switch e.Function {
		case 0:
			if tscKHz != 0 {
				e.EAX = max(e.EAX, leafTSC)
			}
		case leafFeatures:
			e.EBX = e.EBX&0xffff | uint32(cpus)<<16 | uint32(id)<<24
			e.ECX |= ecxHypervisor
			if tscDeadline {
				e.ECX |= ecxTSCDeadline
			}
			e.EDX &^= edxHTT
			if cpus > 1 {
				e.EDX |= edxHTT
			}
		case leafCaches:
			if level := e.EAX >> 5 & 7; e.EAX&0x1f != 0 {
				sharing := uint32(0) // APIC ids that share the cache, minus one
				if level >= 3 {
					sharing = 1<<apicBits - 1
				}
				e.EAX = e.EAX&0x3fff | sharing<<14 | (1<<apicBits-1)<<26
			}
		case leafTopology, leafTopologyV2, leafTSC, leafHypervisor, leafHyperTiming:
			continue // made below
		case leafAMDCores:
			e.ECX = e.ECX&^0xf0ff | apicBits<<12 | uint32(cpus-1)
		case leafAMDCaches:
			if level := e.EAX >> 5 & 7; e.EAX&0x1f != 0 {
				e.EAX &= 0x3fff
				if level >= 3 {
					e.EAX |= uint32(cpus-1) << 14
				}
			}
		case leafAMDTopology:
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
		}
		out = append(out, e)
	}
	out = append(out, topology(supported, leafTopology, id, cpus, apicBits)...)
	if hasLeaf(supported, leafTopologyV2) {
		out = append(out, topology(supported, leafTopologyV2, id, cpus, apicBits)...)
	}
	hyper := kvm.CPUIDEntry{Function: leafHypervisor, EAX: leafHyperTiming, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d}
	if i := slices.IndexFunc(supported, func(e kvm.CPUIDEntry) bool { return e.Function == leafHypervisor }); i >= 0 {
		hyper.EBX, hyper.ECX, hyper.EDX = supported[i].EBX, supported[i].ECX, supported[i].EDX
	}
	out = append(out, hyper)
	if tscKHz != 0 {
		out = append(out,
			kvm.CPUIDEntry{Function: leafTSC, EAX: apicClock / 1000, EBX: tscKHz, ECX: apicClock},
			kvm.CPUIDEntry{Function: leafHyperTiming, EAX: tscKHz, EBX: apicClock / 1000})
	}
	return out
}

func hasLeaf(t []kvm.CPUIDEntry, leaf uint32) bool {
	return slices.ContainsFunc(t, func(e kvm.CPUIDEntry) bool { return e.Function == leaf })
}

// topology returns the extended topology leaf: an SMT level of one thread and a
// core level of all vCPUs (Intel SDM vol. 3, 9.9.1).
func topology(supported []kvm.CPUIDEntry, leaf uint32, id, cpus int, apicBits uint32) []kvm.CPUIDEntry {
	if !hasLeaf(supported, leaf) {
		return nil
	}
	const smt, core = 1 << 8, 2 << 8
	sub := func(index, shift, n, kind uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{Function: leaf, Index: index, Flags: kvm.CPUIDSignificantIndex,
			EAX: shift, EBX: n, ECX: index | kind, EDX: uint32(id)}
	}
	return []kvm.CPUIDEntry{
		sub(0, 0, 1, smt),
		sub(1, apicBits, uint32(cpus), core),
		sub(2, 0, 0, 0),
	}
}

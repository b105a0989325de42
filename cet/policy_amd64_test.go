package cet

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// offer is what KVM says on a processor with both halves of CET.
func offer() []kvm.CPUIDEntry {
	return []kvm.CPUIDEntry{
		{Function: 0, EBX: vendorIntel},
		{Function: 7, ECX: 0x18405fce, EDX: 0xbc100510},
		{Function: 0xd, EAX: 7},
		{Function: 0xd, Index: 1, EAX: 0xf, EBX: 0x9b0, ECX: 0x1800},
		{Function: 0xd, Index: 2, EAX: 0x100},
		{Function: 0xd, Index: 11, EAX: 0x10, ECX: 1},
		{Function: 0xd, Index: 12, EAX: 0x18, ECX: 1},
	}
}

func TestEdit(t *testing.T) {
	both := Features{true, true}
	noIBT := offer()
	noIBT[1].EDX &^= edxIBT
	noXSS := offer()
	noXSS[3].ECX = 0x800
	noXSaves := offer()
	noXSaves[3].EAX = 7
	for _, c := range []struct {
		name      string
		supported []kvm.CPUIDEntry
		want, get Features
	}{
		{"all", offer(), both, both},
		{"off", offer(), Features{}, Features{}},
		{"IBT alone", offer(), Features{IBT: true}, Features{IBT: true}},
		{"AMD", noIBT, both, Features{ShadowStack: true}},
		{"one state missing", noXSS, both, Features{}},
		{"no XSAVES", noXSaves, both, Features{}},
		{"nothing", nil, both, Features{}},
	} {
		leaves := append([]kvm.CPUIDEntry{}, c.supported...)
		if len(leaves) == 0 {
			leaves = offer() // bits KVM does not have must not stay
		}
		out := Edit(leaves, c.supported, c.want)
		if e := find(out, 7, 0); e.ECX&ecxShadowStack != 0 != c.get.ShadowStack || e.EDX&edxIBT != 0 != c.get.IBT ||
			e.ECX&^ecxShadowStack != 0x18405f4e || e.EDX&^edxIBT != 0xbc000510 {
			t.Errorf("%s: leaf 7: ecx %#x edx %#x", c.name, e.ECX, e.EDX)
		}
		state := uint32(0)
		if c.get.Any() {
			state = xssCET
		}
		if e := find(out, 0xd, 1); e.ECX != state {
			t.Errorf("%s: leaf 0xd.1 ecx %#x, want %#x", c.name, e.ECX, state)
		}
		if got := find(out, 0xd, 11).EAX != 0 && find(out, 0xd, 12).EAX != 0; got != c.get.Any() || find(out, 0xd, 2).EAX != 0x100 {
			t.Errorf("%s: sub-leaves of 0xd: %+v", c.name, out)
		}
	}
}

func TestGrant(t *testing.T) {
	none := []kvm.CPUIDEntry{{Function: 0, EBX: vendorIntel}}
	amd := offer()
	amd[0].EBX, amd[1].EDX = 0x68747541, 0
	for _, c := range []struct {
		policy         Policy
		preset         Preset
		host           []kvm.CPUIDEntry
		given, missing Features
	}{
		{Auto, "", offer(), Features{true, true}, Features{}},
		{"", "", none, Features{}, Features{}},
		{Off, "", offer(), Features{}, Features{}},
		{Require, "", offer(), Features{true, true}, Features{}},
		{Require, "", none, Features{}, Features{true, true}},
		{Require, "", amd, Features{ShadowStack: true}, Features{}},
		{Auto, PresetIBT, amd, Features{ShadowStack: true}, Features{IBT: true}},
		{Auto, PresetShadowStack, none, Features{}, Features{ShadowStack: true}},
	} {
		if given, missing := Grant(c.policy, c.preset, c.host); given != c.given || missing != c.missing {
			t.Errorf("%+v: given %v, missing %v", c, given, missing)
		}
	}
	for _, c := range []struct {
		p  Policy
		s  Preset
		ok bool
	}{{"", "", true}, {Require, PresetIBT, true}, {Off, PresetIBT, false}, {"on", "", false}, {Auto, "all", false}} {
		if err := Check(c.p, c.s, AuditAll); (err == nil) != c.ok {
			t.Errorf("Check(%q, %q): %v", c.p, c.s, err)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, c := range []struct {
		name    string
		release string
		change  func(cpu map[uint32]*[4]uint32, sys fstest.MapFS)
		want    Features
		say     string // the first link
		n       int
	}{
		{"no processor", "6.18.1", func(cpu map[uint32]*[4]uint32, _ fstest.MapFS) { cpu[7][2] = 0 }, Features{ShadowStack: true}, "no shadow stacks", 1},
		{"nested", "6.18.1", func(cpu map[uint32]*[4]uint32, _ fstest.MapFS) { cpu[7][3], cpu[1][2] = 0, 1<<31 }, Features{IBT: true}, "no IBT (CPUID 7.0 EDX bit 20): have the outer hypervisor", 1},
		{"AMD", "6.18.1", func(cpu map[uint32]*[4]uint32, _ fstest.MapFS) { cpu[0][1], cpu[7][3] = 1, 0 }, Features{IBT: true}, "only Intel", 1},
		{"old kernel", "6.17.9-amd64", nil, Features{true, true}, "kernel 6.17.9-amd64", 1},
		{"odd kernel", "seven", nil, Features{true, true}, "kernel seven", 1},
		{"pvm", "6.18.0", func(_ map[uint32]*[4]uint32, sys fstest.MapFS) {
			sys["sys/module/kvm_pvm/parameters/x"] = &fstest.MapFile{}
		}, Features{true, true}, "kvm_pvm", 1},
		{"cet=0", "7.2.13", param("kvm_intel", "cet", "N\n"), Features{true, true}, "kvm_intel.cet=N", 1},
		{"unrestricted_guest=0", "7.2.13", param("kvm_intel", "unrestricted_guest", "0"), Features{true, true}, "kvm_intel.unrestricted_guest=N", 1},
		{"smaller maxphyaddr", "7.2.13", param("kvm_intel", "allow_smaller_maxphyaddr", "Y"), Features{true, true}, "allow_smaller_maxphyaddr=Y", 1},
		{"ept=0", "7.2.13", func(cpu map[uint32]*[4]uint32, sys fstest.MapFS) {
			param("kvm_intel", "ept", "N")(cpu, sys)
			param("kvm_intel", "allow_smaller_maxphyaddr", "Y")(cpu, sys)
		}, Features{true, true}, "kvm_intel.ept=N", 2},
		{"npt=0", "7.2.13", param("kvm_amd", "npt", "0"), Features{ShadowStack: true}, "kvm_amd.npt=N", 1},
		{"no state", "7.2.13", func(cpu map[uint32]*[4]uint32, _ fstest.MapFS) { cpu[0xd][2] = 0 }, Features{true, true}, "XSAVES", 1},
		{"host XSS", "7.2.13", param("kvm_intel", "cet", "Y"), Features{true, true}, "IA32_XSS", 1},
	} {
		cpu := map[uint32]*[4]uint32{0: {0, vendorIntel}, 1: {}, 7: {0, 0, ecxShadowStack, edxIBT}, 0xd: {eaxXSaves, 0, xssCET}}
		sys := fstest.MapFS{"sys/module/kvm/x": &fstest.MapFile{}}
		if c.change != nil {
			c.change(cpu, sys)
		}
		h := Host{FS: sys, Release: c.release, CPUID: func(leaf, _ uint32) (uint32, uint32, uint32, uint32) {
			v := cpu[leaf]
			return v[0], v[1], v[2], v[3]
		}}
		links := h.Missing(c.want)
		if len(links) != c.n || !strings.Contains(links[0].String(), c.say) || links[0].Remedy == "" {
			t.Errorf("%s: %v, want %d, the first saying %q", c.name, links, c.n, c.say)
		}
	}
	if a, b, _, _ := cpuid(0, 0); a == 0 || b == 0 {
		t.Error("the processor's own CPUID is empty")
	}
}

func param(module, name, value string) func(map[uint32]*[4]uint32, fstest.MapFS) {
	return func(_ map[uint32]*[4]uint32, sys fstest.MapFS) {
		sys["sys/module/"+module+"/parameters/"+name] = &fstest.MapFile{Data: []byte(value)}
	}
}

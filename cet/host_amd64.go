package cet

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is where the reasons are looked up why KVM does not offer CET.
type Host struct {
	FS      fs.FS  // of "/": sys/module is read
	Release string // of the kernel, as uname gives it
	CPUID   func(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
}

func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// ThisHost is the machine that gvmm runs on.
func ThisHost() Host {
	h := Host{FS: os.DirFS("/"), CPUID: cpuid}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

// Link is a link that is missing between a guest and CET.
type Link struct{ Why, Remedy string }

func (l Link) String() string { return l.Why + ": " + l.Remedy }

// Missing says why KVM does not offer a feature that was asked for. The first
// link that is missing comes first; there is always one.
func (h Host) Missing(want Features) []Link {
	var links []Link
	add := func(remedy, format string, args ...any) {
		links = append(links, Link{fmt.Sprintf(format, args...), remedy})
	}
	_, vendor, _, _ := h.CPUID(leafVendor, 0)
	_, _, ecx, edx := h.CPUID(leafExtended, 0)
	_, _, hypervisor, _ := h.CPUID(1, 0)
	remedy := "a processor with it (Intel Tiger Lake, Sapphire Rapids and later; AMD Zen 3 and later for the shadow stack)"
	if hypervisor>>31 != 0 {
		remedy = "have the outer hypervisor pass it through, or " + remedy
	}
	intel := vendor == vendorIntel
	switch {
	case want.ShadowStack && ecx&ecxShadowStack == 0:
		add(remedy, "the processor has no shadow stacks (CPUID 7.0 ECX bit 7)")
	case want.IBT && edx&edxIBT == 0 && !intel:
		add("use --cet auto; or an Intel processor", "only Intel processors have IBT (CPUID 7.0 EDX bit 20)")
	case want.IBT && edx&edxIBT == 0:
		add(remedy, "the processor has no IBT (CPUID 7.0 EDX bit 20)")
	}
	if h.exists("kvm_pvm") {
		add("bare metal, or nested virtualization in the outer hypervisor", "kvm_pvm, this host's KVM, does not virtualize CET")
	}
	if !AtLeast(h.Release, 6, 18) {
		add("Linux 6.18 or later", "kernel %s: KVM virtualizes CET since 6.18", h.Release)
	}
	for _, p := range []struct{ module, name, bad, remedy string }{
		{"kvm_intel", "ept", "N", "load kvm_intel with ept=1"},
		{"kvm_intel", "unrestricted_guest", "N", "load kvm_intel with unrestricted_guest=1"},
		{"kvm_intel", "allow_smaller_maxphyaddr", "Y", "load kvm_intel with allow_smaller_maxphyaddr=0"},
		{"kvm_intel", "cet", "N", "load kvm_intel with cet=1"},
		{"kvm_amd", "npt", "N", "load kvm_amd with npt=1"},
	} {
		if v := h.parameter(p.module, p.name); v == p.bad {
			add(p.remedy, "module parameter %s.%s=%s", p.module, p.name, v)
		}
	}
	if len(links) == 0 {
		_, _, xss, _ := h.CPUID(leafXSave, 1)
		if xss&xssCET != xssCET {
			add(remedy, "the processor's XSAVES does not keep CET state (CPUID 0xd.1 ECX %#x, want bits 11 and 12)", xss)
		} else {
			add("a kernel with CONFIG_X86_USER_SHADOW_STACK and without clearcpuid=; VMX with CET state in its entry and exit controls",
				"the host's IA32_XSS is without CET state, or its VMX does not load it")
		}
	}
	return links
}

func (h Host) exists(module string) bool {
	_, err := fs.Stat(h.FS, "sys/module/"+module)
	return err == nil
}

// parameter reads a boolean of a module: "Y", "N", or "" if there is none.
func (h Host) parameter(module, name string) string {
	b, err := fs.ReadFile(h.FS, "sys/module/"+module+"/parameters/"+name)
	if err != nil {
		return ""
	}
	switch strings.TrimSpace(string(b)) {
	case "0", "N", "n":
		return "N"
	}
	return "Y"
}

// AtLeast reports whether a kernel release, as uname gives it, is that version or later.
func AtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
	x, err := strconv.Atoi(a)
	y, err2 := strconv.Atoi(rest[:digits])
	return err == nil && err2 == nil && (x > major || x == major && y >= minor)
}

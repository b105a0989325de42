package vmm

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// snpHost is where the reasons are looked up why KVM launches no SNP guests.
type snpHost struct {
	cet.Host
	log func() ([]byte, error) // of the kernel
}

func thisHost() snpHost { return snpHost{cet.ThisHost(), kernelLog} }

func kernelLog() ([]byte, error) {
	const readAll = 3 // SYSLOG_ACTION_READ_ALL
	b := make([]byte, 1<<20)
	n, err := unix.Klogctl(readAll, b)
	return b[:max(0, n)], err
}

// The oldest firmware with which KVM launches SNP guests.
const firmwareMajor, firmwareMinor = 1, 51

// probeSNP says of each link between a guest and SEV-SNP whether it is there:
// processor, kernel, module option, BIOS, device, firmware. What KVM itself has for
// private memory [Probe] says for all kinds of guests.
func probeSNP(sys *kvm.System, h snpHost) []Finding {
	var found []Finding
	add := func(name, remedy, format string, args ...any) {
		found = append(found, Finding{Name: name, OK: remedy == "", Detail: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	types := sys.Check(kvm.CapVMTypes)
	if types>>kvm.VMTypeSNP&1 != 0 {
		add("sev-snp", "", "KVM can create SEV-SNP machines")
	} else {
		add("sev-snp", "the links that follow; see docs/sev-snp.md", "KVM offers the machine types %#x, without SEV-SNP (type %d)", types, kvm.VMTypeSNP)
		h.missing(add)
	}
	status, err := sys.PlatformStatus()
	e := (*kvm.SEVError)(nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		add("snp-device", "a kernel with CONFIG_CRYPTO_DEV_SP_PSP and its ccp module; enable the secure processor in the BIOS", "%v: the secure processor has no driver", err)
	case errors.Is(err, fs.ErrPermission) && !errors.As(err, &e):
		add("snp-device", "give this user read and write access to "+kvm.SEVPath+" (a udev rule, or run as root)", "%v", err)
	case err != nil:
		add("snp-firmware", "see the kernel log for ccp; update the BIOS", "%v", err)
	default:
		remedy := ""
		if status.Major < firmwareMajor || status.Major == firmwareMajor && status.Minor < firmwareMinor {
			remedy = fmt.Sprintf("update the BIOS, or put AMD's SEV firmware into /lib/firmware/amd: %d.%d or later", firmwareMajor, firmwareMinor)
		}
		add("snp-device", "", "%s works", kvm.SEVPath)
		add("snp-firmware", remedy, "version %d.%d build %d, platform state %d (0: KVM initializes it for the first guest), RMP initialized %d, %d guests, TCB %016x",
			status.Major, status.Minor, status.Build, status.State, status.RMPInit&1, status.Guests, status.TCB)
	}
	return found
}

// missing names the links below KVM that are not there.
func (h snpHost) missing(add func(name, remedy, format string, args ...any)) {
	_, b, c, d := h.CPUID(0, 0)
	le := binary.LittleEndian
	vendor := string(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, b), d), c))
	const processor = "an AMD EPYC of the third generation (Milan) or later"
	top, _, _, _ := h.CPUID(0x80000000, 0)
	var bits uint32
	if top >= leafEncryption {
		bits, _, _, _ = h.CPUID(leafEncryption, 0)
	}
	_, _, ecx, _ := h.CPUID(1, 0)
	capable := false
	switch {
	case vendor != "AuthenticAMD":
		add("snp-processor", processor, "the processor is %q, not AMD's", vendor)
	case bits>>4&1 == 0 && ecx>>31 != 0:
		add("snp-processor", "the host itself: no hypervisor passes SNP on to its guests", "this is a virtual machine, and its processor has no SEV-SNP (CPUID 0x8000001f EAX %#x, want bits 1, 3 and 4)", bits)
	case bits>>1&1 == 0 || bits>>3&1 == 0 || bits>>4&1 == 0:
		add("snp-processor", processor+"; or enable SEV-SNP in the BIOS", "the processor has no SEV-SNP (CPUID 0x8000001f EAX %#x, want bits 1, 3 and 4)", bits)
	default:
		capable = true
		add("snp-processor", "", "%s with SEV-SNP", vendor)
	}
	const kernel = "a kernel of 6.11 or later with CONFIG_KVM_AMD_SEV (Debian's for clouds are built without)"
	switch config := h.config(); {
	case !cet.AtLeast(h.Release, 6, 11):
		add("snp-kernel", kernel, "kernel %s: KVM launches SNP guests since 6.11", h.Release)
	case config != nil && !bytes.Contains(config, []byte("\nCONFIG_KVM_AMD_SEV=y")):
		add("snp-kernel", kernel, "kernel %s is built without CONFIG_KVM_AMD_SEV", h.Release)
	default:
		add("snp-kernel", "", "kernel %s", h.Release)
	}
	if _, err := fs.Stat(h.FS, "sys/module/kvm_amd"); err != nil {
		add("snp-module", "modprobe kvm_amd sev_snp=1", "the module kvm_amd is not loaded")
		return
	}
	off := ""
	for _, p := range []string{"sev", "sev_es", "sev_snp"} {
		v, err := fs.ReadFile(h.FS, "sys/module/kvm_amd/parameters/"+p)
		switch s := strings.TrimSpace(string(v)); {
		case err != nil:
			add("snp-module", kernel, "kvm_amd has no parameter %s", p)
		case s == "N" || s == "0":
			off = p
			add("snp-module", fmt.Sprintf("load kvm_amd with %s=1; if it stays off, the BIOS is the missing link", p), "kvm_amd.%s=%s", p, s)
		}
	}
	if !capable || off == "" {
		return
	}
	hint, err := h.hint()
	switch {
	case err != nil:
		hint = fmt.Sprintf("the kernel log would say why and cannot be read: %v", err)
	case hint == "":
		hint = "the kernel log says nothing of it"
	default:
		hint = "the kernel log says: " + hint
	}
	add("snp-bios", "in the BIOS: SMEE, SEV-ES ASID space limit above 1, SNP Memory (RMP Table) Coverage, SEV-SNP Support; on the kernel's command line no iommu=pt or iommu=off",
		"the processor has SNP and the kernel does not use it: %s", hint)
}

// config is how the kernel was built, nil if it does not say.
func (h snpHost) config() []byte {
	if b, err := fs.ReadFile(h.FS, "boot/config-"+h.Release); err == nil {
		return b
	}
	f, err := h.FS.Open("proc/config.gz")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(z, 4<<20))
	return b
}

// hint is what the kernel's log has said last of SNP.
func (h snpHost) hint() (last string, err error) {
	log, err := h.log()
	s := bufio.NewScanner(bytes.NewReader(log))
	for s.Scan() {
		if t := s.Text(); strings.Contains(t, "SNP") || strings.Contains(t, "RMP") || strings.Contains(t, "SEV: failed") {
			last = strings.TrimSpace(t)
		}
	}
	return last, err
}

// Package uapi compares the structures, request numbers and constants of package
// vmm/kvm with the kernel's own headers, those of the newest kernel in Debian.
package uapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// pointer stands for an address in what the C program prints.
const pointer = 0xfeedfacecafebeef

// call is a call of vmm/kvm as C writes it: the macro of its request, and its
// structure filled as the program calls fills it ("" if there is none to compare).
type call struct{ name, request, typ, init string }

// P is a pointer, L and SEG are what repeats.
const prologue = `#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#define P 0xfeedfacecafebeef
#define SEG(n) {.base = (__u64)n << 32, .limit = n << 8, .selector = n, .type = 1, .present = 2, .dpl = 3, .db = 4, .s = 5, .l = 6, .g = 7, .avl = 8, .unusable = 9}
static void show(const char *name, unsigned long request, const void *p, size_t n)
{
	printf("%s 0x%lx ", name, request);
	for (size_t i = 0; i < n; i++)
		printf("%02x", ((const unsigned char *)p)[i]);
	printf("\n");
}
static struct kvm_run run;
static void image(const char *name)
{
	printf("run:%s ", name);
	for (size_t i = 0; i < sizeof run; i++)
		printf("%02x", ((unsigned char *)&run)[i]);
	printf("\n");
	memset(&run, 0, sizeof run);
}
`

var calls = []call{
	{"KVM_GET_API_VERSION", "", "", ""}, {"KVM_CREATE_VM", "", "", ""}, {"KVM_CREATE_VCPU", "", "", ""},
	{"KVM_GET_VCPU_MMAP_SIZE", "", "", ""}, {"KVM_CHECK_EXTENSION", "", "", ""}, {"KVM_RUN", "", "", ""},
	{"KVM_SET_USER_MEMORY_REGION", "", "struct kvm_userspace_memory_region", ".slot = 1, .guest_phys_addr = 0x2000, .memory_size = 0x3000, .userspace_addr = 0x4000"},
	{"KVM_SET_USER_MEMORY_REGION2", "", "struct kvm_userspace_memory_region2", ".slot = 1, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = 0x2000, .memory_size = 0x3000, .userspace_addr = 0x4000, .guest_memfd = 9"},
	{"KVM_SET_MEMORY_ATTRIBUTES", "", "struct kvm_memory_attributes", ".address = 0x1000, .size = 0x2000, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE"},
	{"KVM_CREATE_GUEST_MEMFD", "", "struct kvm_create_guest_memfd", ".size = 0x5000"},
	{"KVM_ENABLE_CAP", "", "struct kvm_enable_cap", ".cap = 201, .args = {5, 6}"},
	{"KVM_GET_DEVICE_ATTR", "", "struct kvm_device_attr", ".group = 1, .attr = 2, .addr = P"},
	{"KVM_HAS_DEVICE_ATTR", "", "struct kvm_device_attr", ".group = 1, .attr = 2"},
	{"KVM_IOEVENTFD", "", "struct kvm_ioeventfd", ".datamatch = 1, .addr = 2, .len = 3, .fd = 4, .flags = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN"},
	{"KVM_IRQFD", "", "struct kvm_irqfd", ".fd = 1, .gsi = 2, .flags = KVM_IRQFD_FLAG_DEASSIGN, .resamplefd = 4"},
	{"KVM_SIGNAL_MSI", "", "struct kvm_msi", ".address_lo = 1, .address_hi = 2, .data = 3, .flags = 4, .devid = 5"},
	{"KVM_IRQ_LINE", "", "struct kvm_irq_level", ".irq = 0x12345678, .level = 1"},
	{"KVM_GET_ONE_REG", "", "struct kvm_one_reg", ".id = 0x1122334455667788, .addr = P"},
	{"KVM_SET_ONE_REG", "", "struct kvm_one_reg", ".id = 0x1122334455667788, .addr = P"},
}

var runs = map[string]string{
	"mmio":          ".exit_reason = KVM_EXIT_MMIO, .mmio = {.phys_addr = 0x1122334455, .data = {1, 2, 3, 4, 5, 6, 7, 8}, .len = 4, .is_write = 1}",
	"system":        ".exit_reason = KVM_EXIT_SYSTEM_EVENT, .system_event = {.type = 6, .ndata = 1, .data = {0x20100}}",
	"internal":      ".exit_reason = KVM_EXIT_INTERNAL_ERROR, .internal = {.suberror = 1, .ndata = 2, .data = {3, 4}}",
	"fail-entry":    ".exit_reason = KVM_EXIT_FAIL_ENTRY, .fail_entry = {.hardware_entry_failure_reason = 0x1234567890}",
	"memory-fault":  ".exit_reason = KVM_EXIT_MEMORY_FAULT, .memory_fault = {.flags = KVM_MEMORY_EXIT_FLAG_PRIVATE, .gpa = 0x5000, .size = 0x1000}",
	"set-immediate": ".immediate_exit = 1",
}

// want is what the accessors see in those, exit reason first.
var want = map[string]string{
	"mmio":          "0x6 [1122334455 01020304 true]",
	"system":        "0x18 [6 20100]",
	"internal":      "0x11 [1 [3 4]]",
	"fail-entry":    "0x9 [1234567890]",
	"memory-fault":  "0x27 [5000 1000 true]",
	"io":            "0x2 [3f8 2 01020304 true]",
	"hypercall":     "0x3 [c [1 2 3 4 5 6]]",
	"snp-req-certs": "0x2b [7000 2]",
	"sync":          "0x0 [1 2 3 4 5 6 7 8 9 a]",
}

type arch struct {
	name, prologue string
	tags           string
	calls          []call
	runs           map[string]string
	extra          string // more of C's main
}

var arches = []arch{{
	name: "amd64", prologue: "#include <linux/psp-sev.h>\n",
	calls: []call{
		{"KVM_GET_REGS", "", "", ""}, {"KVM_GET_SREGS", "", "", ""}, {"KVM_GET_XCRS", "", "", ""}, {"KVM_GET_LAPIC", "", "", ""},
		{"KVM_SET_REGS", "", "struct kvm_regs", ".rax = 1, .rbx = 2, .rcx = 3, .rdx = 4, .rsi = 5, .rdi = 6, .rsp = 7, .rbp = 8, .r8 = 9, .r9 = 10, .r10 = 11, .r11 = 12, .r12 = 13, .r13 = 14, .r14 = 15, .r15 = 16, .rip = 17, .rflags = 18"},
		{"KVM_SET_SREGS", "", "struct kvm_sregs", ".cs = SEG(1), .ds = SEG(2), .es = SEG(3), .fs = SEG(4), .gs = SEG(5), .ss = SEG(6), .tr = SEG(7), .ldt = SEG(8), .gdt = {9, 10}, .idt = {11, 12}, .cr0 = 13, .cr2 = 14, .cr3 = 15, .cr4 = 16, .cr8 = 17, .efer = 18, .apic_base = 19, .interrupt_bitmap = {0, 0, 0, 20}"},
		{"KVM_SET_XCRS", "", "struct kvm_xcrs", ".nr_xcrs = 1, .xcrs = {{.value = 7}}"},
		{"KVM_SET_DEBUGREGS", "", "struct kvm_debugregs", ".dr6 = 5, .dr7 = 6"},
		{"KVM_SET_LAPIC", "", "struct kvm_lapic_state", "0"},
		{"KVM_GET_TSC_KHZ", "", "", ""}, {"KVM_NMI", "", "", ""}, {"KVM_GET_SUPPORTED_CPUID", "", "struct kvm_cpuid2", ".nent = 256"},
		{"KVM_TRANSLATE", "", "struct kvm_translation", ".linear_address = 0x123456789"},
		{"KVM_SET_MP_STATE", "", "struct kvm_mp_state", "KVM_MP_STATE_HALTED"},
		{"KVM_SET_GUEST_DEBUG", "", "struct kvm_guest_debug", "KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP"},
		{"KVM_SET_CPUID2", "", "struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[2]; }", "{.nent = 2}, {{.function = 1}, {.function = 2, .index = 3, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 5, .ebx = 6, .ecx = 7, .edx = 8}}"},
		{"KVM_GET_MSRS", "", "struct { struct kvm_msrs h; struct kvm_msr_entry e[2]; }", "{.nmsrs = 2}, {{.index = 1}, {.index = 2}}"},
		{"KVM_SET_MSRS", "", "struct { struct kvm_msrs h; struct kvm_msr_entry e[2]; }", "{.nmsrs = 2}, {{.index = 1, .data = 2}, {.index = 3, .data = 4}}"},
		{"KVM_GET_XSAVE", "", "", ""}, {"KVM_GET_XSAVE2", "", "", ""}, {"KVM_SET_XSAVE", "", "struct kvm_xsave", "0"},
		{"KVM_CREATE_IRQCHIP", "", "", ""}, {"KVM_SET_TSS_ADDR", "", "", ""},
		{"KVM_CREATE_PIT2", "", "struct kvm_pit_config", ".flags = KVM_PIT_SPEAKER_DUMMY"},
		{"KVM_MEMORY_ENCRYPT_OP", "", "struct kvm_sev_cmd", ".id = KVM_SEV_INIT2, .data = P, .sev_fd = 3"},
		{"KVM_MEMORY_ENCRYPT_OP", "", "struct kvm_sev_cmd", ".id = KVM_SEV_SNP_ENABLE_REQ_CERTS, .sev_fd = 3"},
		{"KVM_MEMORY_ENCRYPT_OP", "", "struct kvm_sev_cmd", ".id = KVM_SEV_SNP_LAUNCH_START, .data = P, .sev_fd = 3"},
		{"KVM_MEMORY_ENCRYPT_OP", "", "struct kvm_sev_cmd", ".id = KVM_SEV_SNP_LAUNCH_UPDATE, .data = P, .sev_fd = 3"},
		{"KVM_MEMORY_ENCRYPT_OP", "", "struct kvm_sev_cmd", ".id = KVM_SEV_SNP_LAUNCH_FINISH, .data = P, .sev_fd = 3"},
		{"command:22", "0", "struct kvm_sev_init", ".vmsa_features = 0x21"},
		{"command:100", "0", "struct kvm_sev_snp_launch_start", ".policy = 0x30000"},
		{"command:101", "0", "struct kvm_sev_snp_launch_update", ".gfn_start = 0x12345, .uaddr = P, .len = 0x2000, .type = KVM_SEV_SNP_PAGE_TYPE_NORMAL"},
		{"command:102", "0", "struct kvm_sev_snp_launch_finish", ".id_block_uaddr = P, .id_auth_uaddr = P, .id_block_en = 1, .auth_key_en = 1, .vcek_disabled = 1, .host_data = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}"},
		{"SEV_ISSUE_CMD", "", "struct sev_issue_cmd", ".cmd = SNP_PLATFORM_STATUS, .data = P"},
	},
	runs: map[string]string{
		"io":                ".exit_reason = KVM_EXIT_IO, .io = {.direction = KVM_EXIT_IO_OUT, .size = 2, .port = 0x3f8, .count = 2, .data_offset = sizeof run - 8}",
		"hypercall":         ".exit_reason = KVM_EXIT_HYPERCALL, .hypercall = {.nr = 12, .args = {1, 2, 3, 4, 5, 6}}",
		"snp-req-certs":     ".exit_reason = KVM_EXIT_SNP_REQ_CERTS, .snp_req_certs = {.gpa = 0x7000, .npages = 2}",
		"set-hypercall":     ".hypercall = {.ret = 0x77}",
		"set-snp-req-certs": ".snp_req_certs = {.npages = 0x99, .ret = 0x88}",
		"set-dirty":         ".kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS",
		"sync": ".kvm_valid_regs = 7, .s.regs = {.regs = {.rax = 1, .rflags = 2}, .sregs = {.cs = {.base = 3}, .efer = 4, .apic_base = 5}, " +
			".events = {.exception = {.injected = 6, .nr = 7, .has_error_code = 8, .error_code = 9}, .interrupt = {.shadow = 10}}}",
	},
	extra: `	printf("sizeof:sev_user_data_snp_status 0x%lx\n", sizeof(struct sev_user_data_snp_status));
#define O(f) offsetof(struct sev_user_data_snp_status, f)
	printf("offsets:sev_user_data_snp_status [0x%lx 0x%lx 0x%lx 0x%lx 0x%lx 0x%lx 0x%lx]\n", O(api_major), O(api_minor), O(state), O(build_id), O(guest_count), O(current_tcb_version), O(reported_tcb_version));
`,
}, {
	name: "arm64", tags: "uapi_arm64",
	prologue: "#define CORE(f) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(f))\n",
	calls: []call{
		{"KVM_CREATE_DEVICE", "", "struct kvm_create_device", ".type = KVM_DEV_TYPE_ARM_VGIC_V3"},
		{"KVM_CREATE_DEVICE:test", "KVM_CREATE_DEVICE", "struct kvm_create_device", ".type = KVM_DEV_TYPE_ARM_VGIC_ITS, .flags = KVM_CREATE_DEVICE_TEST"},
		{"KVM_SET_DEVICE_ATTR", "", "struct kvm_device_attr", ".group = 1, .attr = 2, .addr = P"},
		{"KVM_ARM_PREFERRED_TARGET", "", "", ""},
		{"KVM_ARM_VCPU_INIT", "", "struct kvm_vcpu_init", "5, {1 << KVM_ARM_VCPU_PSCI_0_2 | 1 << KVM_ARM_VCPU_SVE}"},
		{"KVM_ARM_VCPU_FINALIZE", "", "int", "KVM_ARM_VCPU_SVE"},
	},
}}

func TestHeaders(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for _, a := range arches {
		t.Run(a.name, func(t *testing.T) {
			include, err := lab.KernelHeaders(ctx, a.name)
			if err != nil {
				t.Fatalf("NOT CHECKED against the kernel's headers: %v", err)
			}
			if a.runs == nil {
				a.runs = map[string]string{}
			}
			for name, init := range runs {
				a.runs[name] = init
			}
			constants := regexp.MustCompile(`(?m)^(\S*[A-Z]\S*) 0x\w+$`)
			dir := t.TempDir()
			bin := build(t, a, dir)
			var names []string // of constants, which the program alone knows
			for _, m := range constants.FindAllStringSubmatch(output(t, exec.Command(bin)), -1) {
				names = append(names, m[1])
			}
			if len(names) < 20 {
				t.Fatalf("constants: %q", names)
			}
			c := a.compile(t, dir, include, names)
			var images, expected []string
			for line := range strings.Lines(c) {
				line = strings.TrimSpace(line)
				name, image, _ := strings.Cut(strings.TrimPrefix(line, "run:"), " ")
				switch {
				case !strings.HasPrefix(line, "run:"):
					expected = append(expected, line)
				case strings.HasPrefix(name, "set-"):
					images = append(images, name+" "+strings.Repeat("00", len(image)/2))
					expected = append(expected, "exit:"+name+" "+image)
				default:
					if name == "io" { // what the guest writes lies where data_offset says
						image = image[:len(image)-16] + "0102030400000000"
					}
					images = append(images, name+" "+image)
					expected = append(expected, "exit:"+name+" "+want[name])
				}
			}
			cmd := exec.Command(bin)
			cmd.Stdin = strings.NewReader(strings.Join(images, "\n"))
			var got []string
			for line := range strings.Lines(output(t, cmd)) {
				got = append(got, strings.TrimSpace(line))
			}
			compare(t, expected, got)
		})
	}
}

// TestEveryCall makes sure that no call of vmm/kvm is left out above: each names
// itself in its errors.
func TestEveryCall(t *testing.T) {
	known := map[string]bool{"KVM_SEV_INIT2": true, "KVM_SEV_SNP_ENABLE_REQ_CERTS": true, "KVM_SEV_SNP_LAUNCH_START": true,
		"KVM_SEV_SNP_LAUNCH_UPDATE": true, "KVM_SEV_SNP_LAUNCH_FINISH": true, "SNP_PLATFORM_STATUS": true} // commands
	for _, c := range append(append(slices.Clone(calls), arches[0].calls...), arches[1].calls...) {
		known[c.name] = true
	}
	files, err := filepath.Glob("../../vmm/kvm/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	named := regexp.MustCompile(`"((?:KVM|SNP)_[A-Z0-9_]+)`)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(src, -1) {
			switch name := string(m[1]); {
			case name == "KVM_ARM_RMI_POPULATE":
				t.Logf("NOT CHECKED: %s is in no released kernel's headers", name)
			case !known[name] && !strings.HasSuffix(f, "_test.go"):
				t.Errorf("%s: %s is not compared with the headers", filepath.Base(f), name)
			}
		}
	}
}

// build builds the program of calls. For arm64 it is one of this machine's that is
// compiled from arm64's files: the layout of structures is the same.
func build(t *testing.T, a arch, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "calls")
	args := []string{"build", "-o", bin}
	if a.tags != "" {
		root, err := filepath.Abs("../../vmm/kvm")
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(root, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		replace := map[string]string{}
		for _, f := range files {
			switch base := filepath.Base(f); {
			case strings.HasSuffix(base, "_test.go"):
			case strings.Contains(base, "_amd64"):
				replace[f] = ""
			case strings.Contains(base, "_arm64"):
				src, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				as := filepath.Join(dir, strings.Replace(base, "_arm64", "_the_other", 1))
				if err := os.WriteFile(as, bytes.ReplaceAll(src, []byte("//go:build arm64\n"), nil), 0o644); err != nil {
					t.Fatal(err)
				}
				replace[filepath.Join(root, filepath.Base(as))] = as
			}
		}
		overlay, err := json.Marshal(map[string]any{"Replace": replace})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "overlay.json")
		if err := os.WriteFile(file, overlay, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-tags", a.tags, "-overlay", file)
	}
	cmd := exec.Command("go", append(args, "./calls")...)
	cmd.Env = append(os.Environ(), "GOARCH=amd64", "CGO_ENABLED=0")
	output(t, cmd)
	return bin
}

// compile compiles the C program against the headers and returns what it prints.
func (a arch) compile(t *testing.T, dir string, include, constants []string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(prologue + a.prologue + "int main(void)\n{\n")
	for _, c := range append(slices.Clone(calls), a.calls...) {
		request, _, _ := strings.Cut(c.name, ":")
		if c.request != "" {
			request = c.request
		}
		if c.typ == "" {
			fmt.Fprintf(&b, "\tshow(%q, %s, 0, 0);\n", c.name, request)
		} else {
			fmt.Fprintf(&b, "\t{ static %s v = {%s}; show(%q, %s, &v, sizeof v); }\n", c.typ, c.init, c.name, request)
		}
	}
	for name, init := range a.runs {
		fmt.Fprintf(&b, "\t{ static struct kvm_run v = {%s}; run = v; image(%q); }\n", init, name)
	}
	for _, name := range constants {
		fmt.Fprintf(&b, "\tprintf(\"%s 0x%%llx\\n\", (unsigned long long)(%s));\n", name, name)
	}
	b.WriteString(a.extra + "\treturn 0;\n}\n")
	src, bin := filepath.Join(dir, "headers.c"), filepath.Join(dir, "headers")
	if err := os.WriteFile(src, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-std=gnu11", "-w", "-o", bin, src}
	for _, dir := range include {
		args = append(args, "-isystem", dir)
	}
	output(t, exec.Command("gcc", args...))
	return output(t, exec.Command(bin))
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		t.Fatalf("%s: %v: %s", filepath.Base(cmd.Path), err, e.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// compare compares line by line: what the headers say is all there and nothing else
// is. Where C has [pointer] there is some address.
func compare(t *testing.T, expected, got []string) {
	t.Helper()
	slices.Sort(expected)
	slices.Sort(got)
	any := fmt.Sprintf("%016x", reverse(pointer))
	matches := func(want, have string) bool {
		for i := strings.Index(want, any); i >= 0 && i+16 <= len(have); i = strings.Index(want, any) {
			if have[i:i+16] == strings.Repeat("0", 16) {
				return false
			}
			want = want[:i] + have[i:i+16] + want[i+16:]
		}
		return want == have
	}
	for _, w := range expected {
		i := slices.IndexFunc(got, func(g string) bool { return matches(w, g) })
		if i < 0 {
			t.Errorf("the headers say, and vmm/kvm does not:\n%s", w)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	for _, g := range got {
		t.Errorf("vmm/kvm says, and the headers do not:\n%s", g)
	}
}

func reverse(v uint64) (r uint64) {
	for range 8 {
		r, v = r<<8|v&0xff, v>>8
	}
	return r
}

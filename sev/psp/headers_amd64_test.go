package psp

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// headersEnv names the folders of a kernel's headers for user space.
const headersEnv = "GVMM_KERNEL_HEADERS"

// The numbers and places that this package knows are those of the kernel's own
// headers: a C program says what these are.
func TestHeaders(t *testing.T) {
	include := filepath.SplitList(os.Getenv(headersEnv))
	if len(include) == 0 {
		t.Skipf("NOT TESTED: the kernel's headers: %s does not name them; integration/uapi runs this test with those of the newest kernel", headersEnv)
	}
	type fact struct {
		c    string // an expression
		want uint64
	}
	offset := func(of, member string, want uint64) fact {
		return fact{"offsetof(struct " + of + ", " + member + ")", want}
	}
	size := func(of string, want uint64) fact { return fact{"sizeof(struct " + of + ")", want} }
	var facts []fact
	for name, v := range map[string]uint64{
		"GET_API_VERSION": reqGetAPIVersion, "CREATE_VM": reqCreateVM, "CHECK_EXTENSION": reqCheckExtension, "GET_VCPU_MMAP_SIZE": reqGetVCPUMmapSize,
		"GET_SUPPORTED_CPUID": reqGetSupportedCPUID, "GET_DEVICE_ATTR": reqGetDeviceAttr, "HAS_DEVICE_ATTR": reqHasDeviceAttr,
		"CREATE_VCPU": reqCreateVCPU, "SET_USER_MEMORY_REGION": reqSetMemory, "SET_USER_MEMORY_REGION2": reqSetMemory2, "SET_TSS_ADDR": reqSetTSSAddr,
		"SET_IDENTITY_MAP_ADDR": reqSetIdentityMap, "CREATE_IRQCHIP": reqCreateIRQChip, "IRQ_LINE": reqIRQLine, "SET_GSI_ROUTING": reqGSIRouting,
		"IRQFD": reqIRQFD, "CREATE_PIT2": reqCreatePIT2, "IOEVENTFD": reqIOEventFD, "ENABLE_CAP": reqEnableCap, "SIGNAL_MSI": reqSignalMSI,
		"MEMORY_ENCRYPT_OP": reqMemoryEncryptOp, "SET_MEMORY_ATTRIBUTES": reqSetMemoryAttrs, "CREATE_GUEST_MEMFD": reqCreateGuestMemFD, "RUN": reqRun,
		"GET_REGS": reqGetRegs, "SET_REGS": reqSetRegs, "GET_SREGS": reqGetSregs, "SET_SREGS": reqSetSregs, "GET_SREGS2": reqGetSregs2, "SET_SREGS2": reqSetSregs2,
		"GET_MSRS": reqGetMSRs, "SET_MSRS": reqSetMSRs, "GET_FPU": reqGetFPU, "SET_FPU": reqSetFPU, "GET_LAPIC": reqGetLAPIC, "SET_LAPIC": reqSetLAPIC,
		"SET_CPUID2": reqSetCPUID2, "GET_MP_STATE": reqGetMPState, "SET_MP_STATE": reqSetMPState, "SET_GUEST_DEBUG": reqSetGuestDebug,
		"GET_VCPU_EVENTS": reqGetVCPUEvents, "SET_VCPU_EVENTS": reqSetVCPUEvents, "GET_DEBUGREGS": reqGetDebugRegs, "SET_DEBUGREGS": reqSetDebugRegs,
		"GET_TSC_KHZ": reqGetTSCKHz, "GET_XSAVE": reqGetXSave, "SET_XSAVE": reqSetXSave, "GET_XSAVE2": reqGetXSave2, "GET_XCRS": reqGetXCRS, "SET_XCRS": reqSetXCRS,
		"X86_SNP_VM": typeSNP, "CAP_EXIT_HYPERCALL": capExitHypercall, "HC_MAP_GPA_RANGE": hcMapGPARange, "MEMORY_ATTRIBUTE_PRIVATE": attrPrivate,
		"MEM_GUEST_MEMFD": 1 << 2, "MAP_GPA_RANGE_ENCRYPTED": 1 << 4, "SYSTEM_EVENT_SEV_TERM": eventSEVTerm,
		"SEV_INIT2": cmdInit2, "SEV_SNP_LAUNCH_START": cmdLaunchStart, "SEV_SNP_LAUNCH_UPDATE": cmdLaunchUpdate, "SEV_SNP_LAUNCH_FINISH": cmdLaunchFinish,
		"SEV_SNP_PAGE_TYPE_NORMAL": pageNormal, "SEV_SNP_PAGE_TYPE_ZERO": pageZero, "SEV_SNP_PAGE_TYPE_UNMEASURED": pageUnmeasured,
		"SEV_SNP_PAGE_TYPE_SECRETS": pageSecrets, "SEV_SNP_PAGE_TYPE_CPUID": pageCPUID, "X86_SEV_VMSA_FEATURES": 0, "X86_SNP_POLICY_BITS": 1, "X86_SEV_SNP_REQ_CERTS": 2, "SEV_SNP_ENABLE_REQ_CERTS": cmdEnableReqCerts, "EXIT_SNP_REQ_CERTS": exitSNPReqCerts,
		"EXIT_IO": exitIO, "EXIT_HYPERCALL": exitHypercall, "EXIT_MMIO": exitMMIO, "EXIT_SHUTDOWN": exitShutdown, "EXIT_SYSTEM_EVENT": exitSystemEvent,
		"EXIT_MEMORY_FAULT": exitMemoryFault, "CAP_GUEST_MEMFD": 234, "CAP_MEMORY_ATTRIBUTES": 233, "CAP_VM_TYPES": 235, "CAP_SYNC_REGS": 74, "CAP_XSAVE2": 208,
	} {
		facts = append(facts, fact{"KVM_" + name, v})
	}
	facts = append(facts,
		fact{"SEV_ISSUE_CMD", reqSEVIssueCmd}, fact{"SNP_PLATFORM_STATUS", sevSNPPlatformStatus},
		fact{"SEV_RET_POLICY_FAILURE", fwPolicyFailure}, fact{"SEV_RET_BAD_SIGNATURE", fwBadSignature}, fact{"SEV_RET_BAD_MEASUREMENT", fwBadMeasurement},
		fact{"SEV_RET_INVALID_PARAM", fwInvalidParam}, fact{"SEV_RET_BAD_VERSION", fwBadVersion}, fact{"SEV_RET_INVALID_KEY", fwInvalidKey},
		size("kvm_sev_cmd", 24), offset("kvm_sev_cmd", "data", 8), offset("kvm_sev_cmd", "error", 16), offset("kvm_sev_cmd", "sev_fd", 20),
		size("kvm_sev_init", 48), offset("kvm_sev_init", "flags", 8), offset("kvm_sev_init", "ghcb_version", 12),
		size("kvm_sev_snp_launch_start", 64), offset("kvm_sev_snp_launch_start", "flags", 24),
		size("kvm_sev_snp_launch_update", 64), offset("kvm_sev_snp_launch_update", "uaddr", 8), offset("kvm_sev_snp_launch_update", "len", 16),
		offset("kvm_sev_snp_launch_update", "type", 24), offset("kvm_sev_snp_launch_update", "flags", 26),
		size("kvm_sev_snp_launch_finish", 88), offset("kvm_sev_snp_launch_finish", "id_auth_uaddr", 8), offset("kvm_sev_snp_launch_finish", "id_block_en", 16),
		offset("kvm_sev_snp_launch_finish", "auth_key_en", 17), offset("kvm_sev_snp_launch_finish", "vcek_disabled", 18),
		offset("kvm_sev_snp_launch_finish", "host_data", 19), offset("kvm_sev_snp_launch_finish", "flags", 54),
		offset("kvm_userspace_memory_region2", "guest_memfd_offset", 32), offset("kvm_userspace_memory_region2", "guest_memfd", 40),
		offset("kvm_memory_attributes", "attributes", 16), offset("kvm_memory_attributes", "flags", 24), offset("kvm_create_guest_memfd", "flags", 8),
		offset("kvm_enable_cap", "args", 8), offset("kvm_device_attr", "attr", 8), offset("kvm_device_attr", "addr", 16),
		offset("kvm_regs", "rip", 8*regRIP), offset("kvm_regs", "rflags", 8*regRFLAGS), offset("kvm_regs", "rdx", 8*regRDX), size("kvm_segment", 24),
		offset("kvm_sregs", "tr", 144), offset("kvm_sregs", "gdt", 192), offset("kvm_sregs", "cr0", 224), offset("kvm_sregs", "efer", 264), offset("kvm_sregs", "apic_base", 272),
		offset("kvm_segment", "type", 14), offset("kvm_segment", "dpl", 16), offset("kvm_segment", "db", 17), offset("kvm_segment", "s", 18),
		offset("kvm_segment", "l", 19), offset("kvm_segment", "g", 20), offset("kvm_segment", "avl", 21), offset("kvm_segment", "unusable", 22),
		offset("kvm_xcrs", "xcrs[0].value", 16), offset("kvm_debugregs", "dr6", 32), offset("kvm_debugregs", "flags", 48), offset("kvm_cpuid_entry2", "eax", 12),
		offset("kvm_fpu", "fcw", 128), offset("kvm_fpu", "last_opcode", 134), offset("kvm_fpu", "last_dp", 144), offset("kvm_fpu", "mxcsr", 408),
		offset("kvm_run", "immediate_exit", 1), offset("kvm_run", "exit_reason", runExitReason), offset("kvm_run", "io.port", runUnion+2), offset("kvm_run", "io.data_offset", runUnion+8),
		offset("kvm_run", "hypercall.args", runUnion+8), offset("kvm_run", "hypercall.ret", runUnion+56), offset("kvm_run", "memory_fault.gpa", runUnion+8),
		offset("kvm_run", "mmio.len", runUnion+16), offset("kvm_run", "mmio.is_write", runUnion+20), offset("kvm_run", "system_event.ndata", runUnion+4),
		offset("kvm_run", "system_event.data", runUnion+8), offset("kvm_run", "snp_req_certs.npages", runUnion+8), offset("kvm_run", "snp_req_certs.ret", runUnion+16), offset("kvm_run", "kvm_valid_regs", 288), offset("kvm_run", "kvm_dirty_regs", 296),
		offset("sev_user_data_snp_status", "current_tcb_version", 16), offset("sev_issue_cmd", "data", 4), offset("sev_issue_cmd", "error", 12),
	)
	var program strings.Builder
	program.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n#include <linux/kvm_para.h>\n#include <linux/psp-sev.h>\nint main(void) {\n")
	for i, f := range facts {
		fmt.Fprintf(&program, "printf(\"%d %%llu\\n\", (unsigned long long)(%s));\n", i, f.c)
	}
	program.WriteString("return 0; }\n")
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "facts.c"), filepath.Join(dir, "facts")
	if err := os.WriteFile(src, []byte(program.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-o", bin, src}
	for _, dir := range include {
		args = append(args, "-I", dir)
	}
	if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(facts) {
		t.Fatalf("%d lines for %d facts", len(lines), len(facts))
	}
	for i, f := range facts {
		if _, got, _ := strings.Cut(lines[i], " "); got != fmt.Sprint(f.want) {
			t.Errorf("%s is %s, not %d", f.c, got, f.want)
		}
	}
}

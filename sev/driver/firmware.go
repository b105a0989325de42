// Package driver launches SEV-SNP guests: it gives KVM and the secure processor,
// in the order that Linux wants (Documentation/virt/kvm/x86/amd-memory-encryption.rst),
// exactly the ranges from which package sev predicts the digest, and explains
// what they refuse.
package driver

import "fmt"

// firmwareErrors are the secure processor's status codes that a launch can meet
// (AMD 56860, table "Status Codes"; Linux psp-sev.h), with the likely cause.
var firmwareErrors = map[uint32]struct{ name, cause string }{
	0x01: {"INVALID_PLATFORM_STATE", "SNP is not initialized: see the kernel log for SNP_INIT"},
	0x02: {"INVALID_GUEST_STATE", "a command out of order: the launch has ended or not begun"},
	0x03: {"INVALID_CONFIG", "the platform's configuration does not allow it: see the firmware's SNP settings"},
	0x04: {"INVALID_LENGTH", "a structure of another size: firmware and kernel do not fit together"},
	0x07: {"POLICY_FAILURE", "the guest policy is not met: it forbids SMT on a host with SMT, asks for a newer firmware, a single socket or a feature that is off, or is not the ID block's"},
	0x08: {"INACTIVE", "the guest has no ASID"},
	0x09: {"INVALID_ADDRESS", "a page that the secure processor cannot reach"},
	0x0a: {"BAD_SIGNATURE", "the ID block or its key is not signed by the key in the ID authentication page, or block and page were exchanged"},
	0x0b: {"BAD_MEASUREMENT", "the launch is not the one that the ID block is for"},
	0x0c: {"ASID_OWNED", "another guest has the ASID"},
	0x0d: {"INVALID_ASID", "the ASID is not one for SNP guests: raise the number of SEV-ES ASIDs in the BIOS"},
	0x0f: {"DF_FLUSH_REQUIRED", "ASIDs are to be flushed first: try again"},
	0x10: {"INVALID_GUEST", "the guest context is not valid"},
	0x11: {"INVALID_COMMAND", "the firmware does not know the command: update it"},
	0x12: {"ACTIVE", "the guest is active already"},
	0x13: {"HWERROR_PLATFORM", "a hardware error: reset the machine"},
	0x14: {"HWERROR_UNSAFE", "a hardware error that is not safe: reset the machine"},
	0x15: {"UNSUPPORTED", "the firmware has no such feature: update it"},
	0x16: {"INVALID_PARAM", "a parameter, or a CPUID table that claims what the processor does not have"},
	0x17: {"RESOURCE_LIMIT", "no resources left: too many guests"},
	0x18: {"SECURE_DATA_INVALID", "the firmware's own data is damaged"},
	0x19: {"INVALID_PAGE_SIZE", "a page of another size in the RMP than in the command"},
	0x1a: {"INVALID_PAGE_STATE", "a page that is not the guest's in the RMP: it was launched twice or is in use"},
	0x1b: {"INVALID_MDATA_ENTRY", "page metadata that is not valid"},
	0x1c: {"INVALID_PAGE_OWNER", "a page of another guest"},
	0x1d: {"AEAD_OFLOW", "the guest has used up its nonces"},
	0x20: {"RMP_INIT_REQUIRED", "the RMP is not initialized: enable SNP in the BIOS and load kvm_amd anew"},
	0x21: {"BAD_SVN", "a security version lower than the committed one"},
	0x22: {"BAD_VERSION", "a version that the firmware does not take"},
	0x23: {"SHUTDOWN_REQUIRED", "SNP_SHUTDOWN is needed: unload kvm_amd and ccp and load them anew"},
	0x24: {"UPDATE_FAILED", "the firmware's update failed"},
	0x25: {"RESTORE_REQUIRED", "the firmware was updated and is to be restored"},
	0x26: {"RMP_INIT_FAILED", "the RMP could not be initialized: the BIOS must reserve memory for all of it"},
	0x27: {"INVALID_KEY", "the key is not there: load a VLEK, or do without vcek-disabled"},
}

// firmwareError names a status code and its likely cause.
func firmwareError(code uint32) string {
	e, ok := firmwareErrors[code]
	if !ok {
		return fmt.Sprintf("firmware error %#x", code)
	}
	return fmt.Sprintf("firmware error %#x, %s: %s", code, e.name, e.cause)
}

// TerminationReason says why a guest asked for its own end (GHCB 2.03, 2.3.1,
// "Termination Request"), from the value of its GHCB MSR. Set 1 is Linux's
// (arch/x86/include/asm/sev-common.h).
func TerminationReason(msr uint64) string {
	sets := [...][]string{
		{"general termination", "the host does not speak a GHCB protocol version it knows", "the host lacks an SNP feature it needs"},
		{
			"it could not register its GHCB", "a page state change failed", "PVALIDATE failed: memory is not as the launch promised",
			"it does not run at VMPL 0", "a CPUID function is missing in its table or is not valid", "the host answered CPUID wrongly",
			"its secrets page is missing or not valid", "no SVSM answers", "an SVSM runs at VMPL 0", "the SVSM calling area is not valid",
			"secure TSC could not be set up", "the SVSM calling area could not be moved", "secure AVIC could not be set up",
		},
	}
	const terminate = 0x100
	set, code := msr>>12&0xf, msr>>16&0xff
	if msr&0xfff != terminate {
		return fmt.Sprintf("GHCB MSR %#x, which is no termination request", msr)
	}
	if set < uint64(len(sets)) && code < uint64(len(sets[set])) {
		return fmt.Sprintf("%s (reason set %d, code %d)", sets[set][code], set, code)
	}
	return fmt.Sprintf("reason set %d, code %d", set, code)
}

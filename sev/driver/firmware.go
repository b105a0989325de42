// Package driver launches SEV-SNP guests: it gives KVM and the secure processor,
// in the order that Linux wants (Documentation/virt/kvm/x86/amd-memory-encryption.rst),
// exactly the ranges from which package sev predicts the digest, and explains
// what they refuse.
package driver

import (
	"cmp"
	"fmt"
	"strings"
)

// firmwareErrors are the secure processor's status codes from 1 on (AMD 56860,
// "Status Codes"; Linux psp-sev.h).
const firmwareErrors = `INVALID_PLATFORM_STATE INVALID_GUEST_STATE INVALID_CONFIG INVALID_LENGTH ALREADY_OWNED
	INVALID_CERTIFICATE POLICY_FAILURE INACTIVE INVALID_ADDRESS BAD_SIGNATURE BAD_MEASUREMENT ASID_OWNED INVALID_ASID WBINVD_REQUIRED
	DF_FLUSH_REQUIRED INVALID_GUEST INVALID_COMMAND ACTIVE HWERROR_PLATFORM HWERROR_UNSAFE UNSUPPORTED INVALID_PARAM RESOURCE_LIMIT
	SECURE_DATA_INVALID INVALID_PAGE_SIZE INVALID_PAGE_STATE INVALID_MDATA_ENTRY INVALID_PAGE_OWNER AEAD_OFLOW (0x1e) RING_BUFFER_EXIT
	RMP_INIT_REQUIRED BAD_SVN BAD_VERSION SHUTDOWN_REQUIRED UPDATE_FAILED RESTORE_REQUIRED RMP_INIT_FAILED INVALID_KEY`

// causes are the likely ones of those that a launch meets.
var causes = [...]string{
	0x01: "SNP is not initialized: see the kernel log for SNP_INIT",
	0x02: "a command out of order",
	0x03: "the platform is not configured for it",
	0x04: "kernel and firmware do not fit together: update one",
	0x07: "the guest policy is not met: it forbids SMT on a host with SMT, asks for a newer firmware, a single socket or a feature that is off, or is not the ID block's",
	0x0a: "the ID block or its key is not signed by the key in the ID authentication page: make both anew",
	0x0b: "the launch is not the one that the ID block is for",
	0x0d: "the ASID is not one for SNP guests: raise the number of SEV-ES ASIDs in the BIOS",
	0x11: "the firmware does not know the command: update it",
	0x13: "a hardware error: reset the machine",
	0x14: "a hardware error that is not safe: reset the machine",
	0x15: "the firmware has no such feature: update it",
	0x16: "a parameter, or a CPUID table that claims what the processor does not have",
	0x17: "too many guests",
	0x19: "huge pages where the host has small ones",
	0x1a: "a page that was launched twice or is in use",
	0x1c: "a page of another guest",
	0x20: "enable SNP in the BIOS and load kvm_amd anew",
	0x23: "unload kvm_amd and ccp and load them anew",
	0x26: "the BIOS must reserve memory for an RMP of all memory",
	0x27: "no such key: load a VLEK, do without vcek-disabled, or make the ID authentication page anew",
}

// firmwareError names a status code and its likely cause.
func firmwareError(code uint32) string {
	name, cause := "unknown", ""
	if names := strings.Fields(firmwareErrors); code >= 1 && code <= uint32(len(names)) {
		name = names[code-1]
	}
	if code < uint32(len(causes)) {
		cause = causes[code]
	}
	return fmt.Sprintf("firmware error %#x, %s: %s", code, name, cmp.Or(cause, "see AMD 56860"))
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

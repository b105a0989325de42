// Package sev predicts AMD SEV-SNP launch digests: the page chain that the
// secure processor computes, the VMSA pages that KVM, QEMU, EC2 and GCE give
// it, OVMF's launch metadata, kernel hashes, and the ID block that binds a
// digest to a key. SEV and SEV-ES digests are here too. Of this module it knows
// the launch plans of package boot; package sev/verify reads the reports that
// come back.
//
// Sources: SEV Secure Nested Paging Firmware ABI (AMD 56860), AMD64
// Architecture Programmer's Manual vol. 2 (24593) appendix B, OVMF's
// OvmfPkg/ResetVector, Linux arch/x86/kvm/svm/sev.c.
package sev

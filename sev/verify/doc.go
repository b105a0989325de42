// Package verify checks AMD SEV-SNP attestation reports: the signature, the
// certificate chain up to AMD's roots, revocation, and what a [Policy] asks of
// the fields. It needs no network: certificates and lists come as files, or from
// a cache.
//
// It uses the standard library only: go-sev-guest (v0.15.0) accepts expired
// lists, stores a list before its signature is checked, checks chip keys against
// none, and cannot read Turin's certificates. sev/internal/difftest compares the
// two.
//
// Sources: SEV-SNP Firmware ABI (AMD 56860), table 23; VCEK Certificate and KDS
// Interface (AMD 57230); RFC 5280.
package verify

// Package cca measures Arm CCA realms: from a launch, that is the ordered RMI
// calls that the host makes for it, it computes the Realm Initial Measurement
// (RIM) that the Realm Management Monitor will sign.
//
// [RIM] knows single steps, [Launch] whole launches and [LKVM] the launch that
// kvmtool's realm branch makes. Sources: Arm DEN0137 "Realm Management Monitor
// specification" 1.0-rel0 and 2.0, and the behaviour of TF-RMM. Package
// cca/verify reads attestation tokens.
package cca

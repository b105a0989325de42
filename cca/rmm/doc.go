// Package rmm is a software model of a host for Arm CCA realms: of Linux's KVM
// with one of the versions of the series "arm64: Support for Arm CCA in KVM", and
// of the Realm Management Monitor behind it. It is for tests of monitors. A
// [Kernel] stands where the monitor would have /dev/kvm; it knows nothing of the
// monitor but the bytes of its ioctls.
//
// What it does as a real host does:
//   - Capability numbers, with what else a kernel of that time means by them; the
//     order of calls and the errors of doing it otherwise, as each version of the
//     series has them (arch/arm64/kvm/rme.c, from version 12 on rmi.c).
//   - The Realm Initial Measurement, from the granules at the addresses that were
//     handed over and the registers that were set, by the calls that KVM makes of
//     the RMM (realm translation tables are walked and made as KVM does it) and
//     the descriptors of TF-RMM (lib/measurement/src/rim.c).
//   - Tokens, signed by a platform key that each Kernel makes up, with a realm
//     attestation key that is bound to it.
//   - KVM_RUN plays a realm that writes to its console, shares memory, takes it
//     back, asks for a token and powers off. It looks whether the monitor told KVM
//     of each conversion and gave the memory on the other side back.
//
// What it does not do: no instruction of the realm is executed, nothing is
// encrypted, and the interrupt controller is a name. It was written from the
// kernel's and TF-RMM's sources, apart from the package that predicts.
package rmm

// Package complete finishes single instructions that KVM's emulator refuses.
//
// KVM ends KVM_RUN with KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation), when
// it must emulate an instruction it does not know: a SIMD access to MMIO on any
// machine, or nearly every SSE, AVX or x87 instruction at ring 0 on a KVM
// without hardware virtualization. [Completer.Complete] takes the vCPU's state,
// decodes the one instruction at RIP, and if it is on the allow-list does what
// the processor would have done: it changes the state, or names the exception
// to inject, or says why the instruction is not on the list.
//
// Guest bytes never run on the host. An instruction is decoded into a form of
// the list (Intel SDM vol. 2, chapters 2 to 6 and appendix A); most forms are
// encoded anew from the decoded fields, with the memory operand replaced by a
// scratch area and general registers by ones that are free, and run once
// between a load and a store of the guest's FPU state. What touches memory in
// ways of its own (xsave images, gathers, locked accesses, the choice of a masked
// one's bytes) is done in Go. Privileged instructions are not on the list.
package complete

// Package psp is a software model of a host with AMD SEV-SNP: of Linux's KVM on
// such a processor and of the secure processor (PSP) behind it. It is for tests
// of monitors. A [Kernel] stands where the monitor would have /dev/kvm and
// /dev/sev; it knows nothing of the monitor but the bytes of its ioctls, which
// it takes apart at the kernel's own offsets.
//
// What it does as a real host does:
//   - The order of calls and the checks that KVM makes, with KVM's errors (Linux
//     7.3: arch/x86/kvm/svm/sev.c, svm.c, x86.c, virt/kvm/kvm_main.c,
//     guest_memfd.c), and the firmware's errors by their numbers (AMD 56860).
//   - Pages are read from the memory that was handed over, copied into the
//     guest_memfd and owned by the guest until that memory is given back.
//   - Every vCPU's VMSA is built from the register calls that were seen, as
//     sev_es_sync_vmsa builds it.
//   - The launch digest, the check of the ID block and of the policy, reports of
//     versions 2, 3 and 5 and the chain of certificates behind them.
//   - KVM_RUN plays a [Script]: exits for port and memory accesses, page
//     conversions, certificate requests, termination and shutdown.
//
// What it does not do: no instruction of the guest is executed and nothing is
// encrypted. Reports are signed by keys that each Kernel makes up, whose root
// no verifier trusts unless it is told to. VMs other than SEV-SNP ones can be
// made and configured, not run. What the model shows about a monitor is that it
// follows the kernel's documented rules as read off its source; that these are
// what silicon does, silicon alone can show.
//
// Arguments are read with process_vm_readv, so a bad pointer is EFAULT as it is
// with a kernel. Descriptors are real ones (of memfds), so what a monitor does
// with them outside of ioctl works too.
package psp

// Package kvm is the seam to the kernel's KVM: typed file descriptors and one
// method an ioctl, as Documentation/virt/kvm/api.rst describes them. The plain
// x86 calls are gokvm's; what it lacks or gets wrong (KVM_RUN's EINTR, machine
// types, eventfds, CPUID tables) is written here on golang.org/x/sys.
//
// Only the ioctls the monitor needs appear here. `unsafe` stays in the files
// named *_unsafe.go.
package kvm

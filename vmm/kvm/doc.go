// Package kvm is the seam to the kernel's KVM: typed file descriptors and one
// method an ioctl, as Documentation/virt/kvm/api.rst describes them. All of them
// go through a [Kernel], so that something else can stand in the place of the
// host's. gokvm gives the x86 structures, the request numbers and the call
// itself; its methods, which know one kernel only, are not used.
//
// Only the ioctls the monitor needs appear here. `unsafe` stays in the files
// named *_unsafe.go.
package kvm

package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Detach has the kernel tear the VM down behind the back of a process that is
// about to exit. Destroying a VM with an in-kernel interrupt controller waits
// for several RCU grace periods, 7 to 25 ms, and an exiting process waits with
// it. An io_uring releases the files it holds from a kernel worker instead
// (io_uring/io_uring.c, io_ring_exit_work); it is never entered here.
//
// Where io_uring is not to be had the error says so, and the exit takes its time.
func Detach(v *VM, cpus []*VCPU) error {
	var params [120]byte // struct io_uring_params
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	files := []int32{int32(v.fd)}
	for _, c := range cpus {
		files = append(files, int32(c.fd))
	}
	const registerFiles = 2 // IORING_REGISTER_FILES
	_, _, errno = unix.Syscall6(unix.SYS_IO_URING_REGISTER, ring, registerFiles,
		uintptr(unsafe.Pointer(&files[0])), uintptr(len(files)), 0, 0)
	if errno != 0 {
		_ = unix.Close(int(ring))
		return fmt.Errorf("io_uring_register: %w", errno)
	}
	return nil
}

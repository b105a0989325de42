package kvm

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Kernel is the seam between the monitor and KVM: every call on /dev/kvm and
// /dev/sev, and on the descriptors that come of them, goes through it. [Host]
// is the kernel this program runs on. A software PSP or a software realm manager
// stands here in tests, and whatever makes a call fail on purpose.
type Kernel interface {
	// Open opens a device node for reading and writing.
	Open(path string) (fd int, err error)
	// Ioctl is ioctl(2) with a pointer to the argument in C's layout. Errors are
	// a bare [unix.Errno].
	Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error)
	// Call is ioctl(2) with the argument itself.
	Call(fd int, request, arg uintptr) (int, error)
	// Map maps size bytes of fd, shared: a vCPU's struct kvm_run. What it
	// returns is for [unix.Munmap].
	Map(fd, size int) ([]byte, error)
	// PunchHole gives back the memory behind part of a guest_memfd.
	PunchHole(fd int, offset, size int64) error
	// Close closes fd.
	Close(fd int) error
}

// Host is the kernel this program runs on.
type Host struct{}

// Open implements [Kernel].
func (Host) Open(path string) (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0) }

// Ioctl implements [Kernel].
func (Host) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	n, err := gokvm.Ioctl(uintptr(fd), request, uintptr(arg))
	runtime.KeepAlive(arg)
	return int(n), err
}

// Call implements [Kernel].
func (Host) Call(fd int, request, arg uintptr) (int, error) {
	n, err := gokvm.Ioctl(uintptr(fd), request, arg)
	return int(n), err
}

// Map implements [Kernel].
func (Host) Map(fd, size int) ([]byte, error) {
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// PunchHole implements [Kernel].
func (Host) PunchHole(fd int, offset, size int64) error {
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, size)
}

// Close implements [Kernel].
func (Host) Close(fd int) error { return unix.Close(fd) }

// file is a descriptor of a [Kernel].
type file struct {
	k  Kernel
	fd int
}

// Close closes the descriptor. What was made from it lives on.
func (f file) Close() error { return f.k.Close(f.fd) }

// FD returns the descriptor's number, for the structures that carry one.
func (f file) FD() int { return f.fd }

// call is the ioctl _IO(KVMIO, nr) with a plain number.
func (f file) call(name string, nr, arg uintptr) (int, error) {
	n, err := f.k.Call(f.fd, gokvm.IIO(nr), arg)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// ioctl is a request whose argument lies at arg.
func (f file) ioctl(name string, request uintptr, arg unsafe.Pointer) (int, error) {
	n, err := f.k.Ioctl(f.fd, request, arg)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// read is the ioctl _IOR(KVMIO, nr, T).
func read[T any](f file, name string, nr uintptr, arg *T) error {
	_, err := f.ioctl(name, gokvm.IIOR(nr, unsafe.Sizeof(*arg)), unsafe.Pointer(arg))
	return err
}

// write is the ioctl _IOW(KVMIO, nr, T).
func write[T any](f file, name string, nr uintptr, arg *T) error {
	_, err := f.ioctl(name, gokvm.IIOW(nr, unsafe.Sizeof(*arg)), unsafe.Pointer(arg))
	return err
}

// exchange is the ioctl _IOWR(KVMIO, nr, T).
func exchange[T any](f file, name string, nr uintptr, arg *T) (int, error) {
	return f.ioctl(name, gokvm.IIOWR(nr, unsafe.Sizeof(*arg)), unsafe.Pointer(arg))
}

// Check returns the value of a capability; 0 means absent.
func (f file) Check(capability int) int {
	n, err := f.call("KVM_CHECK_EXTENSION", nrCheckExtension, uintptr(capability))
	if err != nil {
		return 0
	}
	return n
}

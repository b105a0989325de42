package psp

import (
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernel is a host with SEV-SNP. It implements the monitor's interface to KVM.
// The zero value of [Options] is a Milan machine without faults.
type Kernel struct {
	opt Options

	mu       sync.Mutex
	files    map[int]file
	machines []*Machine
	updates  int // LAUNCH_UPDATE calls so far
	keys     func() (*authority, error)
}

// Options is what the host is and what goes wrong on it.
type Options struct {
	Product Product // Milan by default

	PolicyBits   uint64 // guest policy bits that KVM accepts; 0: those of Linux 7.3
	VMSAFeatures uint64 // SEV_FEATURES that KVM accepts; 0: debug swap (0x20)
	NoSMT        bool   // the host runs one thread a core
	NoSNP        bool   // KVM was started without sev_snp=1: no machine type 4

	ReportVersion uint32 // 2, 3 or 5; 0: 3

	Script Script // what vCPU 0 of a launched guest does; nil: it halts

	EAGAIN       int               // every so many LAUNCH_UPDATEs one fails with EAGAIN; 0: none
	PartialPages int               // a LAUNCH_UPDATE does at most so many pages; 0: all
	RewriteCPUID bool              // the first CPUID page of a guest is corrected and refused
	Fail         map[uint32]uint32 // firmware error by KVM's command (100: START, 101, 102): fails each
}

// file is what stands behind a descriptor. ioctl gets the argument as it came,
// and b, the bytes of its structure: those at arg if the request writes, to be
// copied to arg on success if it reads.
type file interface {
	ioctl(request uint32, arg uint64, b []byte) (int, error)
	close()
}

// New returns a host.
func New(o Options) *Kernel {
	k := &Kernel{opt: o, files: map[int]file{}}
	if k.opt.PolicyBits == 0 {
		k.opt.PolicyBits = 0x3fbffff // all that are defined but MIGRATE_MA
	}
	if k.opt.VMSAFeatures == 0 {
		k.opt.VMSAFeatures = 1 << 5
	}
	if k.opt.ReportVersion == 0 {
		k.opt.ReportVersion = 3
	}
	k.keys = sync.OnceValues(func() (*authority, error) { return newAuthority(&k.opt.Product) })
	if k.opt.Product.Name == "" {
		k.opt.Product = Milan
	}
	return k
}

// Machines returns the VMs that were created, in order.
func (k *Kernel) Machines() []*Machine {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]*Machine(nil), k.machines...)
}

// OpenFiles returns the number of descriptors that were not closed.
func (k *Kernel) OpenFiles() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.files)
}

// newFile makes a descriptor with size bytes of memory behind it.
func (k *Kernel) newFile(name string, size int64, f func(fd int) (file, error)) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return -1, err
	}
	if k.files[fd], err = f(fd); err != nil {
		delete(k.files, fd)
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Open opens /dev/kvm or /dev/sev.
func (k *Kernel) Open(path string) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch path {
	case "/dev/kvm":
		return k.newFile("kvm", 0, func(int) (file, error) { return &system{k}, nil })
	case "/dev/sev":
		return k.newFile("sev", 0, func(int) (file, error) { return &device{k}, nil })
	}
	return -1, unix.ENOENT
}

// Ioctl is ioctl(2) with a pointer.
func (k *Kernel) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	defer runtime.KeepAlive(arg)
	return k.Call(fd, request, uintptr(arg))
}

// Directions of a request.
const (
	userWrites = 1
	userReads  = 2
)

// Call is ioctl(2): the kernel does not tell numbers from pointers either.
func (k *Kernel) Call(fd int, request, arg uintptr) (int, error) {
	if c, ok := k.get(fd).(*cpu); ok && request == reqRun {
		return 0, c.enter()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[fd]
	if f == nil {
		return -1, unix.EBADF
	}
	b := make([]byte, request>>16&0x3fff)
	if request>>30&userWrites != 0 {
		if err := copyIn(uint64(arg), b); err != nil {
			return -1, err
		}
	}
	n, err := f.ioctl(uint32(request), uint64(arg), b)
	if err != nil {
		return -1, err
	}
	if request>>30&userReads != 0 {
		if err := copyOut(uint64(arg), b); err != nil {
			return -1, err
		}
	}
	return n, nil
}

func (k *Kernel) get(fd int) file {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.files[fd]
}

// Map maps a vCPU's struct kvm_run.
func (k *Kernel) Map(fd, size int) ([]byte, error) {
	if _, ok := k.get(fd).(*cpu); !ok {
		return nil, unix.ENODEV // a guest_memfd above all
	}
	if size > runSize {
		return nil, unix.EINVAL
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// PunchHole gives back memory of a guest_memfd: its pages leave the guest.
func (k *Kernel) PunchHole(fd int, offset, size int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	g, ok := k.files[fd].(*memFD)
	switch {
	case !ok:
		return unix.EBADF
	case offset < 0 || size <= 0 || offset%pageSize != 0 || size%pageSize != 0:
		return unix.EINVAL
	}
	return g.punch(uint64(offset), uint64(size))
}

// Close closes a descriptor.
func (k *Kernel) Close(fd int) error {
	k.mu.Lock()
	f := k.files[fd]
	delete(k.files, fd)
	k.mu.Unlock()
	if f == nil {
		return unix.EBADF
	}
	f.close()
	return unix.Close(fd)
}

// word is the first word of a struct kvm_run, whose second byte is immediate_exit.
func word(run []byte) *uint32 { return (*uint32)(unsafe.Pointer(&run[0])) }

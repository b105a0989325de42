package rmm

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options is what the host is and what its realm does.
type Options struct {
	// ABI is the version of the series: v5, v7, v8, v9, v10, v12, v13, v14 or v15;
	// none: a mainline kernel; no-rmm: a host without RMM under a kernel for one.
	ABI string

	Breakpoints, Watchpoints uint8 // as in ID_AA64DFR0_EL1
	IPALimit                 int   // bits; 0: 48

	Progress int    // pages that one KVM_ARM_RMI_POPULATE does; 0: all
	Console  uint64 // address of a register that prints what is written there; 0: none
	Alias    bool   // addresses of MMIO keep the bit that says shared
	Token    func(token []byte)
	Nonce    [64]byte // challenge of the token
}

// Kernel is the host. It implements the monitor's interface to KVM.
type Kernel struct {
	opt   Options
	keys  *keys
	rules *rules

	mu     sync.Mutex
	files  map[int]file
	faults []error
	rim    []byte
}

// file is what stands behind a descriptor. arg is the address of the argument,
// or the argument itself.
type file interface {
	ioctl(request uint32, arg uint64) (int, error)
}

// New returns a host.
func New(o Options) (*Kernel, error) {
	r, ok := abis[o.ABI]
	if !ok {
		return nil, fmt.Errorf("no kernel interface %q", o.ABI)
	}
	if o.IPALimit == 0 {
		o.IPALimit = 48
	}
	keys, err := newKeys()
	return &Kernel{opt: o, keys: keys, rules: &r, files: map[int]file{}}, err
}

// State is what became of a host so far.
type State struct {
	RIM       []byte  // measurement of the last realm that was activated
	OpenFiles int     // descriptors that were not closed
	Faults    []error // the rules that the monitor broke without KVM noticing
}

// State returns what became of the host so far.
func (k *Kernel) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return State{k.rim, len(k.files), append([]error(nil), k.faults...)}
}

func (k *Kernel) newFile(f file) (int, error) {
	fd, err := unix.MemfdCreate("rmm", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	k.files[fd] = f
	return fd, nil
}

// Open opens /dev/kvm.
func (k *Kernel) Open(path string) (int, error) {
	if path != "/dev/kvm" {
		return -1, unix.ENOENT
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.newFile(&system{k})
}

// Ioctl is ioctl(2) with a pointer.
func (k *Kernel) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	return k.Call(fd, request, uintptr(arg))
}

// Call is ioctl(2).
func (k *Kernel) Call(fd int, request, arg uintptr) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.files[fd]
	if !ok {
		return 0, unix.EBADF
	}
	if uint32(request)>>8&0xff != 0xae {
		return 0, unix.ENOTTY
	}
	return f.ioctl(uint32(request), uint64(arg))
}

// Map maps a vCPU's struct kvm_run.
func (k *Kernel) Map(fd, size int) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.files[fd].(*vcpu)
	if !ok || size != runSize {
		return nil, unix.EINVAL
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	c.run = b
	return b, err
}

// PunchHole gives back part of a guest_memfd.
func (k *Kernel) PunchHole(fd int, offset, size int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	g, ok := k.files[fd].(*gmem)
	if !ok || offset < 0 || size <= 0 || uint64(offset+size) > g.size || (offset|size)&(page-1) != 0 {
		return unix.EINVAL
	}
	g.holes = append(g.holes, span{uint64(offset), uint64(offset + size)})
	return nil
}

// Close closes a descriptor.
func (k *Kernel) Close(fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.files, fd)
	return unix.Close(fd)
}

// at returns the n bytes at an address of this process.
func at(addr uint64, n int) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), n)
}

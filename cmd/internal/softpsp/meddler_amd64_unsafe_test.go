//go:build amd64

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/idauth"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// Requests, and commands of KVM_MEMORY_ENCRYPT_OP, that are meddled with.
const (
	createVCPU   = 0xae41
	encryptOp    = 0xc008aeba
	setRegs      = 0x4090ae82
	setSregs     = 0x4138ae84
	setMSRs      = 0x4008ae89
	setDebugRegs = 0x4080aea2
	setXSave     = 0x5000aea5
	setXCRS      = 0x4188aea7

	launchUpdate = 101
	pageBytes    = 4096
)

// meddler is a kernel between the monitor and another that changes what is said.
type meddler struct {
	kvm.Kernel

	page     func(*page) action                        // asked for every page that is launched
	register func(cpu int, request uint32, arg []byte) // shown every structure that sets registers
	extraCPU bool                                      // create a vCPU of its own behind the first
	swapCPUs bool                                      // give the first two each other's registers
	lessCPU  int                                       // create this vCPU, counted from 1, in another VM

	cpus []int
	own  []int // descriptors that are not the monitor's
	held *page // swapped: to be launched behind the next
}

// page is a page on its way into the launch.
type page struct {
	gfn, addr uint64
	typ       uint8
	flip      bool
}

// action is what becomes of it.
type action int

const (
	pass    action = iota
	drop           // it is not launched
	swap           // it is launched behind the next one
	twice          // it is launched again
	nothing        // there is nothing of it to change
)

func (k *meddler) Call(fd int, request, arg uintptr) (int, error) {
	if request == createVCPU && len(k.cpus)+1 == k.lessCPU {
		other, err := k.otherVM()
		if err != nil {
			return 0, err
		}
		fd = other
	}
	n, err := k.Kernel.Call(fd, request, arg)
	if request != createVCPU || err != nil {
		return n, err
	}
	k.cpus = append(k.cpus, n)
	if k.extraCPU && len(k.cpus) == 1 {
		extra, err := k.Kernel.Call(fd, request, 77)
		if err != nil {
			return 0, err
		}
		k.own = append(k.own, extra)
	}
	return n, nil
}

// otherVM makes a VM beside the monitor's.
func (k *meddler) otherVM() (int, error) {
	sys, err := k.Open(kvm.Path)
	if err != nil {
		return 0, err
	}
	const createVM = 0xae01
	vm, err := k.Kernel.Call(sys, createVM, 0)
	k.own = append(k.own, sys, vm)
	return vm, err
}

// done closes what is the meddler's own.
func (k *meddler) done() error {
	var err error
	for _, fd := range k.own {
		err = errors.Join(err, k.Close(fd))
	}
	return err
}

func (k *meddler) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	if request == encryptOp && k.page != nil {
		cmd := unsafe.Slice((*byte)(arg), 24)
		if binary.LittleEndian.Uint32(cmd) == launchUpdate {
			return k.update(fd, cmd)
		}
	}
	switch request {
	case setRegs, setSregs, setMSRs, setDebugRegs, setXSave, setXCRS:
		size := int(request >> 16 & 0x3fff)
		if request == setMSRs {
			size = 8 + 16*int(*(*uint32)(arg))
		}
		b := slices.Clone(unsafe.Slice((*byte)(arg), size))
		cpu := slices.Index(k.cpus, fd)
		if k.register != nil {
			k.register(cpu, uint32(request), b)
		}
		if k.swapCPUs && cpu >= 0 && cpu < 2 && len(k.cpus) > 1 {
			fd = k.cpus[1-cpu]
		}
		return k.Kernel.Ioctl(fd, request, unsafe.Pointer(&b[0]))
	}
	return k.Kernel.Ioctl(fd, request, arg)
}

// update does the first page of a LAUNCH_UPDATE, and says that the others are
// left to do, as a kernel may.
func (k *meddler) update(fd int, cmd []byte) (int, error) {
	le := binary.LittleEndian
	data := unsafe.Slice(*(**byte)(unsafe.Pointer(&cmd[8])), 64)
	first := page{gfn: le.Uint64(data), addr: le.Uint64(data[8:]), typ: data[24]}
	p := first
	act := k.page(&p)
	if p.typ != 3 && p.addr == 0 { // a page of zeros that is to count as something else
		zeros, err := unix.Mmap(-1, 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return 0, err
		}
		defer func() { _ = unix.Munmap(zeros) }()
		p.addr = uint64(uintptr(unsafe.Pointer(&zeros[0])))
	}
	todo := []page{p}
	switch act {
	case drop:
		todo = nil
	case twice:
		todo = append(todo, p)
	case swap:
		if p.addr != 0 { // its source may be gone by then
			p.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(cloneMapped(p.addr)))))
		}
		k.held, todo = &p, nil
	default:
		if k.held != nil {
			todo, k.held = append(todo, *k.held), nil
		}
	}
	for _, p := range todo {
		if err := k.one(fd, cmd, p); err != nil {
			return 0, err
		}
	}
	le.PutUint64(data, first.gfn+1)
	if first.typ != 3 {
		le.PutUint64(data[8:], first.addr+pageBytes)
	}
	le.PutUint64(data[16:], le.Uint64(data[16:])-pageBytes)
	return 0, nil
}

// one launches a page by a command of its own.
func (k *meddler) one(fd int, cmd []byte, p page) error {
	le := binary.LittleEndian
	own, u := slices.Clone(cmd), make([]byte, 64)
	le.PutUint64(u, p.gfn)
	le.PutUint64(u[8:], p.addr)
	le.PutUint64(u[16:], pageBytes)
	u[24] = p.typ
	*(**byte)(unsafe.Pointer(&own[8])) = &u[0]
	if p.flip {
		at := (*byte)(pointer(p.addr + 100))
		*at ^= 4
		defer func() { *at ^= 4 }()
	}
	_, err := k.Kernel.Ioctl(fd, encryptOp, unsafe.Pointer(&own[0]))
	copy(cmd[16:20], own[16:20]) // the firmware's error
	return err
}

// pointer is the address of mapped memory as a pointer.
func pointer(addr uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }

// cloneMapped copies a page to where it lies page-aligned, for the rest of the test.
func cloneMapped(addr uint64) []byte {
	b, err := unix.Mmap(-1, 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil
	}
	copy(b, unsafe.Slice((*byte)(pointer(addr)), pageBytes))
	return b
}

// signedBlock makes an ID block for a digest.
func signedBlock(t testing.TB, digest string, policy uint64) (block, auth []byte) {
	t.Helper()
	b := sev.IDBlock{Policy: policy}
	if _, err := hex.Decode(b.Digest[:], []byte(digest)); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block = b.Bytes()
	if auth, err = idauth.Sign(block, key, key); err != nil {
		t.Fatal(err)
	}
	return block, auth
}

//go:build linux && amd64

// Floor is the bare minimum that a Go program can do to run a guest: the
// necessary ioctls in the cheapest order, no checks, no devices. The benchmark
// measures gvmm's start-up against it.
//
//	floor IMAGE ENTRY MIB
//
// IMAGE is flat code for 1 MiB, entered at ENTRY in 32-bit mode without paging.
package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of Linux's include/uapi/linux/kvm.h.
const (
	createVM        = 0xae01
	getVCPUMmapSize = 0xae04
	getCPUID        = 0xc008ae05
	createVCPU      = 0xae41
	setMemory       = 0x4020ae46
	createIRQChip   = 0xae60
	createPIT2      = 0x4040ae77
	run             = 0xae80
	setRegs         = 0x4090ae82
	getSregs        = 0x8138ae83
	setSregs        = 0x4138ae84
	setCPUID2       = 0x4008ae90

	exitIO = 2

	hole    = 3 << 30 // RAM stops here and goes on at 4 GiB
	address = 1 << 20 // of the image
)

func ioctl(fd int, request uint, arg uintptr) int {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), arg)
	if e != 0 {
		die(os.NewSyscallError(fmt.Sprintf("ioctl %#x", request), e))
	}
	return int(r)
}

func die(err error) {
	fmt.Fprintln(os.Stderr, "floor:", err)
	os.Exit(125)
}

func main() {
	if len(os.Args) != 4 {
		die(fmt.Errorf("usage: floor IMAGE ENTRY MIB"))
	}
	image, err := os.ReadFile(os.Args[1])
	if err != nil {
		die(err)
	}
	entry, err := strconv.ParseUint(os.Args[2], 0, 32)
	if err != nil {
		die(err)
	}
	mib, err := strconv.Atoi(os.Args[3])
	if err != nil {
		die(err)
	}
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		die(err)
	}
	vm := ioctl(kvm, createVM, 0)
	ram, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		die(err)
	}
	copy(ram[address:], image)
	slot := func(n uint32, gpa uint64, b []byte) {
		m := struct {
			slot, flags    uint32
			gpa, size, hva uint64
		}{n, 0, gpa, uint64(len(b)), uint64(uintptr(unsafe.Pointer(&b[0])))}
		ioctl(vm, setMemory, uintptr(unsafe.Pointer(&m)))
	}
	slot(0, 0, ram[:min(len(ram), hole)])
	if len(ram) > hole {
		slot(1, 4<<30, ram[hole:])
	}
	ioctl(vm, createIRQChip, 0)
	var pit [64]byte
	ioctl(vm, createPIT2, uintptr(unsafe.Pointer(&pit)))
	vcpu := ioctl(vm, createVCPU, 0)
	size := ioctl(kvm, getVCPUMmapSize, 0)
	shared, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		die(err)
	}
	var cpuid struct {
		n, padding uint32
		entries    [256][40]byte
	}
	cpuid.n = uint32(len(cpuid.entries))
	ioctl(kvm, getCPUID, uintptr(unsafe.Pointer(&cpuid)))
	ioctl(vcpu, setCPUID2, uintptr(unsafe.Pointer(&cpuid)))

	type segment struct {
		base                        uint64
		limit                       uint32
		selector                    uint16
		typ, present, dpl, db, s, l uint8
		g, avl, unusable, padding   uint8
	}
	var sregs struct {
		seg     [8]segment // cs, ds, es, fs, gs, ss, tr, ldt
		rest    [2][16]byte
		cr0     uint64
		others  [7]uint64
		pending [4]uint64
	}
	ioctl(vcpu, getSregs, uintptr(unsafe.Pointer(&sregs)))
	for i := range 6 {
		sregs.seg[i] = segment{limit: 0xffffffff, selector: 16, typ: 3, present: 1, db: 1, s: 1, g: 1}
	}
	sregs.seg[0].selector, sregs.seg[0].typ = 8, 11
	sregs.cr0 |= 1
	ioctl(vcpu, setSregs, uintptr(unsafe.Pointer(&sregs)))
	regs := [18]uint64{16: entry, 17: 2} // rip, rflags
	ioctl(vcpu, setRegs, uintptr(unsafe.Pointer(&regs)))

	for {
		if _, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(vcpu), run, 0); e != 0 && e != unix.EINTR && e != unix.EAGAIN {
			die(os.NewSyscallError("KVM_RUN", e))
		}
		if reason := *(*uint32)(unsafe.Pointer(&shared[8])); reason != exitIO {
			die(fmt.Errorf("exit %d", reason))
		}
		switch port := *(*uint16)(unsafe.Pointer(&shared[34])); port {
		case 0x3f8:
			at := *(*uint64)(unsafe.Pointer(&shared[40]))
			if _, err := os.Stdout.Write(shared[at : at+1]); err != nil {
				die(err)
			}
		case 0x604:
			return
		}
	}
}

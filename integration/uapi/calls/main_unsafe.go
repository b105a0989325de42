// Command calls makes every call of package vmm/kvm once, with arguments that are
// told apart, to a kernel that prints them instead: a line for each, its name,
// request number and bytes. The test beside it compares them with what a C program
// makes of the kernel's headers. From standard input it reads images of struct
// kvm_run, by exit, and prints what the accessors see in them.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// printer is a kernel that prints.
type printer struct {
	name   string // of the call under way; "": nothing is printed
	bytes  int    // of its structure, where the request does not say it
	run    []byte // struct kvm_run
	result int
}

func (p *printer) Open(string) (int, error) { return 3, nil }
func (p *printer) Close(int) error          { return nil }

func (p *printer) Map(_, size int) ([]byte, error) {
	p.run = make([]byte, size)
	return p.run, nil
}

func (p *printer) PunchHole(int, int64, int64) error { return nil }

func (p *printer) Call(_ int, request, _ uintptr) (int, error) {
	p.print(request, nil)
	switch request {
	case 0xae00:
		return 12, nil
	case 0xae04:
		return 1 << 14, nil
	}
	return 7, nil
}

func (p *printer) Ioctl(_ int, request uintptr, arg unsafe.Pointer) (int, error) {
	n := p.bytes
	if n == 0 {
		n = int(request >> 16 & 0x3fff)
	}
	b := unsafe.Slice((*byte)(arg), n)
	if request>>30&1 == 0 {
		b = nil // the kernel writes only
	}
	p.print(request, b)
	if p.name == "KVM_MEMORY_ENCRYPT_OP" { // what the command points to
		at := *(*unsafe.Pointer)(unsafe.Add(arg, 8))
		p.inner(at, b[0])
	}
	return p.result, nil
}

func (p *printer) print(request uintptr, b []byte) {
	name := p.name
	if request == 0xae04 {
		name = "KVM_GET_VCPU_MMAP_SIZE" // on the way to another call
	}
	if name != "" {
		fmt.Printf("%s %#x %x\n", name, uint32(request), b)
	}
}

// do makes one call.
func (p *printer) do(name string, f func()) { p.sized(name, 0, f) }

func (p *printer) sized(name string, bytes int, f func()) {
	p.name, p.bytes = name, bytes
	f()
	p.name, p.bytes = "", 0
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "calls:", err)
		os.Exit(1)
	}
}

func main() {
	p := &printer{}
	var sys *kvm.System
	var vm *kvm.VM
	var cpu *kvm.VCPU
	var err error
	p.do("KVM_GET_API_VERSION", func() { sys, err = kvm.Open(p) })
	check(err)
	p.do("KVM_CREATE_VM", func() { vm, err = sys.CreateVM(0) })
	check(err)
	p.do("KVM_CREATE_VCPU", func() { cpu, err = vm.CreateVCPU(0) })
	check(err)
	p.do("KVM_CHECK_EXTENSION", func() { sys.Check(1) })
	p.do("KVM_RUN", func() { _, err = cpu.Run() })
	p.do("KVM_SET_USER_MEMORY_REGION", func() { err = vm.SetMemory(1, 0x2000, 0x3000, 0x4000) })
	var private *kvm.GuestMemFD
	p.result = 9
	p.do("KVM_CREATE_GUEST_MEMFD", func() { private, err = vm.CreateGuestMemFD(0x5000) })
	p.result = 0
	p.do("KVM_SET_USER_MEMORY_REGION2", func() { err = vm.SetPrivateMemory(1, 0x2000, 0x3000, 0x4000, private) })
	p.do("KVM_SET_MEMORY_ATTRIBUTES", func() { err = vm.SetMemoryAttributes(0x1000, 0x2000, kvm.MemoryPrivate) })
	p.do("KVM_ENABLE_CAP", func() { err = vm.EnableCap(201, 5, 6) })
	p.do("KVM_GET_DEVICE_ATTR", func() { _, err = sys.DeviceAttr(1, 2) })
	p.do("KVM_HAS_DEVICE_ATTR", func() { sys.HasDeviceAttr(1, 2) })
	p.do("KVM_IOEVENTFD", func() {
		err = vm.IOEventFD(kvm.IOEventFD{DataMatch: 1, Addr: 2, Len: 3, FD: 4, Flags: kvm.IOEventMatch | kvm.IOEventPort | kvm.IOEventDeassign})
	})
	p.do("KVM_IRQFD", func() { err = vm.IRQFD(kvm.IRQFD{FD: 1, GSI: 2, Flags: kvm.IRQFDDeassign, ResampleFD: 4}) })
	p.do("KVM_SIGNAL_MSI", func() { err = vm.SignalMSI(kvm.MSI{AddrLo: 1, AddrHi: 2, Data: 3, Flags: 4, DevID: 5}) })
	p.do("KVM_IRQ_LINE", func() { err = vm.SetIRQ(0x12345678, true) })
	p.do("KVM_GET_ONE_REG", func() { _, err = cpu.OneReg(0x1122334455667788) })
	p.do("KVM_SET_ONE_REG", func() { err = cpu.SetOneReg(0x1122334455667788, 1) })
	archCalls(p, sys, vm, cpu)
	check(err)

	for name, v := range constants() {
		fmt.Printf("%s %#x\n", name, v)
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		name, image, _ := strings.Cut(in.Text(), " ")
		b, err := hex.DecodeString(image)
		check(err)
		copy(p.run, b)
		if !exit(name, cpu) {
			archExit(name, p, cpu)
		}
		if strings.HasPrefix(name, "set-") {
			fmt.Printf("exit:%s %x\n", name, p.run[:len(b)])
		}
	}
}

func see(name string, c *kvm.VCPU, values []any) bool {
	var text []string
	for _, v := range values {
		if b, ok := v.(bool); ok {
			text = append(text, fmt.Sprint(b))
		} else {
			text = append(text, fmt.Sprintf("%x", v))
		}
	}
	fmt.Printf("exit:%s %#x %v\n", name, c.ExitReason(), text)
	return true
}

// exit prints what the accessors see of an exit that every architecture has.
func exit(name string, c *kvm.VCPU) bool {
	seen := func(v ...any) bool { return see(name, c, v) }
	switch name {
	case "mmio":
		addr, data, write := c.MMIO()
		return seen(addr, data, write)
	case "system":
		kind, data := c.SystemEvent()
		return seen(kind, data)
	case "internal":
		sub, data := c.InternalError()
		return seen(sub, data)
	case "fail-entry":
		return seen(c.FailEntry())
	case "memory-fault":
		gpa, size, private := c.MemoryFault()
		return seen(gpa, size, private)
	case "set-immediate":
		c.Kick()
		return true
	}
	return false
}

// constants are the numbers that calls and exits are known by.
func constants() map[string]int {
	m := map[string]int{
		"KVM_CAP_IRQFD": kvm.CapIRQFD, "KVM_CAP_IOEVENTFD": kvm.CapIOEventFD, "KVM_CAP_MAX_VCPUS": kvm.CapMaxVCPUs,
		"KVM_CAP_SIGNAL_MSI": kvm.CapSignalMSI, "KVM_CAP_IMMEDIATE_EXIT": kvm.CapImmediateExit,
		"KVM_CAP_GUEST_MEMFD": kvm.CapGuestMemFD, "KVM_CAP_MEMORY_ATTRIBUTES": kvm.CapMemoryAttributes,
		"KVM_MEMORY_ATTRIBUTE_PRIVATE": kvm.MemoryPrivate, "KVM_MEMORY_EXIT_FLAG_PRIVATE": kvm.MemoryPrivate,
		"KVM_EXIT_UNKNOWN": kvm.ExitUnknown, "KVM_EXIT_IO": kvm.ExitIO, "KVM_EXIT_DEBUG": kvm.ExitDebug, "KVM_EXIT_HLT": kvm.ExitHLT,
		"KVM_EXIT_MMIO": kvm.ExitMMIO, "KVM_EXIT_SHUTDOWN": kvm.ExitShutdown, "KVM_EXIT_FAIL_ENTRY": kvm.ExitFailEntry,
		"KVM_EXIT_INTR": kvm.ExitIntr, "KVM_EXIT_INTERNAL_ERROR": kvm.ExitInternalError,
		"KVM_EXIT_SYSTEM_EVENT": kvm.ExitSystemEvent, "KVM_EXIT_MEMORY_FAULT": kvm.ExitMemoryFault,
	}
	for name, v := range archConstants {
		m[name] = v
	}
	return m
}

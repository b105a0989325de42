package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual CPU. All its methods but [VCPU.Kick] belong to the thread
// that runs it.
type VCPU struct {
	ID int
	file
	shared []byte // struct kvm_run, shared with the kernel
	tid    atomic.Int32
}

// CreateVCPU creates the vCPU with the given id, on x86 its APIC id (KVM_CREATE_VCPU).
func (v *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := v.call(fmt.Sprintf("KVM_CREATE_VCPU %d", id), nrCreateVCPU, uintptr(id))
	if err != nil {
		return nil, err
	}
	f := file{v.k, fd}
	run, err := f.k.Map(fd, v.runSize)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vCPU %d: map kvm_run: %w", id, err), f.Close())
	}
	return &VCPU{ID: id, file: f, shared: run}, nil
}

// Close releases the vCPU. It must not be running.
func (c *VCPU) Close() error {
	if err := unix.Munmap(c.shared); err != nil {
		return err
	}
	return c.file.Close()
}

// Exit reasons (KVM_EXIT_*).
const (
	ExitUnknown       = 0
	ExitIO            = 2
	ExitDebug         = 4
	ExitHLT           = 5
	ExitMMIO          = 6
	ExitShutdown      = 8
	ExitFailEntry     = 9
	ExitIntr          = 10
	ExitInternalError = 17
	ExitSystemEvent   = 24
	ExitMemoryFault   = 39
)

// Offsets in struct kvm_run.
const (
	offImmediateExit = 1
	offExitReason    = 8
	offUnion         = 32
)

// Bind names the calling thread as the one that runs the vCPU, so that Kick can
// reach it. The caller has locked the goroutine to its thread.
func (c *VCPU) Bind() { c.tid.Store(int32(unix.Gettid())) }

// Run enters the guest until the next exit. ok is false when a kick or a signal
// ended the run instead; ExitReason then means nothing.
func (c *VCPU) Run() (ok bool, err error) {
	_, err = c.k.Call(c.fd, runRequest, 0)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EFAULT) && c.ExitReason() == ExitMemoryFault:
		return true, nil // this one exit comes as an error (api.rst, KVM_EXIT_MEMORY_FAULT)
	default:
		return false, fmt.Errorf("KVM_RUN: %w", err)
	}
}

// Kick makes a running or about to run vCPU return from Run. It may be called
// from any thread. The signal is the one Go's runtime uses for preemption, which
// it handles at any time and for no other effect here.
func (c *VCPU) Kick() {
	c.shared[offImmediateExit] = 1
	if tid := c.tid.Load(); tid != 0 {
		_ = unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// Unkick lets Run enter the guest again after a Kick.
func (c *VCPU) Unkick() { c.shared[offImmediateExit] = 0 }

// NMI injects a non-maskable interrupt (KVM_NMI). The vCPU must not be in Run.
func (c *VCPU) NMI() error {
	_, err := c.call("KVM_NMI", nrNMI, 0)
	return err
}

// ExitReason returns why Run returned.
func (c *VCPU) ExitReason() uint32 { return binary.LittleEndian.Uint32(c.shared[offExitReason:]) }

// MMIO returns a KVM_EXIT_MMIO. data aliases kvm_run: a read is answered by
// filling it.
func (c *VCPU) MMIO() (addr uint64, data []byte, write bool) {
	u := c.shared[offUnion:]
	n := min(binary.LittleEndian.Uint32(u[16:]), 8)
	return binary.LittleEndian.Uint64(u), u[8 : 8+n : 8+n], u[20] != 0
}

// SystemEvent returns the type and first data word of a KVM_EXIT_SYSTEM_EVENT.
func (c *VCPU) SystemEvent() (kind uint32, data uint64) {
	u := c.shared[offUnion:]
	kind = binary.LittleEndian.Uint32(u)
	if binary.LittleEndian.Uint32(u[4:]) > 0 {
		data = binary.LittleEndian.Uint64(u[8:])
	}
	return kind, data
}

// InternalError returns the sub-error of a KVM_EXIT_INTERNAL_ERROR and its data
// words (at most 16).
func (c *VCPU) InternalError() (suberror uint32, data []uint64) {
	u := c.shared[offUnion:]
	n := min(binary.LittleEndian.Uint32(u[4:]), 16)
	for i := range n {
		data = append(data, binary.LittleEndian.Uint64(u[8+8*i:]))
	}
	return binary.LittleEndian.Uint32(u), data
}

// FailEntry returns the hardware's reason of a KVM_EXIT_FAIL_ENTRY, or of a
// KVM_EXIT_UNKNOWN.
func (c *VCPU) FailEntry() uint64 { return binary.LittleEndian.Uint64(c.shared[offUnion:]) }

// Settle ends what the last exit left half done, a port or memory access, and
// loads registers marked by SetDirty, without entering the guest. ok says that
// this made another exit.
func (c *VCPU) Settle() (ok bool, err error) {
	c.shared[offImmediateExit] = 1
	ok, err = c.Run()
	c.shared[offImmediateExit] = 0
	return ok, err
}

package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// System is an open /dev/kvm.
type System struct{ fd int }

// Capability numbers (include/uapi/linux/kvm.h). gokvm's type has eight bits,
// too few for those above 255.
const (
	CapIRQFD            = 32
	CapIOEventFD        = 36
	CapMaxVCPUs         = 66
	CapSignalMSI        = 77
	CapImmediateExit    = 136
	CapXSave2           = 208
	CapGuestMemFD       = 234
	CapMemoryAttributes = 233
	CapVMTypes          = 235
)

const apiVersion = 12 // KVM_API_VERSION, fixed since Linux 2.6.22

// ErrUnavailable is wrapped by errors that mean this host offers no usable KVM.
var ErrUnavailable = errors.New("KVM is not available")

// Open opens the KVM device node, normally /dev/kvm.
func Open(path string) (*System, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, os.ErrNotExist):
			hint = " (load the kvm_intel or kvm_amd module, or enable virtualization in the firmware or the outer hypervisor)"
		case errors.Is(err, os.ErrPermission):
			hint = " (join the group that owns it, usually kvm)"
		}
		return nil, fmt.Errorf("%w: open %s: %w%s", ErrUnavailable, path, err, hint)
	}
	s := &System{fd}
	v, err := gokvm.GetAPIVersion(uintptr(fd))
	if err != nil || v != apiVersion {
		_ = s.Close()
		if err == nil {
			err = fmt.Errorf("API version %d, want %d", v, apiVersion)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, path, err)
	}
	return s, nil
}

// Close closes the device. VMs created from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }

// Check returns the value of a capability; 0 means absent (KVM_CHECK_EXTENSION).
func (s *System) Check(capability int) int {
	n, err := gokvm.Ioctl(uintptr(s.fd), gokvm.IIO(nrCheckExtension), uintptr(capability))
	if err != nil {
		return 0
	}
	return int(n)
}

// CreateVM creates a VM of the machine type, 0 being the ordinary one
// (KVM_CREATE_VM).
func (s *System) CreateVM(machineType int) (*VM, error) {
	for {
		fd, err := gokvm.Ioctl(uintptr(s.fd), gokvm.IIO(nrCreateVM), uintptr(machineType))
		if errors.Is(err, unix.EINTR) {
			continue // a signal while the kernel set up the VM
		}
		if err != nil {
			return nil, fmt.Errorf("%w: KVM_CREATE_VM type %d: %w", ErrUnavailable, machineType, err)
		}
		size, err := gokvm.GetVCPUMMmapSize(uintptr(s.fd))
		if err != nil {
			_ = unix.Close(int(fd))
			return nil, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
		}
		return &VM{fd: int(fd), runSize: int(size)}, nil
	}
}

// ioctl numbers (include/uapi/linux/kvm.h), only those gokvm does not serve.
const (
	nrCreateVM          = 0x01
	nrCheckExtension    = 0x03
	nrGetSupportedCPUID = 0x05
	nrRun               = 0x80
	nrSetCPUID2         = 0x90
	nrGetXSave          = 0xa4
	nrSetXSave          = 0xa5
	nrGetXSave2         = 0xcf
	nrSetMSRs           = 0x89
	nrGetMSRs           = 0x88
	nrIRQFD             = 0x76
	nrIOEventFD         = 0x79
	nrSignalMSI         = 0xa5
	nrCreatePIT2        = 0x77
)

package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// System is an open /dev/kvm.
type System struct{ file }

// Capability numbers (include/uapi/linux/kvm.h). gokvm's type has eight bits,
// too few for those above 255.
const (
	CapIRQFD            = 32
	CapIOEventFD        = 36
	CapMaxVCPUs         = 66
	CapSignalMSI        = 77
	CapARMPMU           = 126
	CapMSIDeviceID      = 131
	CapImmediateExit    = 136
	CapARMUserIRQ       = 144
	CapARMIPASize       = 165
	CapARMSVE           = 170
	CapARMPtrAuthAddr   = 171
	CapARMPtrAuthGen    = 172
	CapARMStealTime     = 187
	CapXSave2           = 208
	CapGuestMemFD       = 234
	CapMemoryAttributes = 233
	CapVMTypes          = 235
)

const apiVersion = 12 // KVM_API_VERSION, fixed since Linux 2.6.22

// ErrUnavailable is wrapped by errors that mean this host offers no usable KVM.
var ErrUnavailable = errors.New("KVM is not available")

// Path is the KVM device node.
const Path = "/dev/kvm"

// Open opens k's [Path].
func Open(k Kernel) (*System, error) {
	fd, err := k.Open(Path)
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, os.ErrNotExist):
			hint = fmt.Sprintf(" (%s, or enable virtualization in the firmware or the outer hypervisor)", howToKVM)
		case errors.Is(err, os.ErrPermission):
			hint = " (join the group that owns it, usually kvm)"
		}
		return nil, fmt.Errorf("%w: open %s: %w%s", ErrUnavailable, Path, err, hint)
	}
	s := &System{file{k, fd}}
	v, err := s.call("KVM_GET_API_VERSION", nrGetAPIVersion, 0)
	if err != nil || v != apiVersion {
		_ = s.Close()
		if err == nil {
			err = fmt.Errorf("API version %d, want %d", v, apiVersion)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, Path, err)
	}
	return s, nil
}

// CreateVM creates a VM of the machine type, 0 being the ordinary one
// (KVM_CREATE_VM).
func (s *System) CreateVM(machineType int) (*VM, error) {
	size, err := s.call("KVM_GET_VCPU_MMAP_SIZE", nrGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	for {
		fd, err := s.call("KVM_CREATE_VM", nrCreateVM, uintptr(machineType))
		if errors.Is(err, unix.EINTR) {
			continue // a signal while the kernel set up the VM
		}
		if err != nil {
			return nil, fmt.Errorf("%w: machine type %d: %w", ErrUnavailable, machineType, err)
		}
		return &VM{file: file{s.k, fd}, runSize: size}, nil
	}
}

// ioctl numbers (include/uapi/linux/kvm.h).
const (
	nrGetAPIVersion       = 0x00
	nrCreateVM            = 0x01
	nrCheckExtension      = 0x03
	nrGetVCPUMmapSize     = 0x04
	nrGetSupportedCPUID   = 0x05
	nrCreateVCPU          = 0x41
	nrSetMemory           = 0x46
	nrSetMemory2          = 0x49
	nrSetTSSAddr          = 0x47
	nrCreateIRQChip       = 0x60
	nrIRQLine             = 0x61
	nrIRQFD               = 0x76
	nrCreatePIT2          = 0x77
	nrIOEventFD           = 0x79
	nrRun                 = 0x80
	nrGetRegs             = 0x81
	nrSetRegs             = 0x82
	nrGetSregs            = 0x83
	nrSetSregs            = 0x84
	nrTranslate           = 0x85
	nrGetMSRs             = 0x88
	nrSetMSRs             = 0x89
	nrGetLAPIC            = 0x8e
	nrSetLAPIC            = 0x8f
	nrSetCPUID2           = 0x90
	nrSetMPState          = 0x99
	nrSetGuestDebug       = 0x9b
	nrSetDebugRegs        = 0xa2
	nrNMI                 = 0x9a
	nrGetTSCKHz           = 0xa3
	nrEnableCap           = 0xa3
	nrGetXSave            = 0xa4
	nrSetXSave            = 0xa5
	nrSignalMSI           = 0xa5
	nrGetXCRS             = 0xa6
	nrSetXCRS             = 0xa7
	nrGetOneReg           = 0xab
	nrSetOneReg           = 0xac
	nrVCPUInit            = 0xae
	nrPreferredTarget     = 0xaf
	nrVCPUFinalize        = 0xc2
	nrGetXSave2           = 0xcf
	nrSetMemoryAttributes = 0xd2
	nrCreateGuestMemFD    = 0xd4
	nrCreateDevice        = 0xe0
	nrSetDeviceAttr       = 0xe1
	nrGetDeviceAttr       = 0xe2
	nrHasDeviceAttr       = 0xe3

	runRequest = 0xae80 // KVM_RUN whole
)

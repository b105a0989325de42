package psp

import "golang.org/x/sys/unix"

// Requests (include/uapi/linux/kvm.h), whole: direction, size of the structure,
// 0xAE, number. A structure of another size is another request, as for a kernel.
const (
	reqGetAPIVersion, reqCreateVM          = 0xae00, 0xae01
	reqCheckExtension, reqGetVCPUMmapSize  = 0xae03, 0xae04
	reqGetSupportedCPUID, reqSetCPUID2     = 0xc008ae05, 0x4008ae90
	reqGetDeviceAttr, reqHasDeviceAttr     = 0x4018aee2, 0x4018aee3
	reqCreateVCPU, reqRun                  = 0xae41, 0xae80
	reqSetMemory, reqSetMemory2            = 0x4020ae46, 0x40a0ae49
	reqSetTSSAddr, reqSetIdentityMap       = 0xae47, 0x4008ae48
	reqCreateIRQChip, reqCreatePIT2        = 0xae60, 0x4040ae77
	reqIRQLine, reqGSIRouting              = 0x4008ae61, 0x4008ae6a
	reqIRQFD, reqIOEventFD                 = 0x4020ae76, 0x4040ae79
	reqEnableCap, reqSignalMSI             = 0x4068aea3, 0x4020aea5
	reqSetMemoryAttrs, reqCreateGuestMemFD = 0x4020aed2, 0xc040aed4
	reqGetRegs, reqSetRegs                 = 0x8090ae81, 0x4090ae82
	reqGetSregs, reqSetSregs               = 0x8138ae83, 0x4138ae84
	reqGetSregs2, reqSetSregs2             = 0x8140aecc, 0x4140aecd
	reqGetMSRs, reqSetMSRs                 = 0xc008ae88, 0x4008ae89
	reqGetFPU, reqSetFPU                   = 0x81a0ae8c, 0x41a0ae8d
	reqGetLAPIC, reqSetLAPIC               = 0x8400ae8e, 0x4400ae8f
	reqGetMPState, reqSetMPState           = 0x8004ae98, 0x4004ae99
	reqGetVCPUEvents, reqSetVCPUEvents     = 0x8040ae9f, 0x4040aea0
	reqGetDebugRegs, reqSetDebugRegs       = 0x8080aea1, 0x4080aea2
	reqGetXCRS, reqSetXCRS                 = 0x8188aea6, 0x4188aea7
	reqGetXSave, reqSetXSave               = 0x9000aea4, 0x5000aea5
	reqGetXSave2, reqGetTSCKHz             = 0x9000aecf, 0xaea3
	reqSetGuestDebug, reqMemoryEncryptOp   = 0x4048ae9b, 0xc008aeba
	reqSEVIssueCmd, sevSNPPlatformStatus   = 0xc0105300, 9
)

// Machine types.
const (
	typeDefault = 0
	typeSNP     = 4
)

const (
	capExitHypercall = 201
	hcMapGPARange    = 12
	attrPrivate      = 1 << 3
	maxVCPUID        = 4096
)

// system is an open /dev/kvm.
type system struct{ k *Kernel }

func (s *system) close() {}

func (s *system) ioctl(request uint32, arg uint64, b []byte) (int, error) {
	switch request {
	case reqGetAPIVersion:
		return 12, nil
	case reqGetVCPUMmapSize:
		return runSize, nil
	case reqCheckExtension:
		return s.k.extension(arg, nil), nil
	case reqCreateVM:
		return s.k.createMachine(arg)
	case reqGetSupportedCPUID:
		return 0, supportedCPUID(s.k.opt.Product.Signature, arg, int(get(b, 0, 4)))
	case reqGetDeviceAttr, reqHasDeviceAttr:
		return 0, s.deviceAttr(b, request == reqGetDeviceAttr)
	}
	return 0, unix.ENOTTY
}

// extension answers KVM_CHECK_EXTENSION, m being the VM that is asked, if any.
func (k *Kernel) extension(number uint64, m *Machine) int {
	confidential := m != nil && m.kind == typeSNP
	switch number {
	case 0, 7, 16, 25, 29, 32, 33, 36, 38, 55, 56, 60, 72, 77, 79, 98, 104, 121, 136, 200, 231, 232, 234:
		return 1 // IRQCHIP to EXIT_ON_..., each present or not
	case 9:
		return 1024 // NR_VCPUS, recommended
	case 10:
		return 32764 // NR_MEMSLOTS
	case 66, 128:
		return maxVCPUID // MAX_VCPUS, MAX_VCPU_ID
	case 74: // SYNC_REGS: none where state is protected
		if !confidential {
			return 7
		}
	case 81: // READONLY_MEM likewise
		if !confidential {
			return 1
		}
	case capExitHypercall:
		return 1 << hcMapGPARange
	case 208:
		return pageSize // XSAVE2
	case 233: // MEMORY_ATTRIBUTES
		if m == nil || confidential {
			return attrPrivate
		}
	case 235: // VM_TYPES
		if k.opt.NoSNP {
			return 1 << typeDefault
		}
		return 1<<typeDefault | 1<<2 | 1<<3 | 1<<typeSNP
	}
	return 0
}

// deviceAttr reads what KVM offers SEV guests (KVM_X86_GRP_SEV).
func (s *system) deviceAttr(b []byte, value bool) error {
	if get(b, 0, 4) != 0 {
		return unix.EINVAL
	}
	attrs := []uint64{s.k.opt.VMSAFeatures, s.k.opt.PolicyBits, 1}
	attr := get(b, 8, 8)
	if s.k.opt.NoSNP || get(b, 4, 4) != 1 || attr >= uint64(len(attrs)) {
		return unix.ENXIO
	}
	if !value {
		return nil
	}
	return copyOut(get(b, 16, 8), le.AppendUint64(nil, attrs[attr]))
}

// device is an open /dev/sev.
type device struct{ k *Kernel }

func (d *device) close() {}

// ioctl is SEV_ISSUE_CMD {cmd, data, error}, packed.
func (d *device) ioctl(request uint32, _ uint64, b []byte) (int, error) {
	if request != reqSEVIssueCmd {
		return 0, unix.ENOTTY
	}
	if get(b, 0, 4) != sevSNPPlatformStatus {
		return 0, unix.EINVAL
	}
	status := make([]byte, 32)
	p := &d.k.opt.Product
	status[0], status[1], status[2], status[3] = p.Firmware[0], p.Firmware[1], 1, 1
	status[4] = p.Firmware[2]
	copy(status[16:], p.TCB[:])
	copy(status[24:], p.TCB[:])
	clear(b[12:16])
	return 0, copyOut(get(b, 4, 8), status)
}

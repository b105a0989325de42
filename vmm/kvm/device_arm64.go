package kvm

import "fmt"

// DeviceKind is a kind of device in the kernel (KVM_DEV_TYPE_*).
type DeviceKind uint32

// The interrupt controllers of arm64 (Documentation/virt/kvm/devices/arm-vgic*.rst).
const (
	GICv2 DeviceKind = 5
	GICv3 DeviceKind = 7
	ITS   DeviceKind = 8 // interrupt translation service: message-signalled interrupts of a GICv3
)

// Attribute groups of those devices, and of the vCPUs themselves
// (Documentation/virt/kvm/devices/vcpu.rst).
const (
	GICAddress = 0 // attribute: what lies there, a GICAddress*
	GICIRQs    = 3 // number of interrupts with the 32 private ones
	GICControl = 4 // attribute 0: initialize, when all vCPUs are there

	GICAddressV2Dist = 0
	GICAddressV2CPU  = 1
	GICAddressV3Dist = 2
	GICAddressRedist = 3
	GICAddressITS    = 4

	VCPUPMU     = 0 // attribute 0: its interrupt; 1: initialize
	VCPUPVTime  = 2 // attribute 0: address of the stolen time structure
	PMUIRQ      = 0
	PMUInit     = 1
	PVTimeIPA   = 0
	GICInitAttr = 0
)

// Device is a device in the kernel. It lives as long as its VM, also when closed.
type Device struct{ file }

type createDevice struct{ kind, fd, flags uint32 }

// HasDevice reports whether the kernel has such a device for VMs.
func (v *VM) HasDevice(kind DeviceKind) bool {
	const test = 1 // KVM_CREATE_DEVICE_TEST
	_, err := exchange(v.file, "KVM_CREATE_DEVICE", nrCreateDevice, &createDevice{kind: uint32(kind), flags: test})
	return err == nil
}

// CreateDevice creates a device (KVM_CREATE_DEVICE).
func (v *VM) CreateDevice(kind DeviceKind) (*Device, error) {
	d := createDevice{kind: uint32(kind)}
	if _, err := exchange(v.file, fmt.Sprintf("KVM_CREATE_DEVICE type %d", kind), nrCreateDevice, &d); err != nil {
		return nil, err
	}
	return &Device{file{v.k, int(d.fd)}}, nil
}

// SetDeviceAttr writes an attribute of up to 64 bits (KVM_SET_DEVICE_ATTR).
func (f file) SetDeviceAttr(group uint32, attr, value uint64) error {
	return write(f, fmt.Sprintf("KVM_SET_DEVICE_ATTR %d/%d = %#x", group, attr, value), nrSetDeviceAttr,
		&deviceAttr{group: group, attr: attr, addr: &value})
}

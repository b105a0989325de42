package kvm

import (
	"encoding/binary"
	"fmt"
)

// This file is what every kind of confidential guest needs of KVM, whatever its
// architecture (Documentation/virt/kvm/api.rst, 4.140 to 4.142 and 7.): memory
// that user space cannot reach, and the exits that tell of its conversion.

// MemoryPrivate is the attribute of pages that lie in a guest_memfd
// (KVM_MEMORY_ATTRIBUTE_PRIVATE), and the flag of a [MemoryFault] that wants one.
const (
	MemoryPrivate = 1 << 3

	memoryGuestMemFD = 1 << 2 // KVM_MEM_GUEST_MEMFD
)

type enableCap struct {
	number, _ uint32
	args      [4]uint64
	_         [64]byte
}

type createGuestMemFD struct {
	size uint64
	_    [7]uint64
}

type memoryRegion2 struct {
	slot, flags uint32
	gpa, size   uint64
	hostAddr    uint64
	_           uint64 // where in the guest_memfd
	guestMemFD  uint32
	_           uint32
	_           [14]uint64
}

type memoryAttributes struct{ gpa, size, attributes, flags uint64 }

type deviceAttr struct {
	_, group uint32
	attr     uint64
	addr     *uint64
}

// EnableCap switches a capability on (KVM_ENABLE_CAP).
func (f file) EnableCap(capability uint32, args ...uint64) error {
	c := enableCap{number: capability}
	copy(c.args[:], args)
	return write(f, fmt.Sprintf("KVM_ENABLE_CAP %d %#x", capability, args), nrEnableCap, &c)
}

// DeviceAttr reads an attribute of 64 bits (KVM_GET_DEVICE_ATTR).
func (f file) DeviceAttr(group uint32, attr uint64) (uint64, error) {
	value := new(uint64)
	err := write(f, fmt.Sprintf("KVM_GET_DEVICE_ATTR %d/%d", group, attr), nrGetDeviceAttr, &deviceAttr{group: group, attr: attr, addr: value})
	return *value, err
}

// HasDeviceAttr reports whether the kernel knows an attribute (KVM_HAS_DEVICE_ATTR).
func (f file) HasDeviceAttr(group uint32, attr uint64) bool {
	return write(f, "KVM_HAS_DEVICE_ATTR", nrHasDeviceAttr, &deviceAttr{group: group, attr: attr}) == nil
}

// GuestMemFD is memory that only its guest and the kernel reach.
type GuestMemFD struct {
	file
}

// CreateGuestMemFD makes size bytes of private memory, which takes up room as it
// is used (KVM_CREATE_GUEST_MEMFD).
func (v *VM) CreateGuestMemFD(size uint64) (*GuestMemFD, error) {
	fd, err := exchange(v.file, fmt.Sprintf("KVM_CREATE_GUEST_MEMFD of %#x bytes", size), nrCreateGuestMemFD, &createGuestMemFD{size: size})
	if err != nil {
		return nil, err
	}
	return &GuestMemFD{file{v.k, fd}}, nil
}

// Discard gives back the memory behind [offset, offset+size), whole pages: it
// reads as zeros when it is used again.
func (g *GuestMemFD) Discard(offset, size uint64) error {
	if err := g.k.PunchHole(g.fd, int64(offset), int64(size)); err != nil {
		return fmt.Errorf("guest_memfd: punch hole %#x+%#x: %w", offset, size, err)
	}
	return nil
}

// SetPrivateMemory backs [gpa, gpa+size) twice: shared pages with the host memory
// at hostAddr, private ones with private from its start (KVM_SET_USER_MEMORY_REGION2).
func (v *VM) SetPrivateMemory(slot uint32, gpa, size uint64, hostAddr uintptr, private *GuestMemFD) error {
	name := fmt.Sprintf("KVM_SET_USER_MEMORY_REGION2 slot %d, %#x+%#x", slot, gpa, size)
	return write(v.file, name, nrSetMemory2, &memoryRegion2{
		slot: slot, flags: memoryGuestMemFD, gpa: gpa, size: size, hostAddr: uint64(hostAddr), guestMemFD: uint32(private.fd),
	})
}

// SetMemoryAttributes makes the pages of [gpa, gpa+size) private ([MemoryPrivate])
// or shared (0) (KVM_SET_MEMORY_ATTRIBUTES). What they held is lost.
func (v *VM) SetMemoryAttributes(gpa, size, attributes uint64) error {
	name := fmt.Sprintf("KVM_SET_MEMORY_ATTRIBUTES %#x+%#x = %#x", gpa, size, attributes)
	return write(v.file, name, nrSetMemoryAttributes, &memoryAttributes{gpa, size, attributes, 0})
}

// MemoryFault returns a KVM_EXIT_MEMORY_FAULT: the guest used [gpa, gpa+size) as
// private or shared memory, and it is the other.
func (c *VCPU) MemoryFault() (gpa, size uint64, private bool) {
	u := c.shared[offUnion:]
	flags := binary.LittleEndian.Uint64(u)
	return binary.LittleEndian.Uint64(u[8:]), binary.LittleEndian.Uint64(u[16:]), flags&MemoryPrivate != 0
}

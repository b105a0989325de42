package cca_test

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"github.com/gvmm/gvmm/cca/rmm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// cpu is a vCPU with the calls that the monitor has on arm64 only.
type cpu struct {
	*kvm.VCPU
	k *rmm.Kernel
}

func ioctl(k *rmm.Kernel, fd int, request uintptr, arg []byte) error {
	_, err := k.Ioctl(fd, request, unsafe.Pointer(unsafe.SliceData(arg)))
	return err
}

func (c cpu) Init(target, features uint32) error {
	b := make([]byte, 32)
	binary.LittleEndian.PutUint32(b, target)
	binary.LittleEndian.PutUint32(b[4:], features)
	return ioctl(c.k, c.FD(), 0x4020aeae, b)
}

func (c cpu) Finalize(feature int32) error {
	return ioctl(c.k, c.FD(), 0x4004aec2, binary.LittleEndian.AppendUint32(nil, uint32(feature)))
}

// makeGIC creates and initializes the interrupt controller of a VM.
func makeGIC(k *rmm.Kernel, vm int) error {
	b := make([]byte, 12)
	b[0] = 7
	if err := ioctl(k, vm, 0xc00caee0, b); err != nil {
		return err
	}
	fd := int(binary.LittleEndian.Uint32(b[4:]))
	attr := make([]byte, 24)
	attr[4] = 4
	return errors.Join(ioctl(k, fd, 0x4018aee1, attr), k.Close(fd))
}

//go:build amd64

package kvm

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Machine type, capabilities, device attributes and exits of SEV-SNP
// (arch/x86/include/uapi/asm/kvm.h).
const (
	VMTypeSNP = 4 // KVM_X86_SNP_VM

	CapExitHypercall = 201 // its argument: a bit for each hypercall
	HypercallMapGPA  = 12  // KVM_HC_MAP_GPA_RANGE
	MapGPAEncrypted  = 1 << 4

	GroupSEV        = 1 // KVM_X86_GRP_SEV, of /dev/kvm
	SEVVMSAFeatures = 0
	SEVPolicyBits   = 1
	SEVReqCerts     = 2

	ExitHypercall   = 3
	ExitSNPReqCerts = 43
)

type sevCmd struct {
	id, _ uint32
	data  unsafe.Pointer
	err   uint32
	sevFD uint32
}

// SEVError is a KVM_MEMORY_ENCRYPT_OP that failed.
type SEVError struct {
	Command  string
	Firmware uint32 // what the secure processor said, 0 if it was not it that refused
	Err      error
}

func (e *SEVError) Error() string {
	return fmt.Sprintf("%s: %v (firmware error %#x)", e.Command, e.Err, e.Firmware)
}

func (e *SEVError) Unwrap() error { return e.Err }

// SEV is an open /dev/sev and the VM that it serves. KVM uses the descriptor for
// as long as the VM lives.
type SEV struct {
	file
	vm *VM
}

// SEVPath is the secure processor's device node.
const SEVPath = "/dev/sev"

// OpenSEV opens the secure processor for the VM, which is of [VMTypeSNP].
func (v *VM) OpenSEV() (*SEV, error) {
	fd, err := v.k.Open(SEVPath)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", SEVPath, err)
	}
	return &SEV{file{v.k, fd}, v}, nil
}

// command issues a command (KVM_MEMORY_ENCRYPT_OP, enum sev_cmd_id); errors are
// [SEVError]s.
func (s *SEV) command(name string, id uint32, data unsafe.Pointer) error {
	c := &sevCmd{id: id, data: data, sevFD: uint32(s.fd)}
	if _, err := s.k.Ioctl(s.vm.fd, gokvm.IIOWR(0xba, 8), unsafe.Pointer(c)); err != nil {
		return &SEVError{name, c.err, err}
	}
	return nil
}

// Init makes the VM an SNP guest, before it has vCPUs. features are SEV_FEATURES
// besides bit 0 (KVM_SEV_INIT2).
func (s *SEV) Init(features uint64) error {
	return s.command("KVM_SEV_INIT2", 22, unsafe.Pointer(&struct { // kvm_sev_init
		features uint64
		_        [5]uint64
	}{features: features}))
}

// EnableReqCerts has the guest's requests for certificates come as
// [ExitSNPReqCerts] (KVM_SEV_SNP_ENABLE_REQ_CERTS).
func (s *SEV) EnableReqCerts() error { return s.command("KVM_SEV_SNP_ENABLE_REQ_CERTS", 103, nil) }

// Start begins the launch under a guest policy (KVM_SEV_SNP_LAUNCH_START).
func (s *SEV) Start(policy uint64) error {
	return s.command("KVM_SEV_SNP_LAUNCH_START", 100, unsafe.Pointer(&struct { // kvm_sev_snp_launch_start
		policy uint64
		_      [7]uint64
	}{policy: policy}))
}

// Update launches size bytes at gpa, whole private pages, as pages of a type of
// package sev (KVM_SEV_SNP_LAUNCH_UPDATE). Their bytes are those of src, which is
// page-aligned, no memory of Go's, and nil for zero pages. done are the bytes
// launched: fewer where KVM wants the rest in another call.
func (s *SEV) Update(kind uint8, gpa, size uint64, src []byte) (done uint64, err error) {
	u := &struct { // kvm_sev_snp_launch_update
		gfn   uint64
		uaddr unsafe.Pointer
		size  uint64
		kind  uint8
		_     [5]uint64
	}{gfn: gpa >> 12, uaddr: unsafe.Pointer(unsafe.SliceData(src)), size: size, kind: kind}
	err = s.command(fmt.Sprintf("KVM_SEV_SNP_LAUNCH_UPDATE at %#x", gpa), 101, unsafe.Pointer(u))
	return min(u.gfn<<12-gpa, size), err
}

// LaunchEnd is what the end of a launch carries.
type LaunchEnd struct {
	IDBlock, IDAuth []byte // 96 and 4096 bytes, or nil
	AuthorKey       bool   // IDAuth has one
	VCEKDisabled    bool
	HostData        [32]byte
}

// Finish measures every vCPU and ends the launch (KVM_SEV_SNP_LAUNCH_FINISH).
func (s *SEV) Finish(e *LaunchEnd) error {
	return s.command("KVM_SEV_SNP_LAUNCH_FINISH", 102, unsafe.Pointer(&struct { // kvm_sev_snp_launch_finish
		idBlock, idAuth                   unsafe.Pointer
		hasBlock, hasAuthor, vcekDisabled bool
		hostData                          [32]byte
		_                                 [5]byte
		_                                 [4]uint64
	}{
		idBlock: unsafe.Pointer(unsafe.SliceData(e.IDBlock)), idAuth: unsafe.Pointer(unsafe.SliceData(e.IDAuth)),
		hasBlock: e.IDBlock != nil, hasAuthor: e.AuthorKey, vcekDisabled: e.VCEKDisabled, hostData: e.HostData,
	}))
}

// SNPStatus is struct sev_user_data_snp_status.
type SNPStatus struct {
	Major, Minor, State, RMPInit uint8 // RMPInit: bit 0
	Build, Flags, Guests         uint32
	TCB, ReportedTCB             uint64
}

// PlatformStatus asks the secure processor for its firmware's level
// (SNP_PLATFORM_STATUS on /dev/sev).
func (s *System) PlatformStatus() (*SNPStatus, error) {
	fd, err := s.k.Open(SEVPath)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", SEVPath, err)
	}
	defer func() { _ = s.k.Close(fd) }()
	status := &SNPStatus{}
	p := uintptr(unsafe.Pointer(status))
	c := &[4]uint32{9, uint32(p), uint32(p >> 32)}                         // struct sev_issue_cmd, packed: command, pointer, error
	if _, err = s.k.Ioctl(fd, 0xc0105300, unsafe.Pointer(c)); err != nil { // _IOWR('S', 0, struct sev_issue_cmd)
		return nil, &SEVError{"SNP_PLATFORM_STATUS", c[3], err}
	}
	return status, nil
}

// Hypercall returns a KVM_EXIT_HYPERCALL.
func (c *VCPU) Hypercall() (nr uint64, args [6]uint64) {
	u := c.shared[offUnion:]
	for i := range args {
		args[i] = binary.LittleEndian.Uint64(u[8+8*i:])
	}
	return binary.LittleEndian.Uint64(u), args
}

// SetHypercallResult answers a KVM_EXIT_HYPERCALL.
func (c *VCPU) SetHypercallResult(v uint64) { binary.LittleEndian.PutUint64(c.shared[offUnion+56:], v) }

// SNPReqCerts returns a KVM_EXIT_SNP_REQ_CERTS: where the guest wants the
// certificates, and how many pages it has there.
func (c *VCPU) SNPReqCerts() (gpa, pages uint64) {
	u := c.shared[offUnion:]
	return binary.LittleEndian.Uint64(u), binary.LittleEndian.Uint64(u[8:])
}

// SetSNPReqCerts answers a KVM_EXIT_SNP_REQ_CERTS: 0, or an errno; with ENOSPC
// pages is what the guest needs.
func (c *VCPU) SetSNPReqCerts(errno, pages uint64) {
	u := c.shared[offUnion:]
	binary.LittleEndian.PutUint64(u[8:], pages)
	binary.LittleEndian.PutUint64(u[16:], errno)
}

package memory

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

func mapAnonymous(size uint64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

func unmap(b []byte) error {
	if b == nil {
		return nil
	}
	return unix.Munmap(b)
}

// discard gives back the memory behind whole pages, which read as zeros then.
func discard(b []byte) error { return unix.Madvise(b, unix.MADV_DONTNEED) }

// HostAddr returns the host virtual address of the region, as KVM wants it in
// a memslot (KVM_SET_USER_MEMORY_REGION, userspace_addr).
func (r *Region) HostAddr() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(r.host))) }

// Load16 reads a 16-bit little-endian word of guest memory that the guest may
// be writing on another processor. Nothing the caller reads afterwards is read
// before it (acquire). b must hold at least two bytes and start at an even address.
func Load16(b []byte) uint16 {
	_ = b[1]
	return loadAcquire16((*uint16)(unsafe.Pointer(unsafe.SliceData(b))))
}

// Store16 writes a 16-bit word that the guest may be reading. Everything the
// caller wrote before is visible to whoever sees it (release). b as in [Load16].
func Store16(b []byte, v uint16) {
	_ = b[1]
	storeRelease16((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), v)
}

//go:noescape
func loadAcquire16(p *uint16) uint16

//go:noescape
func storeRelease16(p *uint16, v uint16)

// Fence is a full memory barrier: a store before it is visible to the guest
// before any load behind it is made (virtio 1.3 2.7.13.4.1 needs this between
// enabling notifications and looking at the ring once more).
func Fence()

//go:build amd64

package vmm

import (
	"encoding/binary"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev/psp"
)

const encryptOp = 0xc008aeba

// seam stands between the monitor and the software PSP: it remembers requests and
// spoils some.
type seam struct {
	*psp.Kernel
	interrupts int // LAUNCH_UPDATEs that fail as a signal makes them fail

	mu       sync.Mutex
	requests []uint32 // of KVM_MEMORY_ENCRYPT_OP the command
	opened   []string
	held     func() bool // called at a KVM_RUN, reports what certsHeld becomes
	certs    []bool
}

func (s *seam) note(v uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, v)
}

func (s *seam) Open(path string) (int, error) {
	s.mu.Lock()
	s.opened = append(s.opened, path)
	s.mu.Unlock()
	return s.Kernel.Open(path)
}

func (s *seam) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	if request != encryptOp {
		s.note(uint32(request))
		return s.Kernel.Ioctl(fd, request, arg)
	}
	id := binary.LittleEndian.Uint32((*[4]byte)(arg)[:])
	s.note(id)
	s.mu.Lock()
	spoil := id == 101 && s.interrupts > 0
	if spoil {
		s.interrupts--
	}
	s.mu.Unlock()
	if spoil {
		return -1, unix.EIO
	}
	return s.Kernel.Ioctl(fd, request, arg)
}

func (s *seam) Call(fd int, request, arg uintptr) (int, error) {
	if request != 0xae80 {
		s.note(uint32(request))
	} else if s.held != nil {
		s.mu.Lock()
		s.certs = append(s.certs, s.held())
		s.mu.Unlock()
	}
	return s.Kernel.Call(fd, request, arg)
}

//go:build amd64 || arm64

package vmm

import (
	"fmt"
	"sync"

	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// privateMemory is the memory of a confidential guest that only it reaches.
type privateMemory struct {
	mu  sync.Mutex        // held while pages convert
	fds []*kvm.GuestMemFD // one a region of memory; none for a plain guest

	tell func(gpa, size, attributes uint64) error // KVM what is private; nil: by its VM
}

// addMemory gives KVM a region of memory, before there is an interrupt controller.
// All of a confidential guest's is private at first.
func (m *VM) addMemory(slot int, r *memory.Region) error {
	if !m.mem.Confidential() {
		return m.kvm.SetMemory(uint32(slot), uint64(r.Base), r.Size, r.HostAddr())
	}
	fd, err := m.kvm.CreateGuestMemFD(r.Size)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, fd)
	if m.private.tell == nil {
		m.private.tell = m.kvm.SetMemoryAttributes
	}
	m.private.fds = append(m.private.fds, fd)
	if err := m.kvm.SetPrivateMemory(uint32(slot), uint64(r.Base), r.Size, r.HostAddr(), fd); err != nil {
		return err
	}
	return m.private.tell(uint64(r.Base), r.Size, kvm.MemoryPrivate)
}

// convert makes pages of a confidential guest private or shared and gives back
// what the other side had there: a guest that converts to and fro cannot make the
// host hold its memory twice.
func (m *VM) convert(r memory.Range, private bool) error {
	slot, err := m.mem.Find(r)
	if err != nil {
		return err
	}
	m.private.mu.Lock()
	defer m.private.mu.Unlock()
	if private {
		if err := m.mem.Convert(r, true); err != nil {
			return err
		}
		return m.private.tell(uint64(r.Base), r.Size, kvm.MemoryPrivate)
	}
	if err := m.private.tell(uint64(r.Base), r.Size, 0); err != nil {
		return err
	}
	if err := m.private.fds[slot].Discard(uint64(r.Base-m.mem.Regions()[slot].Base), r.Size); err != nil {
		return err
	}
	return m.mem.Convert(r, false)
}

// memoryFault serves a KVM_EXIT_MEMORY_FAULT: the guest uses memory as what it is
// not, and thereby asks for its conversion.
func (c *vcpu) memoryFault(rec *exitRecord) *Outcome {
	gpa, size, private := c.MemoryFault()
	rec.addr, rec.write = gpa, private
	if size == 0 && c.vm.cfg.Realm != nil {
		return nil // a realm's request of which KVM, short of memory, did nothing: it is made again
	}
	err := fmt.Errorf("KVM cannot reach the memory behind it")
	if c.vm.private.fds != nil {
		err = c.vm.convert(memory.Range{Base: c.vm.mem.Strip(memory.GPA(gpa)), Size: size}, private)
	}
	if err == nil {
		return nil
	}
	side := "shared"
	if private {
		side = "private"
	}
	o := c.crash(fmt.Sprintf("memory fault at %#x, used as %s memory: %v", gpa, side, err))
	return &o
}

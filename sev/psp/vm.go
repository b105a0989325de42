package psp

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Machine is a VM, and the guest context that the firmware keeps of it.
type Machine struct {
	k    *Kernel
	kind uint64

	slots   map[uint64]*slot
	private map[uint64]bool // page numbers whose attribute is private
	irqchip bool
	keepCD  bool   // the quirk CD_NW_CLEARED was disabled
	exits   uint64 // hypercalls that go to user space
	cpus    []*cpu

	guest
}

// slot is a memory slot.
type slot struct {
	first, pages uint64
	host         uint64 // address of the shared half
	mem          *memFD // the private half, if any
	offset       uint64 // in mem, pages
}

// memFD is a guest_memfd.
type memFD struct {
	m     *Machine
	fd    int
	pages uint64
	owned map[uint64]Page // by page of the file: what the guest owns (the RMP)
}

// Page is a page that the guest owns.
type Page struct {
	GPA  uint64
	Type uint8 // as launched; 0: it became private while the guest ran
}

func (g *memFD) ioctl(uint32, uint64, []byte) (int, error) { return 0, unix.ENOTTY }
func (g *memFD) close()                                    {}

func (g *memFD) punch(offset, size uint64) error {
	for p := range g.owned {
		if p*pageSize >= offset && p*pageSize < offset+size {
			delete(g.owned, p)
		}
	}
	return unix.Fallocate(g.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(offset), int64(size))
}

func (k *Kernel) createMachine(kind uint64) (int, error) {
	if kind != typeDefault && (kind != typeSNP || k.opt.NoSNP) {
		return 0, unix.EINVAL
	}
	return k.newFile("kvm-vm", 0, func(int) (file, error) {
		m := &Machine{k: k, kind: kind, slots: map[uint64]*slot{}, private: map[uint64]bool{}}
		k.machines = append(k.machines, m)
		return m, nil
	})
}

func (m *Machine) close() {}

func (m *Machine) ioctl(request uint32, arg uint64, b []byte) (int, error) {
	switch request {
	case reqCheckExtension:
		return m.k.extension(arg, m), nil
	case reqSetMemory:
		return 0, m.setMemory(append(b, make([]byte, 160-len(b))...), 0)
	case reqSetMemory2:
		return 0, m.setMemory(b, 1<<2)
	case reqSetMemoryAttrs:
		return 0, m.setAttributes(b)
	case reqCreateGuestMemFD:
		return m.createMemFD(b)
	case reqEnableCap:
		return 0, m.enableCap(b)
	case reqCreateVCPU:
		return m.createCPU(arg)
	case reqMemoryEncryptOp:
		return 0, m.encryptOp(arg)
	case reqCreateIRQChip:
		if m.irqchip || len(m.cpus) > 0 {
			return 0, unix.EEXIST
		}
		m.irqchip = true
		return 0, nil
	case reqCreatePIT2, reqIRQLine, reqIRQFD, reqSignalMSI, reqGSIRouting:
		if !m.irqchip {
			return 0, unix.ENXIO
		}
		return 0, nil
	case reqSetTSSAddr, reqSetIdentityMap, reqIOEventFD:
		return 0, nil
	}
	return 0, unix.ENOTTY
}

// setMemory is KVM_SET_USER_MEMORY_REGION2, and the older call with its tail
// zero (kvm_set_memory_region). flags are those the call knows besides dirty
// logging.
func (m *Machine) setMemory(b []byte, known uint64) error {
	id, flags, gpa, size, host := get(b, 0, 4), get(b, 4, 4), get(b, 8, 8), get(b, 16, 8), get(b, 24, 8)
	offset, private := get(b, 32, 8), flags&known&(1<<2) != 0
	known |= 1
	if private {
		if m.kind != typeSNP {
			return unix.EINVAL
		}
		known &^= 1
	} else if m.kind != typeSNP {
		known |= 2 // read-only: not where state is protected
	}
	old := m.slots[id]
	switch {
	case flags&^known != 0, id >= 32764, (gpa|size|host)%pageSize != 0, gpa+size < gpa, host+size < host,
		private && (offset%pageSize != 0 || offset+size < offset):
		return unix.EINVAL
	case size == 0:
		if old == nil {
			return unix.EINVAL
		}
		delete(m.slots, id)
		return nil
	case old != nil && (private || old.mem != nil): // such slots are only deleted
		return unix.EINVAL
	}
	s := &slot{first: gpa / pageSize, pages: size / pageSize, host: host, offset: offset / pageSize}
	if old != nil && (old.pages != s.pages || old.host != host) {
		return unix.EINVAL
	}
	for i, o := range m.slots {
		if i != id && s.first < o.first+o.pages && o.first < s.first+s.pages || private && o.mem != nil && o.mem.fd == int(get(b, 40, 4)) && s.offset < o.offset+o.pages && o.offset < s.offset+s.pages {
			return unix.EEXIST
		}
	}
	if private {
		g, ok := m.k.files[int(get(b, 40, 4))].(*memFD)
		if !ok || g.m != m || s.offset+s.pages > g.pages {
			return unix.EINVAL
		}
		s.mem = g
	}
	m.slots[id] = s
	return nil
}

// createMemFD is KVM_CREATE_GUEST_MEMFD.
func (m *Machine) createMemFD(b []byte) (int, error) {
	size := get(b, 0, 8)
	if size == 0 || size%pageSize != 0 || int64(size) < 0 || m.kind == typeSNP && get(b, 8, 8) != 0 {
		return 0, unix.EINVAL // nor may private memory be mapped
	}
	return m.k.newFile("kvm-gmem", int64(size), func(fd int) (file, error) {
		return &memFD{m: m, fd: fd, pages: size / pageSize, owned: map[uint64]Page{}}, nil
	})
}

// maxAttributes bounds the bytes of one call: this model keeps a note of each page.
const maxAttributes = 1 << 36

// setAttributes is KVM_SET_MEMORY_ATTRIBUTES.
func (m *Machine) setAttributes(b []byte) error {
	gpa, size, attrs := get(b, 0, 8), get(b, 8, 8), get(b, 16, 8)
	if get(b, 24, 8) != 0 || m.kind != typeSNP || attrs&^attrPrivate != 0 || size == 0 || gpa+size < gpa || (gpa|size)%pageSize != 0 {
		return unix.EINVAL
	}
	if size > maxAttributes {
		return unix.ENOMEM
	}
	for p := gpa / pageSize; p < (gpa+size)/pageSize; p++ {
		if attrs != 0 {
			m.private[p] = true
		} else {
			delete(m.private, p)
		}
	}
	return nil
}

func (m *Machine) enableCap(b []byte) error {
	switch number, flags, arg := get(b, 0, 4), get(b, 4, 4), get(b, 8, 8); {
	case flags != 0:
		return unix.EINVAL
	case number == capExitHypercall:
		if arg&^(1<<hcMapGPARange) != 0 {
			return unix.EINVAL
		}
		m.exits = arg
	case number == 121: // SPLIT_IRQCHIP
		if m.irqchip || len(m.cpus) > 0 {
			return unix.EEXIST
		}
		m.irqchip = true
	case number == 116: // DISABLE_QUIRKS; 2: CD_NW_CLEARED
		m.keepCD = arg&2 != 0
	default:
		return unix.EINVAL
	}
	return nil
}

// find returns the slot of a page.
func (m *Machine) find(page uint64) *slot {
	for _, s := range m.slots {
		if page >= s.first && page < s.first+s.pages {
			return s
		}
	}
	return nil
}

// Private returns whether the page at gpa has the private attribute.
func (m *Machine) Private(gpa uint64) bool {
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	return m.private[gpa/pageSize]
}

// Owned returns the pages that the guest owns, by address: those that were
// launched or became private and whose memory was not given back.
func (m *Machine) Owned() []Page {
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	var pages []Page
	for _, s := range m.slots {
		if s.mem != nil {
			for at, p := range s.mem.owned {
				if at >= s.offset && at < s.offset+s.pages {
					pages = append(pages, p)
				}
			}
		}
	}
	slices.SortFunc(pages, func(a, b Page) int { return int(int64(a.GPA) - int64(b.GPA)) })
	return pages
}

// SharedResident returns whether the host's memory behind the shared page at gpa
// takes up room.
func (m *Machine) SharedResident(gpa uint64) (bool, error) {
	m.k.mu.Lock()
	s := m.find(gpa / pageSize)
	m.k.mu.Unlock()
	if s == nil {
		return false, fmt.Errorf("no memory at %#x", gpa)
	}
	return resident(s.host + gpa - s.first*pageSize)
}

// resident looks a page of this process up in its page map.
func resident(addr uint64) (bool, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return false, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(addr/pageSize*8)); err != nil {
		return false, err
	}
	return b[7]&0xc0 != 0, nil // present or swapped
}

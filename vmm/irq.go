//go:build amd64 || arm64

package vmm

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// irqLines holds the level-triggered interrupt inputs that devices share.
type irqLines struct {
	mu     sync.Mutex
	levels map[uint32]*sharedLevel
	soft   func(gsi uint32, asserted bool) // an interrupt controller outside KVM; nil: it is in KVM
}

// setIRQ drives an interrupt input.
func (m *VM) setIRQ(gsi uint32, asserted bool) {
	if m.irqs.soft != nil {
		m.irqs.soft(gsi, asserted)
		return
	}
	// The ioctl fails only for a VM without an interrupt controller.
	_ = m.kvm.SetIRQ(irqInput(gsi), asserted)
}

// pulse is an edge-triggered input of a controller outside KVM.
type pulse func(asserted bool)

func (p pulse) Raise() { p(true); p(false) }
func (p pulse) Lower() {}

// host is the machine as a device sees it.
type host struct {
	m         *VM
	requester uint32 // its PCI requester ID, which a GIC's ITS asks for
}

var _ devices.Machine = host{}

func (h host) Memory() *memory.Guest { return h.m.mem }

func (h host) ioEvent(fd int, k devices.Kick) kvm.IOEventFD {
	e := kvm.IOEventFD{Addr: k.Addr, Len: uint32(k.Width), FD: int32(fd)}
	if k.Match {
		e.Flags |= kvm.IOEventMatch
		e.DataMatch = k.Value
	}
	if k.Port {
		h.m.atPort(&e)
	}
	return e
}

func (h host) AttachKick(fd int, k devices.Kick) error { return h.m.kvm.IOEventFD(h.ioEvent(fd, k)) }

func (h host) DetachKick(fd int, k devices.Kick) error {
	e := h.ioEvent(fd, k)
	e.Flags |= kvm.IOEventDeassign
	return h.m.kvm.IOEventFD(e)
}

func (h host) SignalMSI(addr uint64, data uint32) error {
	return h.m.kvm.SignalMSI(kvm.MSI{
		AddrLo: uint32(addr), AddrHi: uint32(addr >> 32), Data: data, Flags: msiFlags, DevID: h.requester,
	})
}

// edgeLine raises an interrupt by writing an irqfd: KVM pulses the input.
type edgeLine struct{ fd int }

func (l *edgeLine) Raise() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// A full counter cannot happen: KVM drains it. Nothing else can fail.
	_, _ = unix.Write(l.fd, one[:])
}

func (l *edgeLine) Lower() {}

func (l *edgeLine) Close() error { return unix.Close(l.fd) }

func (h host) EdgeLine(gsi uint32) (devices.Line, error) {
	if soft := h.m.irqs.soft; soft != nil {
		return pulse(func(asserted bool) { soft(gsi, asserted) }), nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("interrupt line %d: eventfd: %w", gsi, err)
	}
	l := &edgeLine{fd}
	h.m.closers = append(h.m.closers, l)
	if err := h.m.kvm.IRQFD(kvm.IRQFD{FD: uint32(fd), GSI: gsi}); err != nil {
		return nil, fmt.Errorf("interrupt line %d: %w", gsi, err)
	}
	return l, nil
}

// sharedLevel is one level-triggered input: asserted while any holder raises it.
type sharedLevel struct {
	vm  *VM
	gsi uint32

	mu     sync.Mutex
	raised int
}

func (s *sharedLevel) change(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.raised > 0
	s.raised += by
	if now := s.raised > 0; now != was {
		s.vm.setIRQ(s.gsi, now)
	}
}

// levelLine is one device's hold of a sharedLevel.
type levelLine struct {
	shared *sharedLevel

	mu     sync.Mutex
	raised bool
}

func (l *levelLine) set(raised bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raised == raised {
		return
	}
	l.raised = raised
	if raised {
		l.shared.change(1)
	} else {
		l.shared.change(-1)
	}
}

func (l *levelLine) Raise() { l.set(true) }
func (l *levelLine) Lower() { l.set(false) }

func (h host) LevelLine(gsi uint32) (devices.Line, error) {
	lines := &h.m.irqs
	lines.mu.Lock()
	defer lines.mu.Unlock()
	if lines.levels == nil {
		lines.levels = map[uint32]*sharedLevel{}
	}
	s := lines.levels[gsi]
	if s == nil {
		s = &sharedLevel{vm: h.m, gsi: gsi}
		lines.levels[gsi] = s
	}
	return &levelLine{shared: s}, nil
}

package rmm

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

const page, private, runSize = 4096, 1 << 3, 0x2000

// span is a range [lo, hi).
type span struct{ lo, hi uint64 }

func (s span) has(o span) bool { return s.lo <= o.lo && o.hi <= s.hi }

// spanAt is the base and size at the start of b.
func spanAt(b []byte) span { return span{le.Uint64(b), le.Uint64(b) + le.Uint64(b[8:])} }

var le = binary.LittleEndian

// system is /dev/kvm.
type system struct{ k *Kernel }

// Numbers of requests (include/uapi/linux/kvm.h). Those with a structure are
// compared whole where versions of the series differ in them.
const (
	nrVersion, nrCreateVM, nrCheck, nrMmapSize, nrCreateVCPU        = 0x00, 0x01, 0x03, 0x04, 0x41
	nrSlot, nrSlot2, nrGuestMemFD, nrAttributes                     = 0x46, 0x49, 0xd4, 0xd2
	nrIRQLine, nrRouting, nrIRQFD, nrIOEventFD, nrSignalMSI         = 0x61, 0x6a, 0x76, 0x79, 0xa5
	nrRun, nrEnableCap, nrGetReg, nrSetReg, nrInit, nrTarget        = 0x80, 0xa3, 0xab, 0xac, 0xae, 0xaf
	nrFinalize, nrDevice, nrSetAttr, nrHasAttr                      = 0xc2, 0xe0, 0xe1, 0xe3
	populateIn, populateInOut                                uint32 = 0x4020aed7, 0xc020aed7 // _IOW and _IOWR, 32 bytes
)

func (s *system) ioctl(request uint32, arg uint64) (int, error) {
	switch request & 0xff {
	case nrVersion:
		return 12, nil
	case nrCheck:
		return s.k.check(int(arg), false), nil
	case nrMmapSize:
		return runSize, nil
	case nrCreateVM:
		return s.create(arg)
	}
	return 0, unix.ENOTTY
}

func (s *system) create(kind uint64) (int, error) {
	v := &vm{k: s.k, bits: int(kind & 0xff), slots: map[uint32]slot{}}
	switch kind >> 8 {
	case 0:
	case 1:
		if s.k.rules.realms != 0 {
			return 0, s.k.rules.realms
		}
		v.realm = newRealm(v.bits, s.k.rules.version)
	default:
		return 0, unix.EINVAL
	}
	if v.bits != 0 && (v.bits < 32 || v.bits > s.k.opt.IPALimit) {
		return 0, unix.EINVAL
	}
	return s.k.newFile(v)
}

// vm is a virtual machine.
type vm struct {
	k     *Kernel
	bits  int
	realm *realm // nil for a plain one
	slots map[uint32]slot
	cpus  []*vcpu
	gic   bool   // initialized
	attrs []span // private, in no order
}

type slot struct {
	span
	host uint64 // address of the shared side
	gmem *gmem  // nil: none
}

// gmem is a guest_memfd.
type gmem struct {
	size  uint64
	holes []span
}

func (g *gmem) ioctl(uint32, uint64) (int, error) { return 0, unix.ENOTTY }

func (v *vm) ioctl(request uint32, arg uint64) (int, error) {
	if request == populateIn || request == populateInOut {
		return v.populateNow(request, arg)
	}
	switch request & 0xff {
	case nrCheck:
		return v.k.check(int(arg), v.realm != nil), nil
	case nrCreateVCPU:
		c := &vcpu{vm: v, id: int(arg), regs: map[uint64]uint64{pmcr: 6 << 11}, sve: 0xf}
		v.cpus = append(v.cpus, c)
		return v.k.newFile(c)
	case nrSlot:
		return 0, v.addSlot(at(arg, 32), nil)
	case nrSlot2:
		b := at(arg, 160)
		g, ok := v.k.files[int(le.Uint32(b[40:]))].(*gmem)
		if !ok || le.Uint32(b[4:]) != 1<<2 || le.Uint64(b[32:])+le.Uint64(b[16:]) > g.size {
			return 0, unix.EINVAL
		}
		return 0, v.addSlot(b, g)
	case nrGuestMemFD:
		b := at(arg, 64)
		if size := le.Uint64(b); size != 0 && size%page == 0 && le.Uint64(b[8:]) == 0 {
			return v.k.newFile(&gmem{size: size})
		}
		return 0, unix.EINVAL
	case nrAttributes:
		if v.k.rules.gmem || v.realm == nil {
			return 0, unix.ENOTTY
		}
		return 0, v.setAttributes(at(arg, 32))
	case nrEnableCap:
		b := at(arg, 104)
		if v.realm == nil || !v.k.rules.explicit || int(le.Uint32(b)) != v.k.rules.cap || le.Uint32(b[4:]) != 0 {
			return 0, unix.EINVAL
		}
		return 0, v.action(le.Uint64(b[8:]), le.Uint64(b[16:]))
	case nrTarget:
		le.PutUint32(at(arg, 32), 5) // KVM_ARM_TARGET_GENERIC_V8
		return 0, nil
	case nrDevice:
		return 0, v.device(at(arg, 12))
	case nrIRQLine, nrRouting, nrIRQFD, nrIOEventFD, nrSignalMSI:
		return 0, nil
	}
	return 0, unix.ENOTTY
}

func (v *vm) addSlot(b []byte, g *gmem) error {
	s := slot{spanAt(b[8:]), le.Uint64(b[24:]), g}
	if s.lo >= s.hi || (s.lo|s.hi|s.host)&(page-1) != 0 || v.realm != nil && s.hi > v.realm.shared() {
		return unix.EINVAL
	}
	v.slots[le.Uint32(b)] = s
	return nil
}

func (v *vm) setAttributes(b []byte) error {
	r := spanAt(b)
	a := le.Uint64(b[16:])
	if a&^private != 0 || le.Uint64(b[24:]) != 0 || r.lo >= r.hi || (r.lo|r.hi)&(page-1) != 0 {
		return unix.EINVAL
	}
	var left []span
	for _, s := range v.attrs {
		for _, p := range []span{{s.lo, min(s.hi, r.lo)}, {max(s.lo, r.hi), s.hi}} {
			if p.lo < p.hi {
				left = append(left, p)
			}
		}
	}
	if v.attrs = left; a != 0 {
		v.attrs = append(v.attrs, r)
	}
	return nil
}

// isPrivate reports whether all of a range is.
func (v *vm) isPrivate(r span) bool {
	for lo := r.lo; lo < r.hi; {
		i := slices.IndexFunc(v.attrs, func(s span) bool { return s.lo <= lo && lo < s.hi })
		if i < 0 {
			return false
		}
		lo = v.attrs[i].hi
	}
	return true
}

// slotOf returns the slot that all of a range lies in.
func (v *vm) slotOf(r span) (slot, bool) {
	for _, s := range v.slots {
		if s.has(r) {
			return s, true
		}
	}
	return slot{}, false
}

const deviceGICv3, deviceITS = 7, 8

func (v *vm) device(b []byte) error {
	kind := le.Uint32(b)
	if kind != deviceGICv3 && kind != deviceITS {
		return unix.ENODEV
	}
	if le.Uint32(b[8:])&1 != 0 { // KVM_CREATE_DEVICE_TEST
		return nil
	}
	fd, err := v.k.newFile(&device{v, kind})
	le.PutUint32(b[4:], uint32(fd))
	return err
}

// device is an interrupt controller.
type device struct {
	vm   *vm
	kind uint32
}

func (d *device) ioctl(request uint32, arg uint64) (int, error) {
	if nr := request & 0xff; nr != nrSetAttr && nr != nrHasAttr {
		return 0, unix.ENOTTY
	}
	if b := at(arg, 24); request&0xff == nrSetAttr && d.kind == deviceGICv3 && le.Uint32(b[4:]) == 4 {
		d.vm.gic = true
	}
	return 0, nil
}

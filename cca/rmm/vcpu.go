package rmm

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Features of a vCPU, and registers by their ids (KVM_ARM_VCPU_*, KVM_REG_*).
const (
	featurePSCI, featurePMU, featureSVE = 2, 3, 4

	regX0, regX7, regPC = 0x6030000000100000, regX0 + 14, regX0 + 64
	pmcr, dfr0, sveVLS  = 0x603000000013dce0, 0x603000000013c028, 0x606000000015ffff
)

type vcpu struct {
	vm  *vm
	id  int
	run []byte

	features uint32
	inited   bool
	regs     map[uint64]uint64
	sve      uint64 // vector lengths, a bit for each multiple of 128 bits
	finalSVE bool
	rec      bool

	step int
	span span // the conversion that the realm asked for
	to   bool // private
}

func (c *vcpu) has(feature int) bool { return c.features>>feature&1 != 0 }

func (c *vcpu) ioctl(request uint32, arg uint64) (int, error) {
	switch request & 0xff {
	case nrRun:
		return 0, c.enter()
	case nrInit:
		return 0, c.init(le.Uint32(at(arg, 32)[4:]))
	case nrGetReg, nrSetReg:
		b := at(arg, 16)
		return 0, c.register(le.Uint64(b), le.Uint64(b[8:]), request&0xff == nrSetReg)
	case nrFinalize:
		return 0, c.finalize(int(le.Uint32(at(arg, 4))))
	case nrSetAttr, nrHasAttr:
		return 0, nil
	}
	return 0, unix.ENOTTY
}

func (c *vcpu) init(features uint32) error {
	r := c.vm.k.rules
	known := uint32(1)<<7 - 1
	if r.needs && c.vm.realm != nil {
		known |= 1 << r.feature
	}
	if features&^known != 0 {
		return unix.ENOENT
	}
	if c.inited && features != c.features {
		return unix.EINVAL
	}
	c.features, c.inited = features, true
	return nil
}

func (c *vcpu) register(id, addr uint64, set bool) error {
	switch {
	case !c.inited:
		return unix.ENOEXEC
	case id == sveVLS:
		if !c.has(featureSVE) || set && c.finalSVE {
			return unix.EPERM
		}
		b := at(addr, 64)
		if !set {
			clear(b)
			le.PutUint64(b, c.sve)
			return nil
		}
		have := uint64(0xf) // up to 512 bits, and all that are shorter
		if n := le.Uint64(b); n == 0 || n&(n+1) != 0 || n&^have != 0 {
			return unix.EINVAL
		}
		c.sve = le.Uint64(b)
	case !set:
		le.PutUint64(at(addr, 8), c.regs[id])
	case c.vm.realm != nil && (id < regX0 || id > regX7) && id != regPC && id != pmcr && id != dfr0:
		return unix.EINVAL // of a realm's registers no others are the host's to set
	default:
		c.regs[id] = le.Uint64(at(addr, 8))
	}
	return nil
}

func (c *vcpu) finalize(feature int) error {
	r := c.vm.k.rules
	switch {
	case !c.inited:
		return unix.ENOEXEC
	case feature == featureSVE && c.has(featureSVE):
		if c.finalSVE {
			return unix.EPERM
		}
		c.finalSVE = true
		return nil
	case r.explicit && feature == r.feature && c.vm.realm != nil && (!r.needs || c.has(feature)):
		if c.vm.realm.state != stateNew {
			return unix.ENOENT
		}
		return c.createREC()
	}
	return unix.EINVAL
}

func (c *vcpu) createREC() error {
	if c.rec {
		return unix.EBUSY
	}
	if !c.has(featurePSCI) {
		return unix.EINVAL
	}
	var gprs [8]uint64
	for i := range gprs {
		gprs[i] = c.regs[regX0+2*uint64(i)]
	}
	if err := c.vm.realm.addREC(c.id, c.regs[regPC], gprs); err != nil {
		return err
	}
	c.rec = true
	return nil
}

// Exit reasons and offsets in struct kvm_run.
const (
	exitMMIO, exitEvent, exitFault = 6, 24, 39
	offNow, offReason, offUnion    = 1, 8, 32
)

const shareAmount = 64 << 10 // bytes that the realm shares and takes back

// enter is KVM_RUN. Only the first vCPU does anything; the others wait for the
// realm to start them, which it does not.
func (c *vcpu) enter() error {
	v := c.vm
	if v.realm == nil || !c.inited {
		return unix.ENOEXEC
	}
	if !v.k.rules.explicit && v.realm.state != stateActive {
		if err := v.firstRun(); err != nil {
			return err
		}
	}
	if v.realm.state != stateActive || !c.rec {
		return unix.EPERM // kvm_arm_vcpu_is_finalized
	}
	if !v.gic {
		return unix.EOPNOTSUPP
	}
	if c.run[offNow] != 0 {
		return unix.EINTR
	}
	if c.id != 0 {
		v.k.mu.Unlock() // a wait until somebody wants the thread back
		for c.run[offNow] == 0 {
			time.Sleep(time.Millisecond)
		}
		v.k.mu.Lock()
		return unix.EINTR
	}
	return c.play()
}

func (v *vm) fault(format string, args ...any) {
	v.k.faults = append(v.k.faults, fmt.Errorf(format, args...))
}

const greeting = "realm\r\n"

// play is one exit of the realm.
func (c *vcpu) play() error {
	v, u := c.vm, c.run[offUnion:]
	n := c.step
	c.step++
	if c.span.hi != 0 {
		c.converted()
	}
	if n < len(greeting) && v.k.opt.Console != 0 {
		le.PutUint32(c.run[offReason:], exitMMIO)
		addr := v.k.opt.Console
		if v.k.opt.Alias {
			addr |= v.realm.shared()
		}
		clear(u[:24])
		le.PutUint64(u, addr)
		u[8], u[16], u[20] = greeting[n], 1, 1
		return nil
	}
	switch max(n-len(greeting), 0) {
	case 0:
		c.step = max(c.step, len(greeting)+1)
		return c.change(false)
	case 1:
		return c.change(true)
	}
	token, err := v.token()
	if err != nil {
		v.fault("token: %w", err)
	}
	if v.k.opt.Token != nil {
		v.k.opt.Token(token)
	}
	le.PutUint32(c.run[offReason:], exitEvent)
	clear(u[:16])
	le.PutUint32(u, 1) // KVM_SYSTEM_EVENT_SHUTDOWN
	return nil
}

// change is the exit by which the realm shares the end of its RAM or takes it back.
func (c *vcpu) change(toPrivate bool) error {
	for _, s := range c.vm.slots {
		c.span = span{max(s.lo, s.hi-shareAmount), s.hi}
	}
	if ipa := c.span.lo; !toPrivate && !c.vm.realm.isRAM(ipa) {
		c.vm.fault("memory at %#x is not RIPAS RAM", ipa)
	}
	s, _ := c.vm.slotOf(c.span)
	mark := at(s.host+c.span.lo-s.lo, page)
	if toPrivate {
		mark[7] = 7 // what it had shared
	} else if s.gmem.holes = nil; mark[0] != 0 {
		c.vm.fault("the host still has what the realm was populated with")
	}
	c.to = toPrivate
	u := c.run[offUnion:]
	le.PutUint32(c.run[offReason:], exitFault)
	flags := uint64(0)
	if toPrivate {
		flags = private
	}
	le.PutUint64(u, flags)
	le.PutUint64(u[8:], c.span.lo)
	le.PutUint64(u[16:], c.span.hi-c.span.lo)
	return unix.EFAULT
}

// converted looks at what the monitor did about it.
func (c *vcpu) converted() {
	v, r := c.vm, c.span
	s, _ := v.slotOf(r)
	c.span = span{}
	if !v.k.rules.gmem && v.isPrivate(r) != c.to {
		v.fault("KVM was not told of the conversion of %#x to private %v", r.lo, c.to)
	}
	gone := false
	for _, h := range s.gmem.holes {
		gone = gone || h.has(span{r.lo - s.lo, r.hi - s.lo})
	}
	switch {
	case !c.to && !gone:
		v.fault("private memory behind %#x was not given back", r.lo)
	case c.to && at(s.host+r.lo-s.lo, page)[7] != 0:
		v.fault("shared memory behind %#x was not given back", r.lo)
	}
}

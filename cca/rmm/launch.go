package rmm

import "golang.org/x/sys/unix"

// Actions of the realms' capability (KVM_CAP_ARM_RME_*).
const doConfig, doCreate, doRIPAS, doPopulate, doActivate = 0, 1, 2, 3, 4

// action is one step of an explicit launch (kvm_realm_enable_cap).
func (v *vm) action(what, arg uint64) error {
	r := v.realm
	b := make([]byte, 260)
	if what == doConfig || what == doRIPAS || what == doPopulate {
		if arg == 0 {
			return unix.EFAULT
		}
		b = at(arg, map[uint64]int{doConfig: 260, doRIPAS: 32, doPopulate: 32}[what])
	}
	switch m := spanAt(b); {
	case what == doCreate && r.state != stateNone:
		return unix.EEXIST
	case what == doCreate:
		return v.createRealm()
	case what == doConfig && r.state != stateNone:
		return unix.EBUSY
	case what == doConfig && le.Uint32(b) == 0:
		copy(r.rpv[:], b[4:])
		return nil
	case what == doConfig && le.Uint32(b) == 1 && le.Uint32(b[4:]) <= 1:
		r.sha512 = le.Uint32(b[4:]) == 1
		return nil
	case what == doConfig, what > doActivate:
	case r.state != stateNew:
		return v.k.rules.early
	case what == doRIPAS:
		return r.setRAM(m, false)
	case what == doActivate:
		return v.activate()
	case (m.lo|m.hi)&(page-1) != 0, le.Uint32(b[16:])&^1 != 0, m.hi < m.lo:
	default:
		s, ok := v.slotOf(m)
		if !ok {
			return unix.EFAULT
		}
		if s.gmem == nil {
			return v.k.rules.early
		}
		_, err := v.populate(m, s.host+m.lo-s.lo, le.Uint32(b[16:])&1 != 0, 0)
		return err
	}
	return unix.EINVAL
}

// populate copies granules from this process, most of them at most, and returns
// the number of bytes.
func (v *vm) populate(m span, source uint64, measured bool, most int) (uint64, error) {
	n := uint64(0)
	for ipa := m.lo; ipa < m.hi && (most == 0 || n < uint64(most)*page); ipa += page {
		if err := v.realm.addData(ipa, at(source+n, page), measured); err != nil {
			return n, err
		}
		n += page
	}
	return n, nil
}

// populateNow is KVM_ARM_RMI_POPULATE.
func (v *vm) populateNow(request uint32, arg uint64) (int, error) {
	rules := v.k.rules
	if rules.explicit || rules.realms != 0 || (request == populateInOut) != rules.update {
		return 0, unix.ENOTTY
	}
	b := at(arg, 32)
	m, source, flags := spanAt(b), le.Uint64(b[16:]), le.Uint32(b[24:])
	if v.realm == nil || le.Uint32(b[28:]) != 0 || flags&^1 != 0 || (m.lo|m.hi)&(page-1) != 0 || rules.aligned && source&(page-1) != 0 {
		return 0, unix.EINVAL
	}
	if err := v.ensureCreated(); err != nil {
		return 0, err
	}
	if s, ok := v.slotOf(m); !ok || s.gmem == nil || !rules.gmem && !v.isPrivate(m) {
		return 0, unix.EINVAL
	}
	n, err := v.populate(m, source, flags&1 != 0, v.k.opt.Progress)
	if err != nil || !rules.update {
		return int(n), err
	}
	le.PutUint64(b, m.lo+n)
	le.PutUint64(b[8:], m.hi-m.lo-n)
	le.PutUint64(b[16:], source+n)
	return 0, nil
}

func (v *vm) ensureCreated() error {
	switch v.realm.state {
	case stateNone:
		return v.createRealm()
	case stateNew:
		return nil
	case stateDead:
		return unix.ENXIO
	}
	return unix.EBUSY
}

// createRealm takes the parameters that vCPUs decide (realm_create_rd).
func (v *vm) createRealm() error {
	vq, counters, pmu := 0, 0, false
	for i, c := range v.cpus {
		n := 0
		if c.has(featureSVE) {
			if !c.finalSVE {
				return unix.EINVAL
			}
			for c.sve>>n != 0 {
				n++
			}
		}
		if i > 0 && n != vq {
			return unix.EINVAL
		}
		vq = n
		if c.has(featurePMU) {
			pmu, counters = true, int(c.regs[pmcr]>>11&31)
		}
	}
	v.realm.create(vq, int(v.k.opt.Breakpoints), int(v.k.opt.Watchpoints), counters, pmu)
	return nil
}

// activate is RMI_REALM_ACTIVATE.
func (v *vm) activate() error {
	v.realm.state = stateActive
	v.k.rim = v.realm.rim()
	return nil
}

// firstRun is what the kernel does by itself as a vCPU is run (kvm_activate_realm).
func (v *vm) firstRun() error {
	if !v.gic {
		return unix.EOPNOTSUPP
	}
	if err := v.ensureCreated(); err != nil {
		return err
	}
	err := v.finish()
	if err != nil {
		v.realm.state = stateDead
	}
	return err
}

func (v *vm) finish() error {
	for _, c := range v.cpus {
		if err := c.createREC(); err != nil {
			return err
		}
	}
	for _, s := range v.slots {
		if s.gmem == nil {
			continue
		}
		if err := v.realm.setRAM(s.span, true); err != nil {
			return err
		}
	}
	return v.activate()
}

package cca

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// Config is what the user asks of a realm.
type Config struct {
	Params        // IPABits 0: what RAM needs. Breakpoints, Watchpoints and LPA2 are the host's.
	RPV    []byte // personalization value, up to 64 bytes
	ABI    string // the kernel's interface, one of [ABIs]; "": found out
}

// abi is one version of the kernel's interface for realms. None of them is in a
// released kernel, so capability numbers collide with what others use them for.
type abi struct {
	name       string
	capability int
	rmm        Version

	// What launches and [Measure]s in its order: RIPAS first, then data, RECs and
	// activation, each told by the monitor; or data, and then the kernel does the
	// rest as the first vCPU runs: RECs, then RIPAS.
	explicit *actions
	populate func(vm *kvm.VM, p *kvm.RealmPopulate) error // of those that are not explicit

	// Features that a vCPU might need for its REC, to be tried in turn; the
	// feature's number is also what finalizes it.
	recs []int32

	// private is the capability of private memory. With KVM_CAP_MEMORY_ATTRIBUTES
	// KVM_SET_MEMORY_ATTRIBUTES tells which pages are.
	private int
}

// abis are in the order in which a realm's machine is asked for their
// capabilities. A kernel answers for its own number and for older ones that
// mainline uses otherwise, so the newest that it knows is its own.
var abis = []*abi{&abi300, &abi15, &abi14, &abi13, &abi12, &abi10, &abi9, &abi8}

// ABIs are the names of the kernel's interfaces that gvmm knows.
func ABIs() string {
	names := make([]string, len(abis))
	for i, a := range abis {
		names[i] = a.name
	}
	return strings.Join(names, ", ")
}

func findABI(name string) *abi {
	i := slices.IndexFunc(abis, func(a *abi) bool { return a.name == name })
	if i < 0 {
		return nil
	}
	return abis[i]
}

// Check refuses what no realm can have.
func (c *Config) Check() error {
	p := c.Params
	if p.IPABits == 0 {
		p.IPABits = 48
	}
	a := findABI(c.ABI)
	switch {
	case len(c.RPV) > 64:
		return fmt.Errorf("personalization value: %d bytes, there is room for 64", len(c.RPV))
	case c.ABI != "" && a == nil:
		return fmt.Errorf("abi %q: give one of %s", c.ABI, ABIs())
	case a != nil:
		if err := a.check(c); err != nil {
			return err
		}
	}
	return p.check()
}

// check refuses what the interface has no call for.
func (a *abi) check(c *Config) error {
	switch {
	case a.explicit != nil:
		return nil
	case c.Hash != SHA256:
		return fmt.Errorf("hash: the kernel's interface %s measures with sha256 only", a.name)
	case len(c.RPV) > 0:
		return fmt.Errorf("rpv: the kernel's interface %s takes no personalization value", a.name)
	}
	return nil
}

// Version returns the RMM specification that the interface goes with, 0 where
// none was named.
func (c *Config) Version() Version {
	if a := findABI(c.ABI); a != nil {
		return a.rmm
	}
	return 0
}

// Realm is a machine of type realm, in the making and then running.
type Realm struct {
	*kvm.VM
	cfg Config
	abi *abi
	rec int // index into abi.recs

	launched bool
}

// NewRealm creates a realm's machine with RAM up to last and finds out which
// interface it has: only a kernel for realms creates one, so only then is a
// capability number believed. An error is the host's fault.
func NewRealm(sys *kvm.System, c Config, last memory.GPA) (*Realm, error) {
	if c.IPABits == 0 {
		c.IPABits = ipaBitsFor(last)
	}
	if limit := sys.Check(kvm.CapARMIPASize); limit != 0 && int(c.IPABits) > limit {
		return nil, fmt.Errorf("realm: it needs %d IPA bits, half of them shared, and this host has %d", c.IPABits, limit)
	}
	vm, err := sys.CreateVM(kvm.RealmMachine(c.IPABits))
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("realm: the kernel knows realms, but the processor has no RME or its firmware no RMM: %w", unix.EPERM)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("realm: KVM creates none: it lacks the patches for Arm CCA, the processor RME, or the firmware an RMM that fits: %w", unix.EINVAL)
	case err != nil:
		return nil, fmt.Errorf("realm: %w", err)
	}
	r := &Realm{VM: vm, cfg: c}
	if err := r.probe(); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return r, nil
}

func (r *Realm) probe() error {
	for _, a := range abis {
		if a.name == r.cfg.ABI || r.cfg.ABI == "" && r.Check(a.capability) > 0 {
			r.abi = a
			break
		}
	}
	switch a := r.abi; {
	case a == nil:
		return fmt.Errorf("realm: the kernel creates one, but by an interface whose number gvmm does not know: try --realm=abi= with one of %s", ABIs())
	case r.Check(kvm.CapGuestMemFD) == 0, r.Check(a.private)&kvm.MemoryPrivate == 0:
		return fmt.Errorf("realm: the kernel has no private memory for it (guest_memfd and capability %d)", a.private)
	case r.cfg.SVE != 0 && r.Check(kvm.CapARMSVE) == 0:
		return errors.New("realm: no SVE: the processor, the RMM or the kernel's interface does not offer it")
	case r.cfg.PMU && r.Check(kvm.CapARMPMU) == 0:
		return errors.New("realm: no PMU: the processor, the RMM or the kernel's interface does not offer it")
	default:
		return a.check(&r.cfg)
	}
}

// ABI returns the name of the kernel's interface.
func (r *Realm) ABI() string { return r.abi.name }

// Shared is the address bit by which the realm reaches memory and devices that
// it shares with the host: an alias of all the addresses below.
func (r *Realm) Shared() memory.GPA { return 1 << (r.cfg.IPABits - 1) }

// SetMemoryAttributes is [kvm.VM.SetMemoryAttributes] where the kernel's
// interface wants to be told, and does nothing elsewhere, nor before the launch.
func (r *Realm) SetMemoryAttributes(gpa, size, attributes uint64) error {
	if r.abi.private != kvm.CapMemoryAttributes || !r.launched {
		return nil
	}
	return r.VM.SetMemoryAttributes(gpa, size, attributes)
}

// VCPU is what a launch needs of a vCPU.
type VCPU interface {
	Init(target, features uint32) error
	OneReg(id uint64) (uint64, error)
	SetOneReg(id, value uint64) error
	LimitSVE(bits uint16) error
	Finalize(feature int32) error
}

// Features and register ids of a vCPU (KVM_ARM_VCPU_*, KVM_REG_ARM*).
const (
	featurePMU = 3
	featureSVE = 4

	regX  = 0x6030_0000_0010_0000 // Xn: 2n further
	regPC = regX + 2*32
	pmcr  = 0x6030_0000_0013_dce0 // PMCR_EL0; the number of counters in bits 11 to 15
)

// Init makes a vCPU one of the realm, before [Realm.Launch].
func (r *Realm) Init(c VCPU, target, features uint32) error {
	if r.cfg.SVE != 0 {
		features |= 1 << featureSVE
	}
	if r.cfg.PMU {
		features |= 1 << featurePMU
	}
	for {
		rec := uint32(0)
		if r.rec < len(r.abi.recs) {
			rec = 1 << r.abi.recs[r.rec]
		}
		err := c.Init(target, features|rec)
		if r.rec < len(r.abi.recs) && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)) {
			r.rec++ // a series renumbered the feature, and had none to begin with
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if r.cfg.SVE != 0 {
		if err := errors.Join(c.LimitSVE(r.cfg.SVE), c.Finalize(featureSVE)); err != nil {
			return err
		}
	}
	if !r.cfg.PMU {
		return nil
	}
	v, err := c.OneReg(pmcr)
	if err != nil {
		return err
	}
	return c.SetOneReg(pmcr, v&^(31<<11)|uint64(r.cfg.PMUCounters)<<11)
}

// Launch does what [Launch.Measure] predicts, with what lies in mem, the host's
// side of the realm's RAM. All of it is private then, and given back. The vCPUs
// are in the order of their ids.
func (r *Realm) Launch(l *Launch, mem *memory.Guest, cpus []VCPU) error {
	a := r.abi
	if a.explicit != nil {
		if err := a.explicit.configure(r); err != nil {
			return err
		}
	} else if err := r.makePrivate(mem); err != nil {
		return err
	}
	for _, op := range l.Ops {
		var err error
		switch {
		case op.Kind == OpREC:
			err = r.createRECs(op.REC, cpus)
		case op.Kind == OpRIPAS && a.explicit != nil:
			err = a.explicit.ripas(r, op.Range)
		case op.Kind == OpPopulate:
			err = r.populate(op.Range, mem)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", op.Name, err)
		}
	}
	if a.explicit != nil {
		if err := a.explicit.act(r, actionActivate, nil); err != nil {
			return err
		}
		if err := r.makePrivate(mem); err != nil {
			return err
		}
	}
	for i := range mem.Regions() { // the realm has its own copy of it
		if err := mem.Convert(mem.Regions()[i].Range, true); err != nil {
			return err
		}
	}
	return nil
}

// makePrivate tells the kernel that all RAM is private.
func (r *Realm) makePrivate(mem *memory.Guest) error {
	r.launched = true
	for i := range mem.Regions() {
		g := &mem.Regions()[i]
		if err := r.SetMemoryAttributes(uint64(g.Base), g.Size, kvm.MemoryPrivate); err != nil {
			return err
		}
	}
	return nil
}

// populateMeasured has the RMM measure what is populated.
const populateMeasured = 1

func (r *Realm) populate(at memory.Range, mem *memory.Guest) error {
	i, err := mem.Find(at)
	if err != nil {
		return err
	}
	g := &mem.Regions()[i]
	p := &kvm.RealmPopulate{
		Base: uint64(at.Base), Size: at.Size, Flags: populateMeasured,
		Source: uint64(g.HostAddr()) + uint64(at.Base-g.Base),
	}
	if r.abi.explicit != nil {
		return r.abi.explicit.populate(r, p)
	}
	for p.Size > 0 {
		before := p.Size
		if err := r.abi.populate(r.VM, p); err != nil {
			return err
		}
		if p.Size >= before {
			return fmt.Errorf("KVM_ARM_RMI_POPULATE at %#x does not go on", p.Base)
		}
	}
	return nil
}

// createRECs sets the registers of vCPU 0 and makes the realm's contexts of
// execution, in the order of their MPIDR as the RMM wants it.
func (r *Realm) createRECs(first REC, cpus []VCPU) error {
	for id, c := range cpus {
		if id == 0 {
			for i, x := range first.GPRs {
				if err := c.SetOneReg(regX+2*uint64(i), x); err != nil {
					return err
				}
			}
			if err := c.SetOneReg(regPC, first.PC); err != nil {
				return err
			}
		}
		if r.abi.explicit == nil {
			continue // the kernel makes it
		}
		if err := c.Finalize(r.abi.recs[min(r.rec, len(r.abi.recs)-1)]); err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
	}
	return nil
}

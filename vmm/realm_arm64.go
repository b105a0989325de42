package vmm

import (
	"fmt"

	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// createRealm creates the machine of a realm, whose address space is as wide as
// its plan's RAM wants it.
func (m *VM) createRealm(sys *kvm.System) (*kvm.VM, error) {
	cfg := m.cfg // the plan is made again when it is known what the host has
	l, err := loadPlan(&cfg)
	if err != nil {
		return nil, err
	}
	ram := l.plan.RAM
	if err := l.Close(); err != nil {
		return nil, err
	}
	if m.realm, err = cca.NewRealm(sys, *m.cfg.Realm, ram[len(ram)-1].End()-1); err != nil {
		return nil, err
	}
	m.log.Info("realm", "abi", m.realm.ABI())
	m.private.tell = m.realm.SetMemoryAttributes
	return m.realm.VM, nil
}

// launchRealm loads the plan into the side of memory that the host shares, from
// where the launch fills the other.
func (m *VM) launchRealm() error {
	m.mem.SetAlias(m.realm.Shared())
	for i := range m.mem.Regions() {
		if err := m.mem.Convert(m.mem.Regions()[i].Range, false); err != nil {
			return err
		}
	}
	if err := m.plan.Load(m.mem); err != nil {
		return err
	}
	c := *m.cfg.Realm
	c.ABI = m.realm.ABI()
	launch, err := cca.PlanLaunch(m.plan, &c)
	if err != nil {
		return fmt.Errorf("realm: %w", err)
	}
	cpus := make([]cca.VCPU, len(m.cpus))
	for i, c := range m.cpus {
		cpus[i] = c
	}
	if err := m.realm.Launch(launch, m.mem, cpus); err != nil {
		return &LackingError{fmt.Errorf("realm, by the kernel's interface %s: %w", c.ABI, err)}
	}
	return nil
}

// probeRealm says whether the host makes realms.
func probeRealm(sys *kvm.System) Finding {
	const smallest = 1<<32 - 1
	r, err := cca.NewRealm(sys, cca.Config{}, smallest)
	if err != nil {
		return Finding{Name: "realm", Detail: err.Error(), Remedy: "an Armv9 processor with RME, firmware with an RMM (TF-RMM), and a kernel with the series \"arm64: Support for Arm CCA in KVM\""}
	}
	_ = r.VM.Close()
	return Finding{Name: "realm", OK: true, Detail: "Arm CCA realms, by the kernel's interface " + r.ABI()}
}

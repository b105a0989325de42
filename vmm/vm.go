//go:build amd64 || arm64

package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/devices/virtio"
	"github.com/gvmm/gvmm/vmm/control"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// VM is a virtual machine that is ready to run, runs, or has ended.
type VM struct {
	cfg   Config
	plan  *boot.Plan
	image *loaded // open for the symbols of a post-mortem
	log   *slog.Logger

	kvm  *kvm.VM
	mem  *memory.Guest
	mmio devices.Bus
	irqs irqLines

	private privateMemory
	archVM
	cpus []*vcpu

	devs    []device         // in the order they were attached
	closers []io.Closer      // closed after the devices, last first
	console *control.Console // the guest's output, and who else looks on
	watch   *crashWatch
	balloon *virtio.Balloon // nil for none
	started atomic.Pointer[time.Time]
	input   func([]byte) bool // console input; false once the console is closed
	sysrq   func(key byte)    // a break and a key on the first serial port, if that can be

	explain func(*Outcome) // adds to what is known of a crash, unless nil

	state   runState
	hmu     sync.Mutex
	changed sync.Cond // state or held changed
	held    int       // vCPUs waiting in hold
	threads sync.WaitGroup

	once    sync.Once
	done    chan struct{} // closed when outcome is set
	outcome Outcome
}

// device is an attached virtio transport.
type device interface {
	Quiesce() // stop serving queues until Resume
	Resume()
	Close() error
}

// New builds a machine. Nothing of it runs yet. An error that wraps a
// [LackingError] is the host's fault, any other the configuration's.
func New(cfg Config) (*VM, error) {
	if err := cfg.prepare(); err != nil {
		return nil, err
	}
	m := &VM{cfg: cfg, log: cfg.Log.With("vm", cfg.Name), done: make(chan struct{})}
	m.changed.L = &m.hmu
	if err := m.build(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// build makes everything up to the first instruction. What it opened is closed
// by Close, also when it fails half way.
func (m *VM) build() error {
	sys, err := kvm.Open(m.cfg.Kernel)
	if err != nil {
		return &LackingError{err}
	}
	defer sys.Close()
	if m.cfg.Realm != nil && runtime.GOARCH != string(boot.ARM64) {
		return &LackingError{errors.New("--realm: realms are Arm's: run it on an arm64 host whose processor has RME")}
	}
	if m.kvm, err = m.createVM(sys); err != nil {
		return &LackingError{err}
	}
	image, err := loadPlan(&m.cfg)
	if err != nil {
		return err
	}
	m.image, m.plan = image, image.plan
	m.closers = append(m.closers, image)
	if m.plan.Arch != boot.Arch(runtime.GOARCH) {
		return fmt.Errorf("%s: an %s guest does not run on %s: use an %s host", m.cfg.Image, m.plan.Arch, runtime.GOARCH, m.plan.Arch)
	}
	m.console = control.NewConsole(m.cfg.Stdout)
	m.watch = newCrashWatch(m.console, m.plan)
	// Memory first: once there is an interrupt controller, KVM waits for a
	// grace period at every slot.
	if m.mem, err = memory.New(m.plan.Memory()...); err != nil {
		return err
	}
	if m.cfg.SNP != nil || m.cfg.Realm != nil {
		m.mem.MakeConfidential()
	}
	for i := range m.mem.Regions() {
		if err := m.addMemory(i, &m.mem.Regions()[i]); err != nil {
			return err
		}
	}
	if err := m.createPlatform(); err != nil {
		return err
	}
	if err := m.attachDevices(); err != nil {
		return err
	}
	if !m.mem.Confidential() { // of such a guest's plan the launch makes the memory
		if err := m.plan.Load(m.mem); err != nil {
			return err
		}
	}
	return m.prepareVCPUs(sys)
}

// Run starts the guest and waits for its end: [VM.Start] and [VM.Wait].
func (m *VM) Run(ctx context.Context) (Outcome, error) {
	m.Start()
	return m.Wait(ctx)
}

// Start starts the guest. It is called once, and followed by [VM.Wait].
func (m *VM) Start() {
	now := time.Now()
	m.started.Store(&now)
	for _, c := range m.cpus {
		m.threads.Go(c.loop)
	}
}

// Wait waits for the guest's end. Cancelling ctx ends the VM; its cause, if it
// is a [Stopped], is the outcome.
func (m *VM) Wait(ctx context.Context) (Outcome, error) {
	if m.cfg.Stdin != nil {
		go m.readConsole()
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		m.finish(stopOutcome(context.Cause(ctx)))
	}
	if err := m.join(); err != nil {
		return m.outcome, err
	}
	if m.outcome.Status == StatusCrashed && m.explain != nil {
		m.explain(&m.outcome)
	}
	if m.outcome.Status == StatusTimeout && m.log.Enabled(ctx, slog.LevelDebug) {
		for _, c := range m.cpus {
			m.outcome.Dump += c.dump() // where a guest hangs that should have ended
		}
	}
	return m.outcome, nil
}

// joinTime bounds the wait for vCPU threads at the end. Only a thread that
// hangs in a host call (a full pipe on standard output) needs that long.
const joinTime = 2 * time.Second

func (m *VM) join() error {
	ended := make(chan struct{})
	go func() {
		m.threads.Wait()
		close(ended)
	}()
	deadline := time.NewTimer(joinTime)
	defer deadline.Stop()
	for {
		m.kickAll()
		select {
		case <-ended:
			return nil
		case <-deadline.C:
			return errors.New("a vCPU thread did not stop: it hangs in a call to the host")
		}
	}
}

// finish ends the VM. Only the first call counts.
func (m *VM) finish(o Outcome) {
	m.once.Do(func() {
		m.outcome = o
		m.hmu.Lock()
		m.state.Store(stopping)
		m.changed.Broadcast()
		m.hmu.Unlock()
		m.kickAll()
		close(m.done)
	})
}

// Stop ends a running VM. It returns at once; Run returns the outcome.
func (m *VM) Stop(o Outcome) { m.finish(o) }

// guestEnd is what devices call when the guest asks for its own end.
func (m *VM) guestEnd(e devices.End) {
	m.finish(endOutcome(e, m.watch.crashed()))
}

func (m *VM) kickAll() {
	for _, c := range m.cpus {
		c.Kick()
	}
}

// hold keeps a vCPU thread while the VM is paused. It reports whether the vCPU
// is to run on.
func (m *VM) hold() bool {
	m.hmu.Lock()
	defer m.hmu.Unlock()
	m.held++
	m.changed.Broadcast()
	for m.state.Load() == paused {
		m.changed.Wait()
	}
	m.held--
	return m.state.Load() == running
}

// Pause stops every vCPU and every device queue, and returns when they stand
// still. Pausing a VM that is paused or has ended does nothing.
func (m *VM) Pause() {
	m.hmu.Lock()
	if !m.state.CompareAndSwap(running, paused) {
		m.hmu.Unlock()
		return
	}
	m.kickAll()
	for m.held < len(m.cpus) && m.state.Load() == paused {
		m.changed.Wait()
	}
	m.hmu.Unlock()
	for _, d := range m.devs {
		d.Quiesce()
	}
}

// Resume lets a paused VM run on.
func (m *VM) Resume() {
	if m.state.Load() != paused {
		return
	}
	for _, d := range m.devs {
		d.Resume()
	}
	m.hmu.Lock()
	m.state.CompareAndSwap(paused, running)
	m.changed.Broadcast()
	m.hmu.Unlock()
}

// Plan returns the launch plan the machine was built from.
func (m *VM) Plan() *boot.Plan { return m.plan }

// Close releases everything. The VM must not be running.
func (m *VM) Close() error {
	errs := []error{m.closeDevices()}
	for _, c := range m.cpus {
		errs = append(errs, c.Close())
	}
	if m.kvm != nil {
		errs = append(errs, m.kvm.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(errs...)
}

// CloseForExit is [VM.Close] for a process that exits right behind it: files and
// networks are closed, and the kernel tears down the rest in its own time.
func (m *VM) CloseForExit() error {
	err := m.closeDevices()
	cpus := make([]*kvm.VCPU, len(m.cpus))
	for i, c := range m.cpus {
		cpus[i] = c.VCPU
	}
	if e := kvm.Detach(m.kvm, cpus); e != nil {
		m.log.Debug("the exit waits for KVM", "err", e)
	}
	return err
}

func (m *VM) closeDevices() error {
	var errs []error
	for _, d := range m.devs {
		errs = append(errs, d.Close())
	}
	for i := len(m.closers) - 1; i >= 0; i-- {
		errs = append(errs, m.closers[i].Close())
	}
	return errors.Join(errs...)
}

// readConsole feeds console input to the guest until it or the console ends.
func (m *VM) readConsole() {
	buf := make([]byte, 256)
	for {
		n, err := m.cfg.Stdin.Read(buf)
		if n > 0 && !m.input(buf[:n]) {
			return
		}
		if err != nil {
			return
		}
	}
}

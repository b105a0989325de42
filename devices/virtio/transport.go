package virtio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/vmm/memory"
)

// Device status bits (virtio 1.3 2.1).
const (
	statusDriverOK   = 4
	statusFeaturesOK = 8
	statusNeedsReset = 64
)

// maxReports bounds the errors one device passes on: a guest that breaks its
// queues in a loop must not fill the log.
const maxReports = 8

// transport is what all transports share: the device's life from reset to
// DRIVER_OK and back, its queues and the goroutines that serve them.
type transport struct {
	dev     Device
	mem     *memory.Guest
	irq     interrupter
	report  func(error)
	reports atomic.Int32
	workers []*worker // one a queue

	status     atomic.Uint32
	generation atomic.Uint32 // of the configuration space
	halt       atomic.Bool   // queues take no chain: paused or being reset

	// mu serializes register accesses, and with them the device's life.
	mu        sync.Mutex
	offered   uint64
	accepted  uint64
	offerSel  uint32
	acceptSel uint32
	queueSel  uint32
	rings     []ring
	session   *Session // nil unless activated
	paused    bool
	closed    bool
}

// interrupter is the transport's way to interrupt the driver: for source 0 the
// configuration, for others the queue before. Any goroutine calls it.
type interrupter interface{ interrupt(source int) }

// interruptBit is a source's bit in the interrupt status (virtio 1.3 4.1.4.5, 4.2.2).
func interruptBit(source int) uint8 {
	if source == 0 {
		return 2
	}
	return 1
}

// open prepares the device for its driver. report, which may be nil, receives
// the reason when the device needs a reset; it must not block.
func (t *transport) open(m devices.Machine, dev Device, irq interrupter, report func(error)) error {
	t.dev, t.mem, t.irq, t.report = dev, m.Memory(), irq, report
	t.offered = dev.Features() | FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1 | FeaturePacked
	if t.mem.Confidential() {
		t.offered |= FeatureAccessPlatform
	}
	for range dev.QueueSizes() {
		w, err := newWorker()
		if err != nil {
			_ = t.closeWorkers()
			return fmt.Errorf("%s: %w", dev.Name(), err)
		}
		t.workers = append(t.workers, w)
	}
	t.rings = make([]ring, len(t.workers))
	t.clearRegisters()
	return nil
}

// clearRegisters puts the transport's registers to their values after a reset.
func (t *transport) clearRegisters() {
	t.status.Store(0)
	t.accepted, t.offerSel, t.acceptSel, t.queueSel = 0, 0, 0, 0
	for i, size := range t.dev.QueueSizes() {
		t.rings[i] = ring{size: size}
	}
}

// selected returns the ring that the queue selector names, nil if none.
func (t *transport) selected() *ring {
	if t.queueSel < uint32(len(t.rings)) {
		return &t.rings[t.queueSel]
	}
	return nil
}

// settable returns the selected ring while the driver may still change it.
func (t *transport) settable() *ring {
	if t.session != nil {
		return nil
	}
	return t.selected()
}

// word returns the selected 32 bits of a set of features.
func word(features uint64, sel uint32) uint32 { return uint32(features >> (32 * min(sel, 2))) }

// setRegister serves a write that means the same on MMIO and PCI, by the
// register's place in the common configuration of PCI (virtio 1.3 4.1.4.3).
func (t *transport) setRegister(at uint64, v uint32) {
	switch at {
	case commonOfferSel:
		t.offerSel = v
	case commonAcceptSel:
		t.acceptSel = v
	case commonAccepted:
		t.acceptWord(v)
	case commonQueueSel:
		t.queueSel = v
	default:
		if r := t.settable(); r != nil {
			r.setRegister(at, v)
		}
	}
}

func (r *ring) setRegister(at uint64, v uint32) {
	switch at {
	case commonQueueSize: // one that is too large stays so: activation refuses it with a reason
		r.size = uint16(min(v, 0xffff))
	case commonQueueEnable:
		r.ready = v&1 != 0
	case commonDesc, commonAvail, commonUsed, commonDesc + 4, commonAvail + 4, commonUsed + 4:
		p := [...]*uint64{&r.desc, &r.avail, &r.used}[(at-commonDesc)/8]
		shift := at & 4 * 8
		*p = *p&^(0xffffffff<<shift) | uint64(v)<<shift
	}
}

// acceptWord takes 32 bits of the driver's features. Bits that were not
// offered are dropped and not held against the driver: Unikraft's virtio-net
// accepts some of them.
func (t *transport) acceptWord(v uint32) {
	if t.session != nil || t.acceptSel > 1 {
		return
	}
	shift := 32 * t.acceptSel
	t.accepted &^= 0xffffffff << shift
	t.accepted |= uint64(v) << shift & t.offered
}

// setStatus serves a write of the device status (virtio 1.3 2.1, 3.1.1). The
// driver sets bits one after the other and clears them all with 0. Whether it
// set FEATURES_OK does not matter: legacy drivers know no such bit. A driver that
// asks sees it refused where devices cannot do without a feature.
func (t *transport) setStatus(v uint8) {
	if v == 0 {
		t.reset()
		return
	}
	if t.mem.Confidential() && t.accepted&FeatureAccessPlatform == 0 {
		v &^= statusFeaturesOK
	}
	old := t.status.Or(uint32(v))
	if v&statusDriverOK != 0 && old&statusDriverOK == 0 && !t.closed {
		if err := t.activate(); err != nil {
			t.fail(err)
		}
	}
}

func (t *transport) activate() error {
	s := &Session{Features: t.accepted, Memory: t.mem, t: t}
	if t.mem.Confidential() && !s.Has(FeatureAccessPlatform) {
		return errors.New("a confidential guest's driver must accept VIRTIO_F_ACCESS_PLATFORM: it would give private memory to the device")
	}
	sizes := t.dev.QueueSizes()
	for i, r := range t.rings {
		q := &Queue{halt: &t.halt}
		q.fail = func(err error) { t.fail(fmt.Errorf("queue %d: %w", i, err)) }
		q.interrupt = func() { t.irq.interrupt(1 + i) }
		s.Queues = append(s.Queues, q)
		if !r.ready {
			continue
		}
		if r.size > sizes[i] {
			return fmt.Errorf("queue %d: size %d is above the limit %d", i, r.size, sizes[i])
		}
		if err := q.open(t.mem, r, s.Features); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	if err := t.dev.Activate(s); err != nil {
		t.dev.Reset()
		return err
	}
	t.session = s
	for i, q := range s.Queues {
		if q.size != 0 {
			t.workers[i].start(t, s, i)
		}
	}
	return nil
}

// reset ends the session, waits until nothing touches guest memory any more
// and clears the registers (virtio 1.3 2.4).
func (t *transport) reset() {
	if t.session != nil {
		t.halt.Store(true)
		for _, w := range t.workers {
			w.stop()
		}
		t.halt.Store(t.paused)
		t.dev.Reset()
		t.session = nil
	}
	t.clearRegisters()
}

// fail tells the driver that the device is stuck (virtio 1.3 2.1.2) and the
// monitor why.
func (t *transport) fail(err error) {
	t.status.Or(statusNeedsReset)
	if t.report != nil && t.reports.Add(1) <= maxReports {
		t.report(fmt.Errorf("%s: %w", t.dev.Name(), err))
	}
	t.configChanged()
}

func (t *transport) configChanged() {
	t.generation.Add(1)
	if t.status.Load()&statusDriverOK != 0 {
		t.irq.interrupt(0)
	}
}

// kick serves a queue notification that came as a register write.
func (t *transport) kick(queue uint32) {
	if queue < uint32(len(t.workers)) {
		t.workers[queue].wake()
	}
}

// Quiesce stops the service of all queues. When it returns, the device touches
// no guest memory until Resume; notifications are kept.
func (t *transport) Quiesce() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = true
	t.halt.Store(true)
	for _, w := range t.workers {
		w.serving.Lock()
		w.serving.Unlock() //nolint:staticcheck // waits for a Serve under way
	}
}

// Resume takes up the service of all queues where Quiesce left it.
func (t *transport) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = false
	t.halt.Store(false)
	for _, w := range t.workers {
		w.wake()
	}
}

// close ends the session and all goroutines. The device does not start again.
func (t *transport) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.reset()
	return t.closeWorkers()
}

func (t *transport) closeWorkers() error {
	var errs []error
	for _, w := range t.workers {
		errs = append(errs, w.event.Close())
	}
	return errors.Join(errs...)
}

// worker serves one queue. Its eventfd collects notifications at all times, its
// goroutine lives while the device is active.
type worker struct {
	fd      int // of event, for KVM
	event   *os.File
	one     [8]byte // what a wake-up writes
	count   [8]byte // what a wait reads
	stopped atomic.Bool
	serving sync.Mutex // held during Serve
	done    chan struct{}
}

func newWorker() (*worker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd for a queue: %w", err)
	}
	w := &worker{fd: fd, event: os.NewFile(uintptr(fd), "queue")}
	w.one[0] = 1
	return w, nil
}

// wake makes the goroutine go round once more. The eventfd remembers it.
func (w *worker) wake() { _, _ = w.event.Write(w.one[:]) }

// start runs the goroutine and has it serve the queue a first time: requests
// made before DRIVER_OK are not lost.
func (w *worker) start(t *transport, s *Session, queue int) {
	w.stopped.Store(false)
	w.done = make(chan struct{})
	go w.run(t, s, queue)
	w.wake()
}

func (w *worker) run(t *transport, s *Session, queue int) {
	defer close(w.done)
	for {
		if _, err := w.event.Read(w.count[:]); err != nil || w.stopped.Load() {
			return
		}
		w.serving.Lock()
		if !t.halt.Load() {
			t.dev.Serve(s, queue)
			s.Queues[queue].Flush()
		}
		w.serving.Unlock()
	}
}

// stop ends the goroutine, if there is one, and waits for it.
func (w *worker) stop() {
	if w.done == nil {
		return
	}
	w.stopped.Store(true)
	w.wake()
	<-w.done
	w.done = nil
}

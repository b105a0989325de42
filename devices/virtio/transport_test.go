package virtio

import (
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// echo answers every request with the number of its readable bytes.
func echo(c *Chain) func(*Session, int) {
	return func(s *Session, queue int) {
		q := s.Queues[queue]
		for q.Pop(c) {
			q.Push(c, uint32(c.Readable.Len()))
		}
	}
}

func TestTransportLife(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		var c Chain
		dev := &testDevice{id: 4, sizes: []uint16{64}, serve: echo(&c)}
		d := attach(dev, nil)
		d.kick(0) // not active: nothing happens, nothing is lost
		for round := range 3 {
			r := newGuestRing(t, m.mem, ringAt, 64)
			if round == 1 {
				if d.prepare != nil {
					d.prepare(r)
				}
				r.add(guestBuffer{dataAt, 7, false}) // before DRIVER_OK, never notified
			}
			d.probe(FeatureVersion1|FeatureEventIdx, r)
			if round != 1 {
				r.add(guestBuffer{dataAt, 7, false})
				d.kick(0)
			}
			m.await(t, "request", func() bool {
				_, n, ok := r.take()
				return ok && n == 7
			})
			m.await(t, "interrupt status", func() bool { return d.ack() == interruptBit(1) })
			if m.level {
				t.Error("INTx stays asserted after the status was read")
			}
			if got := d.ack(); got != 0 && d.name != "modern, MSI-X" {
				t.Errorf("interrupt status %d after acknowledgement", got)
			}
			d.reset()
			if d.status() != 0 || dev.resets != round+1 || dev.session != nil {
				t.Errorf("round %d: status %d, %d resets", round, d.status(), dev.resets)
			}
		}
		if err := d.close(); err != nil {
			t.Error(err)
		}
		if err := d.close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

// TestFeatures checks negotiation, the leniency that Unikraft's drivers need
// included.
func TestFeatures(t *testing.T) {
	m := newFakeMachine(t)
	const own = 1<<5 | 1<<50
	dev := &testDevice{id: 1, features: own, sizes: []uint16{64}, serve: echo(&Chain{})}
	d := newMMIODriver(t, m, dev, nil)
	out := func(reg, v uint64) { m.out(false, fakeMMIO+reg, 4, v) }
	place := func() {
		r := newGuestRing(t, m.mem, ringAt, 64)
		for reg, v := range map[uint64]uint64{mmioQueueSize: 64, mmioDescLow: r.desc, mmioAvailLow: r.avail, mmioUsedLow: r.used, mmioQueueReady: 1} {
			out(reg, v)
		}
	}
	accept := func(v uint64) {
		out(mmioDriverSel, 0)
		out(mmioDriverFeats, v&0xffffffff)
		out(mmioDriverSel, 1)
		out(mmioDriverFeats, v>>32)
		out(mmioDriverSel, 2)
		out(mmioDriverFeats, 0xffffffff)
	}

	d.probe(^uint64(0), newGuestRing(t, m.mem, ringAt, 64))
	if want := uint64(own | FeatureVersion1 | FeatureEventIdx | FeatureIndirectDesc); dev.session.Features != want {
		t.Errorf("all features: %#x, want %#x", dev.session.Features, want)
	}
	// Bits that were not offered: dropped, FEATURES_OK stays (virtio-net).
	d.reset()
	accept(1<<21 | 1<<1 | 1<<5 | FeatureVersion1)
	out(mmioStatus, 11)
	if d.status() != 11 {
		t.Errorf("status %d: FEATURES_OK refused", d.status())
	}
	place()
	out(mmioStatus, 15)
	if want := uint64(1<<5 | FeatureVersion1); dev.session.Features != want {
		t.Errorf("accepted %#x, want %#x", dev.session.Features, want)
	}
	accept(own) // too late
	if dev.session.Features&(1<<50) != 0 || d.t.accepted&(1<<50) != 0 {
		t.Error("features change after DRIVER_OK")
	}
	// Neither VERSION_1 nor any feature write nor FEATURES_OK (virtio-9p).
	d.reset()
	out(mmioStatus, 1)
	out(mmioStatus, 3)
	place()
	out(mmioStatus, 7)
	if dev.session == nil || dev.session.Features != 0 || dev.session.Has(FeatureVersion1) || d.status() != 7 {
		t.Errorf("session %+v, status %d", dev.session, d.status())
	}
}

func TestNeedsReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		var mu sync.Mutex
		var reports []string
		var c Chain
		dev := &testDevice{id: 4, sizes: []uint16{64}, serve: echo(&c)}
		d := attach(dev, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, err.Error())
		})
		for range 2 * maxReports {
			r := newGuestRing(t, m.mem, ringAt, 64)
			d.probe(FeatureVersion1, r)
			r.add(guestBuffer{fakeRAM, 7, false})
			d.kick(0)
			m.await(t, "device error", func() bool { return d.status()&statusNeedsReset != 0 })
			d.reset()
			d.ack()
			if d.status() != 0 {
				t.Fatal("a reset does not heal it")
			}
		}
		mu.Lock()
		if len(reports) != maxReports || !strings.Contains(reports[0], "test: queue 0: ") {
			t.Errorf("%d reports, first %q", len(reports), reports[0])
		}
		mu.Unlock()
		// A ring outside memory and a refusal by the device: no session.
		d.probe(FeatureVersion1, &guestRing{size: 64, desc: fakeRAM + 0x1000, avail: fakeRAM + 0x2000, used: fakeRAM + 0x3000})
		if d.status()&statusNeedsReset == 0 || dev.session != nil {
			t.Error("bad ring accepted")
		}
		before := dev.resets
		dev.active = func(*Session) error { return errTest }
		d.probe(FeatureVersion1, newGuestRing(t, m.mem, ringAt, 64))
		if d.status()&statusNeedsReset == 0 || dev.resets != before+1 {
			t.Errorf("status %d, %d resets", d.status(), dev.resets-before)
		}
		dev.active = nil
		r := newGuestRing(t, m.mem, ringAt, 64)
		d.probe(FeatureVersion1, r)
		r.add(guestBuffer{dataAt, 7, false})
		d.kick(0)
		m.await(t, "healed", func() bool { _, _, ok := r.take(); return ok })
	})
}

// TestResetWaits resets while Serve is at work on a ring that never runs empty.
func TestResetWaits(t *testing.T) {
	m := newFakeMachine(t)
	var c Chain
	started := make(chan struct{}, 1)
	serving := false // guarded by the promise under test
	dev := &testDevice{id: 4, sizes: []uint16{64}}
	dev.serve = func(s *Session, queue int) {
		serving = true
		for q := s.Queues[queue]; q.Pop(&c); {
			select {
			case started <- struct{}{}:
			default:
			}
			q.nextAvail-- // the same request for ever
		}
		serving = false
	}
	d := newMMIODriver(t, m, dev, nil)
	for range 20 {
		r := newGuestRing(t, m.mem, ringAt, 64)
		r.add(guestBuffer{dataAt, 7, false})
		d.probe(FeatureVersion1, r)
		<-started
		d.reset()
		if serving || dev.session != nil || d.t.workers[0].done != nil {
			t.Fatal("reset returned while the device is at work")
		}
		select {
		case <-started:
		default:
		}
	}
}

func TestQuiesce(t *testing.T) {
	m := newFakeMachine(t)
	var c Chain
	dev := &testDevice{id: 4, sizes: []uint16{64}, serve: echo(&c)}
	d := newMMIODriver(t, m, dev, nil)
	r := newGuestRing(t, m.mem, ringAt, 64)
	d.probe(FeatureVersion1, r)
	d.t.Quiesce()
	r.add(guestBuffer{dataAt, 7, false})
	d.kick(0)
	// Let the worker take the notification while it may not serve.
	for len(pending(t, d.t.workers[0])) != 0 {
		runtime.Gosched()
	}
	d.t.workers[0].serving.Lock()
	if _, _, ok := r.take(); ok {
		t.Error("served while quiesced")
	}
	d.t.workers[0].serving.Unlock()
	d.t.Resume()
	m.await(t, "request after Resume", func() bool { _, _, ok := r.take(); return ok })
	// A reset while quiesced stays quiesced.
	d.t.Quiesce()
	r = newGuestRing(t, m.mem, ringAt, 64)
	r.add(guestBuffer{dataAt, 7, false})
	d.probe(FeatureVersion1, r)
	if !d.t.halt.Load() {
		t.Error("a reset resumes service")
	}
	d.t.Resume()
	m.await(t, "request after second Resume", func() bool { _, _, ok := r.take(); return ok })
}

// pending returns the poll events of a worker's eventfd: none once it was read.
func pending(t *testing.T, w *worker) []unix.PollFd {
	p := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p[:n]
}

func TestConfigChange(t *testing.T) {
	m := newFakeMachine(t)
	con := NewConsole(new(strings.Builder))
	d := newMMIODriver(t, m, con, nil)
	con.Resize(80, 25) // nobody listens yet
	d.probe(consoleSize|FeatureVersion1, newGuestRing(t, m.mem, ringAt, 64), newGuestRing(t, m.mem, 2*ringAt, 64))
	before := m.in(false, fakeMMIO+mmioGeneration, 4)
	if d.config(0, 4) != 25<<16|80 || m.interrupts() != 0 {
		t.Errorf("size %#x, %d interrupts", d.config(0, 4), m.interrupts())
	}
	con.Resize(132, 43)
	if d.ack() != interruptBit(0) || d.config(0, 2) != 132 || d.config(2, 1) != 43 || m.in(false, fakeMMIO+mmioGeneration, 4) == before {
		t.Error("configuration change not seen")
	}
}

// TestRegisterWidths reads registers by parts: Unikraft has done that.
func TestRegisterWidths(t *testing.T) {
	m := newFakeMachine(t)
	newMMIODriver(t, m, &testDevice{id: 4, sizes: []uint16{64}}, nil)
	if got := m.in(false, fakeMMIO, 8); got != 0x274726976 {
		t.Errorf("64 bits: %#x", got)
	}
	if got := m.in(false, fakeMMIO+1, 2); got != 0x7269 {
		t.Errorf("16 bits: %#x", got)
	}
	m.out(false, fakeMMIO+mmioStatus, 1, 1)
	if got := m.in(false, fakeMMIO+mmioStatus, 4); got != 0 {
		t.Errorf("an 8-bit write to a control register took effect: %d", got)
	}
	if got := m.in(false, fakeMMIO+mmioShmLenLow, 4); got != 0xffffffff {
		t.Errorf("shared memory length %#x", got)
	}
}

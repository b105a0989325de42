package virtio

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/vmm/memory"
)

// fakeMachine is a machine without KVM: kicks are found in a table, interrupts
// are counted and announced on a channel.
type fakeMachine struct {
	mem         *memory.Guest
	ports, mmio devices.Bus
	noKicks     bool // writes reach the handlers, as with instruction completion

	mu     sync.Mutex
	kicks  map[devices.Kick]int
	raised int
	level  bool
	msis   []uint32
	irq    chan struct{}
}

const fakeRAM = 4 << 20

func newFakeMachine(t testing.TB) *fakeMachine {
	mem, err := memory.New(memory.Range{Base: 0, Size: fakeRAM})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	return (&fakeMachine{mem: mem}).fresh()
}

func (m *fakeMachine) Memory() *memory.Guest { return m.mem }

func (m *fakeMachine) AttachKick(fd int, k devices.Kick) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.kicks[k]; ok {
		return unix.EEXIST
	}
	m.kicks[k] = fd
	return nil
}

func (m *fakeMachine) DetachKick(fd int, k devices.Kick) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if got, ok := m.kicks[k]; !ok || got != fd {
		return unix.ENOENT
	}
	delete(m.kicks, k)
	return nil
}

// fresh returns a machine with the same memory and no devices.
func (m *fakeMachine) fresh() *fakeMachine {
	return &fakeMachine{mem: m.mem, kicks: map[devices.Kick]int{}, irq: make(chan struct{}, 1)}
}

type fakeLine struct {
	m     *fakeMachine
	level bool
}

func (m *fakeMachine) EdgeLine(uint32) (devices.Line, error)  { return fakeLine{m, false}, nil }
func (m *fakeMachine) LevelLine(uint32) (devices.Line, error) { return fakeLine{m, true}, nil }

func (l fakeLine) Raise() {
	l.m.mu.Lock()
	l.m.raised++
	l.m.level = l.level
	l.m.mu.Unlock()
	l.m.announce()
}

func (l fakeLine) Lower() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.level = false
}

func (m *fakeMachine) SignalMSI(_ uint64, data uint32) error {
	m.mu.Lock()
	if len(m.msis) < 1000 {
		m.msis = append(m.msis, data)
	}
	m.mu.Unlock()
	m.announce()
	return nil
}

func (m *fakeMachine) announce() {
	select {
	case m.irq <- struct{}{}:
	default:
	}
}

func (m *fakeMachine) interrupts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.raised + len(m.msis)
}

// write does what KVM does with a guest's write.
func (m *fakeMachine) write(port bool, addr uint64, data []byte) {
	var v [8]byte
	copy(v[:], data)
	k := devices.Kick{Addr: addr, Port: port, Width: len(data)}
	if !m.noKicks {
		m.mu.Lock()
		fd, ok := m.kicks[k]
		if !ok {
			k.Match, k.Value = true, binary.LittleEndian.Uint64(v[:])
			fd, ok = m.kicks[k]
		}
		if ok {
			_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
		m.mu.Unlock()
		if ok {
			return
		}
	}
	if port {
		m.ports.Write(addr, data)
	} else {
		m.mmio.Write(addr, data)
	}
}

func (m *fakeMachine) out(port bool, addr uint64, width int, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	m.write(port, addr, b[:width])
}

func (m *fakeMachine) in(port bool, addr uint64, width int) uint64 {
	var b [8]byte
	if port {
		m.ports.Read(addr, b[:width])
	} else {
		m.mmio.Read(addr, b[:width])
	}
	return binary.LittleEndian.Uint64(b[:])
}

// guestBuffer is one descriptor of a request.
type guestBuffer struct {
	addr     uint64
	len      uint32
	writable bool
}

// guestRing is the driver's side of a split ring, laid out as legacy drivers do.
type guestRing struct {
	t                 testing.TB
	mem               *memory.Guest
	size              uint16
	desc, avail, used uint64
	next, added, seen uint16

	packed, eventIdx bool
	wraps            [2]bool           // the driver's, and that of used descriptors
	length           map[uint16]uint16 // entries of each chain in the ring
}

// makePacked turns an unused ring into a packed one; its parts keep their places.
func (r *guestRing) makePacked() {
	r.packed, r.wraps, r.length = true, [2]bool{true, true}, map[uint16]uint16{}
	r.next, r.seen = 0, 0
	r.put(r.desc, make([]byte, 16*uint64(r.size)))
	r.put(r.avail, make([]byte, 4))
	r.put(r.used, make([]byte, 4))
}

// ringFeatures has packed rings for all queues, or for none.
func ringFeatures(features uint64, rings []*guestRing) uint64 {
	for _, r := range rings {
		if !r.packed {
			return features &^ FeaturePacked
		}
	}
	return features
}

// addPacked makes a request available in a packed ring: the flags of its first
// descriptor come last.
func (r *guestRing) addPacked(buffers []guestBuffer) uint16 {
	head, first := r.next, uint16(0)
	for i, b := range buffers {
		flags := uint16(descUsed)
		if r.wraps[0] {
			flags = descAvail
		}
		if b.writable {
			flags |= descWrite
		}
		if i < len(buffers)-1 {
			flags |= descNext
		}
		at := r.desc + 16*uint64(r.next)
		var d [14]byte
		binary.LittleEndian.PutUint64(d[:], b.addr)
		binary.LittleEndian.PutUint32(d[8:], b.len)
		binary.LittleEndian.PutUint16(d[12:], head)
		r.put(at, d[:])
		if i == 0 {
			first = flags
		} else {
			memory.Store16(r.word(at+14), flags)
		}
		if r.next++; r.next == r.size {
			r.next, r.wraps[0] = 0, !r.wraps[0]
		}
	}
	r.length[head] = uint16(len(buffers))
	memory.Store16(r.word(r.desc+16*uint64(head)+14), first)
	r.added++
	return head
}

// takePacked is take for a packed ring.
func (r *guestRing) takePacked() (id, written uint32, ok bool) {
	at := r.desc + 16*uint64(r.seen)
	used := func() bool {
		flags := memory.Load16(r.word(at + 14))
		return flags&descAvail != 0 == r.wraps[1] && flags&descUsed != 0 == r.wraps[1]
	}
	if !used() {
		if r.eventIdx {
			memory.Store16(r.word(r.avail), wrapped(r.seen, r.wraps[1]))
			memory.Store16(r.word(r.avail+2), eventDesc)
		}
		memory.Fence()
		if !used() {
			return 0, 0, false
		}
	}
	d := r.get(at, 14)
	head := binary.LittleEndian.Uint16(d[12:])
	if r.seen += r.length[head]; r.seen >= r.size {
		r.seen, r.wraps[1] = r.seen-r.size, !r.wraps[1]
	}
	return uint32(head), binary.LittleEndian.Uint32(d[8:]), true
}

func newGuestRing(t testing.TB, mem *memory.Guest, at uint64, size uint16) *guestRing {
	n := uint64(size)
	r := &guestRing{t: t, mem: mem, size: size, desc: at, avail: at + 16*n}
	r.used = (r.avail + 6 + 2*n + 4095) &^ 4095
	r.put(at, make([]byte, r.used+8*n+6-at))
	return r
}

func (r *guestRing) put(addr uint64, p []byte) {
	if err := r.mem.Write(memory.GPA(addr), p); err != nil {
		r.t.Fatal(err)
	}
}

func (r *guestRing) get(addr uint64, n int) []byte {
	p := make([]byte, n)
	if err := r.mem.Read(memory.GPA(addr), p); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *guestRing) word(addr uint64) []byte {
	b, err := r.mem.Slice(memory.GPA(addr), 2)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// describe writes a descriptor into a table.
func (r *guestRing) describe(table uint64, i uint16, addr uint64, size uint32, flags, next uint16) {
	var d [16]byte
	binary.LittleEndian.PutUint64(d[:], addr)
	binary.LittleEndian.PutUint32(d[8:], size)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
	r.put(table+16*uint64(i), d[:])
}

// offer makes the chain that starts at head available.
func (r *guestRing) offer(head uint16) {
	r.put(r.avail+4+2*uint64(r.added%r.size), []byte{byte(head), byte(head >> 8)})
	r.added++
	memory.Store16(r.word(r.avail+2), r.added)
}

// add makes a request of direct descriptors available.
func (r *guestRing) add(buffers ...guestBuffer) uint16 {
	if r.packed {
		return r.addPacked(buffers)
	}
	head := r.next
	for i, b := range buffers {
		var flags uint16
		if b.writable {
			flags |= descWrite
		}
		if i < len(buffers)-1 {
			flags |= descNext
		}
		at := r.next % r.size
		r.next++
		r.describe(r.desc, at, b.addr, b.len, flags, r.next%r.size)
	}
	r.offer(head % r.size)
	return head % r.size
}

// take returns the next used entry. If there is none it asks for an interrupt.
func (r *guestRing) take() (id, written uint32, ok bool) {
	if r.packed {
		return r.takePacked()
	}
	if memory.Load16(r.word(r.used+2)) == r.seen {
		memory.Store16(r.word(r.avail+4+2*uint64(r.size)), r.seen)
		memory.Fence()
		if memory.Load16(r.word(r.used+2)) == r.seen {
			return 0, 0, false
		}
	}
	e := r.get(r.used+4+8*uint64(r.seen%r.size), 8)
	r.seen++
	return binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), true
}

// driver is the part of a guest's driver that depends on the transport.
type driver struct {
	name string
	// probe resets the device, accepts all of the given features that are
	// offered, places the rings and sets DRIVER_OK.
	probe  func(features uint64, rings ...*guestRing)
	kick   func(queue int)
	ack    func() uint8 // read and clear the interrupt status
	status func() uint8
	reset  func()
	// prepare makes a ring what the driver will place; probe does it where
	// nothing is added before.
	prepare func(*guestRing)
	config  func(offset uint64, width int) uint64
	close   func() error
	t       *transport
}

const fakeMMIO = 0xd0000000

func newMMIODriver(t testing.TB, m *fakeMachine, dev Device, report func(error)) *driver {
	d, err := NewMMIO(m, &m.mmio, fakeMMIO, 5, dev, report)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	out := func(reg, v uint64) { m.out(false, fakeMMIO+reg, 4, v) }
	in := func(reg uint64) uint64 { return m.in(false, fakeMMIO+reg, 4) }
	if in(mmioMagic) != 0x74726976 || in(mmioVersion) != 2 || in(mmioDeviceID) != uint64(dev.ID()) {
		t.Fatal("identification registers")
	}
	return &driver{
		name: "mmio",
		probe: func(features uint64, rings ...*guestRing) {
			features = ringFeatures(features, rings)
			out(mmioStatus, 0)
			out(mmioStatus, 3)
			for i := uint64(0); i < 2; i++ {
				out(mmioFeaturesSel, i)
				out(mmioDriverSel, i)
				out(mmioDriverFeats, in(mmioFeatures)&(features>>(32*i)))
			}
			out(mmioStatus, 11)
			for i, r := range rings {
				out(mmioQueueSel, uint64(i))
				out(mmioQueueSize, uint64(r.size))
				out(mmioDescLow, r.desc)
				out(mmioDescHigh, 0)
				out(mmioAvailLow, r.avail)
				out(mmioAvailHigh, 0)
				out(mmioUsedLow, r.used)
				out(mmioUsedHigh, 0)
				out(mmioQueueReady, 1)
			}
			out(mmioStatus, 15)
		},
		kick: func(q int) { out(mmioQueueNotify, uint64(q)) },
		ack: func() uint8 {
			v := in(mmioInterruptStatus)
			out(mmioInterruptACK, v)
			return uint8(v)
		},
		status: func() uint8 { return uint8(in(mmioStatus)) },
		reset:  func() { out(mmioStatus, 0) },
		config: func(off uint64, width int) uint64 { return m.in(false, fakeMMIO+mmioConfig+off, width) },
		close:  d.Close,
		t:      &d.transport,
	}
}

func configSpace(m *fakeMachine) (in func(reg, width int) uint64, out func(reg, width int, v uint64)) {
	sel := func(reg int) { m.out(true, 0xcf8, 4, 1<<31|1<<11|uint64(reg&^3)) }
	in = func(reg, width int) uint64 { sel(reg); return m.in(true, 0xcfc+uint64(reg&3), width) }
	out = func(reg, width int, v uint64) { sel(reg); m.out(true, 0xcfc+uint64(reg&3), width, v) }
	return in, out
}

func newPCIDevice(t testing.TB, m *fakeMachine, dev Device, report func(error)) *PCI {
	bus, err := devices.NewPCI(&m.ports, &m.mmio)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewPCI(m, bus, 11, dev, report)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newLegacyDriver(t testing.TB, m *fakeMachine, dev Device, report func(error)) *driver {
	d := newPCIDevice(t, m, dev, report)
	cfg, _ := configSpace(m)
	if id := cfg(0, 4); id&0xffff != 0x1af4 || id>>16 < 0x1000 || id>>16 > 0x103f {
		t.Fatalf("device id %#x", id)
	}
	if cfg(0x2e, 2) != uint64(dev.ID()) || cfg(0x08, 1) != 0 || cfg(0x3c, 1) != 11 || cfg(0x3d, 1) != 1 {
		t.Fatal("subsystem, revision or interrupt")
	}
	bar := cfg(0x10, 4)
	if bar&1 == 0 {
		t.Fatalf("BAR 0 is %#x", bar)
	}
	base := bar &^ 3
	out := func(reg uint64, width int, v uint64) { m.out(true, base+reg, width, v) }
	in := func(reg uint64, width int) uint64 { return m.in(true, base+reg, width) }
	return &driver{
		name: "legacy",
		probe: func(features uint64, rings ...*guestRing) {
			features = ringFeatures(features, rings)
			out(legacyStatus, 1, 0)
			out(legacyStatus, 1, 3)
			out(legacyAccepted, 4, in(legacyOffered, 4)&features)
			for i, r := range rings {
				out(legacyQueueSel, 2, uint64(i))
				if in(legacyPFN, 4) != 0 || in(legacyQueueSize, 2) != uint64(r.size) {
					t.Errorf("queue %d: PFN %#x, size %d", i, in(legacyPFN, 4), in(legacyQueueSize, 2))
				}
				out(legacyPFN, 4, r.desc>>12)
			}
			out(legacyStatus, 1, 7)
		},
		kick:   func(q int) { out(legacyNotify, 2, uint64(q)) },
		ack:    func() uint8 { return uint8(in(legacyISR, 1)) },
		status: func() uint8 { return uint8(in(legacyStatus, 1)) },
		reset:  func() { out(legacyStatus, 1, 0) },
		config: func(off uint64, width int) uint64 { return in(legacyConfig+off, width) },
		close:  d.Close,
		t:      &d.transport,
	}
}

// newModernDriver finds the structures through the capabilities, as Linux does.
func newModernDriver(t testing.TB, m *fakeMachine, dev Device, report func(error), msi bool) *driver {
	d := newPCIDevice(t, m, dev, report)
	cfg, cfgOut := configSpace(m)
	where := map[uint64]uint64{}
	var multiplier, table uint64
	base := cfg(0x14, 4)
	for at := int(cfg(0x34, 1)); at != 0; at = int(cfg(at+1, 1)) {
		switch cfg(at, 1) {
		case 0x09:
			kind := cfg(at+3, 1)
			where[kind] = base + cfg(at+8, 4)
			if kind == 2 {
				multiplier = cfg(at+16, 4)
			}
		case 0x11:
			table = base + cfg(at+4, 4)&^7
			if msi {
				cfgOut(at+2, 2, 0x8000)
			}
		}
	}
	if len(where) != 5 || table == 0 {
		t.Fatalf("capabilities %v", where)
	}
	out := func(reg uint64, width int, v uint64) { m.out(false, where[1]+reg, width, v) }
	in := func(reg uint64, width int) uint64 { return m.in(false, where[1]+reg, width) }
	dr := &driver{
		name: "modern",
		probe: func(features uint64, rings ...*guestRing) {
			features = ringFeatures(features, rings)
			out(commonStatus, 1, 0)
			out(commonStatus, 1, 3)
			for i := uint64(0); i < 2; i++ {
				out(commonOfferSel, 4, i)
				out(commonAcceptSel, 4, i)
				out(commonAccepted, 4, in(commonOffered, 4)&(features>>(32*i)))
			}
			out(commonStatus, 1, 11)
			if msi {
				for v := uint64(0); v <= uint64(len(rings)); v++ {
					m.out(false, table+16*v, 8, 0xfee00000)
					m.out(false, table+16*v+8, 4, 0x40+v)
					m.out(false, table+16*v+12, 4, 0)
				}
				out(commonConfigVector, 2, 0)
			}
			for i, r := range rings {
				out(commonQueueSel, 2, uint64(i))
				out(commonQueueSize, 2, uint64(r.size))
				if msi {
					out(commonQueueVector, 2, uint64(i+1))
				}
				out(commonDesc, 8, r.desc)
				out(commonAvail, 4, r.avail)
				out(commonAvail+4, 4, 0)
				out(commonUsed, 4, r.used)
				out(commonUsed+4, 4, 0)
				out(commonQueueEnable, 2, 1)
			}
			out(commonStatus, 1, 15)
		},
		kick:   func(q int) { m.out(false, where[2]+uint64(q)*multiplier, 2, uint64(q)) },
		ack:    func() uint8 { return uint8(m.in(false, where[3], 1)) },
		status: func() uint8 { return uint8(in(commonStatus, 1)) },
		reset:  func() { out(commonStatus, 1, 0) },
		config: func(off uint64, width int) uint64 { return m.in(false, where[4]+off, width) },
		close:  d.Close,
		t:      &d.transport,
	}
	if msi {
		dr.name = "modern, MSI-X"
		dr.ack = func() uint8 { return interruptBit(1) }
	}
	return dr
}

// packed is a driver that makes its rings packed ones.
func packed(d *driver) *driver {
	probe := d.probe
	d.prepare = func(r *guestRing) {
		if !r.packed && r.mem != nil {
			r.makePacked()
		}
	}
	d.probe = func(features uint64, rings ...*guestRing) {
		for _, r := range rings {
			d.prepare(r)
			r.packed, r.eventIdx = true, features&FeatureEventIdx != 0
		}
		probe(features|FeaturePacked, rings...)
	}
	return d
}

// eachTransport runs a test on every transport, with notifications through
// KVM's table and through the handlers.
func eachTransport(t *testing.T, test func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver)) {
	kinds := map[string]func(*testing.T, *fakeMachine, Device, func(error)) *driver{
		"mmio": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return newMMIODriver(t, m, d, r)
		},
		"legacy": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return newLegacyDriver(t, m, d, r)
		},
		"modern": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return newModernDriver(t, m, d, r, false)
		},
		"msix": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return newModernDriver(t, m, d, r, true)
		},
		"packed": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return packed(newMMIODriver(t, m, d, r))
		},
		"packed msix": func(t *testing.T, m *fakeMachine, d Device, r func(error)) *driver {
			return packed(newModernDriver(t, m, d, r, true))
		},
	}
	for name, kind := range kinds {
		for _, noKicks := range []bool{false, true} {
			sub := name
			if noKicks {
				sub += "/handler"
			}
			t.Run(sub, func(t *testing.T) {
				m := newFakeMachine(t)
				m.noKicks = noKicks
				test(t, m, func(d Device, r func(error)) *driver { return kind(t, m, d, r) })
			})
		}
	}
}

// await waits for interrupts until done reports true.
func (m *fakeMachine) await(t testing.TB, what string, done func() bool) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for !done() {
		select {
		case <-m.irq:
		case <-limit.C:
			t.Fatalf("no interrupt: %s", what)
		}
	}
}

// testDevice is a device made of functions.
type testDevice struct {
	id       uint16
	features uint64
	sizes    []uint16
	serve    func(s *Session, queue int)
	active   func(s *Session) error

	session *Session
	resets  int
}

var errTest = errors.New("test")

func (d *testDevice) Name() string                { return "test" }
func (d *testDevice) ID() uint16                  { return d.id }
func (d *testDevice) Features() uint64            { return d.features }
func (d *testDevice) QueueSizes() []uint16        { return d.sizes }
func (d *testDevice) ReadConfig(uint64, []byte)   {}
func (d *testDevice) WriteConfig(uint64, []byte)  {}
func (d *testDevice) Serve(s *Session, queue int) { d.serve(s, queue) }
func (d *testDevice) Reset()                      { d.session = nil; d.resets++ }
func (d *testDevice) Activate(s *Session) error {
	d.session = s
	if d.active != nil {
		return d.active(s)
	}
	return nil
}

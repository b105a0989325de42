package virtio

import (
	"sync"

	"github.com/gvmm/gvmm/devices/iov"
	"github.com/gvmm/gvmm/vmm/memory"
)

// Feature bits that belong to the rings and the transport, not to a device
// (virtio 1.3 6). The package offers and implements them for every device.
const (
	FeatureIndirectDesc = 1 << 28
	FeatureEventIdx     = 1 << 29
	FeatureVersion1     = 1 << 32
	FeaturePacked       = 1 << 34

	// FeatureAccessPlatform is VIRTIO_F_ACCESS_PLATFORM: the driver lets the device at no memory
	// but what the platform gives it. Devices of confidential guests need it.
	FeatureAccessPlatform = 1 << 33
)

// Device is one virtio device: its features, its configuration space and what
// it does with its queues. It knows no transport and no machine.
//
// Threads. The package runs one goroutine a queue, which calls Serve. The other
// methods come from vCPU threads, one at a time, and may run while Serve runs;
// only Activate and Reset never overlap with Serve. A device needs goroutines
// of its own only for what comes from outside (a network, a keyboard): such a
// goroutine never touches a [Queue]; it keeps what it has and calls
// [Session.Wake], and Serve moves it.
type Device interface {
	// Name is used in errors: "virtio-blk".
	Name() string
	// ID is the device type (virtio 1.3 5).
	ID() uint16
	// Features are the device-specific bits it offers (0-23 and 50-127). They
	// do not change.
	Features() uint64
	// QueueSizes gives for each queue the number of entries it offers: a power
	// of two, at most 1024. They do not change.
	QueueSizes() []uint16
	// ReadConfig fills data, which arrives zeroed, from the device's
	// configuration space. The guest chooses offset and length (1 to 8): what
	// lies outside stays zero. Multi-byte fields are little-endian.
	ReadConfig(offset uint64, data []byte)
	// WriteConfig stores the guest's write; what cannot be written is ignored.
	WriteConfig(offset uint64, data []byte)
	// Activate tells the device that the driver is ready (DRIVER_OK); it may
	// keep s until Reset. After it, Serve is called once for every queue the
	// driver set up. An error marks the device as broken (DEVICE_NEEDS_RESET).
	Activate(s *Session) error
	// Serve works on one queue: it takes chains with [Queue.Pop] until that
	// returns false or until the device has to wait for something else, and
	// returns. It is called when the guest has notified the queue, after
	// [Session.Wake], and when service resumes. It must not wait for anything
	// but its back end's read or write: a pause or reset waits for it. Calls
	// for different queues run at the same time. The package calls
	// [Queue.Flush] behind it.
	Serve(s *Session, queue int)
	// Reset ends the session: when it returns no goroutine of the device
	// touches guest memory any more and chains it held are forgotten. Serve is
	// not running. It is called once for each Activate, also for one that failed.
	Reset()
}

// base is a [Device] but for Serve: its properties, a configuration space that
// the guest cannot write, and the session.
type base struct {
	name     string
	id       uint16
	features uint64
	queues   []uint16

	mu      sync.Mutex // guards what follows
	config  []byte
	session *Session // nil unless active
}

// Name and the following implement [Device].
func (b *base) Name() string { return b.name }

// ID implements [Device].
func (b *base) ID() uint16 { return b.id }

// Features implements [Device].
func (b *base) Features() uint64 { return b.features }

// QueueSizes implements [Device].
func (b *base) QueueSizes() []uint16 { return b.queues }

// ReadConfig implements [Device].
func (b *base) ReadConfig(offset uint64, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	readConfig(b.config, offset, data)
}

// WriteConfig implements [Device]: nothing can be written.
func (b *base) WriteConfig(uint64, []byte) {}

// Activate implements [Device].
func (b *base) Activate(s *Session) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session = s
	return nil
}

// Reset implements [Device].
func (b *base) Reset() { _ = b.Activate(nil) }

// readConfig copies from a configuration space that is kept as bytes.
func readConfig(space []byte, offset uint64, data []byte) {
	if offset < uint64(len(space)) {
		copy(data, space[offset:])
	}
}

// Session is one activation of a device, from DRIVER_OK to reset.
type Session struct {
	// Features are the bits that both sides accepted, always a subset of what
	// was offered. Without [FeatureVersion1] the driver is a legacy one.
	Features uint64
	// Queues has one entry for each of [Device.QueueSizes]. A queue that the
	// driver did not set up is there too, and always empty.
	Queues []*Queue
	// Memory is the guest's RAM. Devices use the buffers of a [Chain] instead.
	Memory *memory.Guest

	t *transport
}

// Has reports whether all the given feature bits were accepted.
func (s *Session) Has(bits uint64) bool { return s.Features&bits == bits }

// Wake has Serve called for the queue soon, on the queue's goroutine. It never
// blocks, may be called from any goroutine, and is harmless after Reset.
func (s *Session) Wake(queue int) { s.t.workers[queue].wake() }

// ConfigChanged tells the driver that the configuration space has changed
// (virtio 1.3 2.5). The device makes the change visible to ReadConfig first.
// Any goroutine may call it, until Reset returns.
func (s *Session) ConfigChanged() { s.t.configChanged() }

// Chain is one request: buffers of guest memory, first those the device reads,
// then those it writes. The guest may change them at any time: copy what is
// validated. A Chain is reused by passing it to Pop again; a device that keeps
// requests in flight has one for each.
type Chain struct {
	Readable, Writable Buffers

	head    uint16
	entries uint16 // of a packed ring
}

// Buffers is a list of byte slices taken as one run of bytes.
type Buffers = iov.Buffers

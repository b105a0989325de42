package virtio

import "golang.org/x/sys/unix"

// rngMax bounds the answer to one request; the device may return less than
// the buffer holds (virtio 1.3 5.4.6).
const rngMax = 64 << 10

// RNG is a virtio entropy device (virtio 1.3 5.4) that hands on the host's
// getrandom(2).
type RNG struct {
	chain Chain
	part  Buffers
}

// Name implements [Device].
func (r *RNG) Name() string { return "virtio-rng" }

// ID implements [Device].
func (r *RNG) ID() uint16 { return 4 }

// Features implements [Device].
func (r *RNG) Features() uint64 { return 0 }

// QueueSizes implements [Device].
func (r *RNG) QueueSizes() []uint16 { return rngQueues[:] }

var rngQueues = [...]uint16{64}

// ReadConfig implements [Device]: there is no configuration.
func (r *RNG) ReadConfig(uint64, []byte) {}

// WriteConfig implements [Device].
func (r *RNG) WriteConfig(uint64, []byte) {}

// Activate implements [Device].
func (r *RNG) Activate(*Session) error { return nil }

// Reset implements [Device].
func (r *RNG) Reset() {}

// Serve implements [Device].
func (r *RNG) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	for q.Pop(&r.chain) {
		r.part = r.chain.Writable.AppendRange(r.part[:0], 0, rngMax)
		written := 0
		for _, b := range r.part {
			for len(b) > 0 {
				n, err := unix.Getrandom(b, 0)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					break // no such system call: the guest gets less, or nothing
				}
				written += n
				b = b[n:]
			}
		}
		q.Push(&r.chain, uint32(written))
	}
}

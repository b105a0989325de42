package virtio

import "golang.org/x/sys/unix"

// rngMax bounds the answer to one request; the device may return less than
// the buffer holds (virtio 1.3 5.4.6).
const rngMax = 64 << 10

// RNG is a virtio entropy device (virtio 1.3 5.4) that hands on the host's
// getrandom(2).
type RNG struct {
	base
	chain Chain
	part  Buffers
}

// NewRNG makes an entropy device with one queue.
func NewRNG() *RNG {
	return &RNG{base: base{name: "virtio-rng", id: 4, queues: []uint16{64}}}
}

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

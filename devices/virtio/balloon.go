package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/vmm/memory"
)

// The memory balloon (virtio 1.3 5.5).
const (
	balloonStats     = 1 << 1
	balloonOOM       = 1 << 2 // the driver takes pages back before it runs out of memory
	balloonReporting = 1 << 5

	balloonPage = 4096 // also where the guest's pages are larger

	balloonInflate = 0
	balloonDeflate = 1

	statBytes = 10 // a tag of 2 bytes, a value of 8
	maxStats  = 64
)

// statNames are the guest's memory statistics by tag (5.5.6.3).
var statNames = [...]string{"swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "caches", "hugetlb_allocations", "hugetlb_failures"}

// Balloon is a virtio memory balloon: what the guest puts into it, and what it
// reports as free, goes back to the host.
type Balloon struct {
	base
	size     uint64 // bytes of guest RAM
	chains   [4]Chain
	stats    int // queues by the features that were accepted, -1 for none
	reports  int
	held     bool // the stats queue's chain is with the device
	wanted   bool // the guest is to fill it anew
	reported map[string]uint64
	fresh    chan struct{} // closed and replaced when statistics have come
}

// NewBalloon makes a balloon for a guest with size bytes of RAM.
func NewBalloon(size uint64) *Balloon {
	return &Balloon{size: size, fresh: make(chan struct{}), base: base{name: "virtio-balloon", id: 5,
		features: balloonStats | balloonOOM | balloonReporting, queues: []uint16{128, 128, 128, 128}, config: make([]byte, 16)}}
}

// WriteConfig implements [Device]: the driver says how large the balloon is.
func (b *Balloon) WriteConfig(offset uint64, data []byte) {
	const actual = 4
	b.mu.Lock()
	defer b.mu.Unlock()
	if offset == actual && len(data) == 4 {
		copy(b.config[actual:], data)
	}
}

// Activate implements [Device].
func (b *Balloon) Activate(s *Session) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session, b.held, b.stats, b.reports = s, false, -1, -1
	next := 2 // queues that were not negotiated leave no gap
	for _, q := range []struct {
		feature uint64
		queue   *int
	}{{balloonStats, &b.stats}, {balloonReporting, &b.reports}} {
		if s.Has(q.feature) {
			*q.queue = next
			next++
		}
	}
	return nil
}

// SetTarget asks the guest to give up n bytes of its memory, in whole pages.
func (b *Balloon) SetTarget(n uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.size {
		return fmt.Errorf("balloon of %d MiB: the guest has %d MiB", n>>20, b.size>>20)
	}
	binary.LittleEndian.PutUint32(b.config, uint32(n/balloonPage))
	if b.session != nil {
		b.session.ConfigChanged()
	}
	return nil
}

// Sizes returns what the balloon should hold and what it holds, in bytes.
func (b *Balloon) Sizes() (target, actual uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(binary.LittleEndian.Uint32(b.config)) * balloonPage, uint64(binary.LittleEndian.Uint32(b.config[4:])) * balloonPage
}

// Statistics asks the guest for its memory statistics and waits for them, for a
// limited time: a guest without a driver never answers.
func (b *Balloon) Statistics(within time.Duration) (map[string]uint64, error) {
	b.mu.Lock()
	if b.session == nil || b.stats < 0 {
		b.mu.Unlock()
		return nil, errors.New("the guest has no balloon driver, or one without statistics")
	}
	b.wanted = true
	b.session.Wake(b.stats)
	fresh := b.fresh
	b.mu.Unlock()
	select {
	case <-fresh:
	case <-time.After(within):
		b.mu.Lock()
		defer b.mu.Unlock()
		b.wanted = false
		return nil, fmt.Errorf("the guest did not report its memory within %v", within)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reported, nil
}

// Serve implements [Device].
func (b *Balloon) Serve(s *Session, queue int) {
	q, c := s.Queues[queue], &b.chains[queue]
	if queue == b.stats {
		b.serveStats(q, c)
		return
	}
	for q.Pop(c) {
		switch queue {
		case balloonInflate:
			b.inflate(s, c)
		case balloonDeflate: // the guest uses its pages again: they come back as it touches them
		case b.reports:
			for _, pages := range c.Writable {
				giveBack(pages)
			}
		}
		q.Push(c, 0)
	}
}

// inflate gives the pages in a list back to the host.
func (b *Balloon) inflate(s *Session, c *Chain) {
	const most = 1 << 16 // pages in one request
	list := make([]byte, min(c.Readable.Len()&^3, 4*most))
	c.Readable.CopyTo(list, 0)
	for len(list) > 0 {
		first, n := binary.LittleEndian.Uint32(list), uint32(0)
		for len(list) > 0 && binary.LittleEndian.Uint32(list) == first+n {
			list, n = list[4:], n+1
		}
		if pages, err := s.Memory.Slice(memory.GPA(first)*balloonPage, uint64(n)*balloonPage); err == nil {
			giveBack(pages)
		}
	}
}

// giveBack gives whole pages back to the host. Of what is not whole pages it
// touches nothing.
func giveBack(pages []byte) { _ = unix.Madvise(pages, unix.MADV_DONTNEED) }

// serveStats takes the guest's statistics and keeps the buffer they came in
// until new ones are wanted (5.5.6.3).
func (b *Balloon) serveStats(q *Queue, c *Chain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held && b.wanted {
		q.Push(c, 0)
		b.held = false
	}
	if b.held || !q.Pop(c) {
		return
	}
	b.held = true
	var entry [statBytes]byte
	got := map[string]uint64{}
	for at := 0; at < maxStats*statBytes && c.Readable.CopyTo(entry[:], at) == statBytes; at += statBytes {
		if tag := binary.LittleEndian.Uint16(entry[:]); int(tag) < len(statNames) {
			got[statNames[tag]] = binary.LittleEndian.Uint64(entry[2:])
		}
	}
	b.reported = got
	if b.wanted {
		b.wanted = false
		close(b.fresh)
		b.fresh = make(chan struct{})
	}
}

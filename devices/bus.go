package devices

import (
	"fmt"
	"math"
	"sort"
	"sync"
	"sync/atomic"
)

// Bus maps addresses to handlers. Look-ups take no lock: the sorted table is
// replaced as a whole when a range is added, moved or removed.
type Bus struct {
	mu    sync.Mutex // serializes changes
	table atomic.Pointer[[]busRange]
}

type busRange struct {
	base, size uint64
	name       string
	h          Handler
}

func (r *busRange) last() uint64 { return r.base + (r.size - 1) }

// Add maps [base, base+size) to h. The name is used in errors. A range that is
// empty, wraps or overlaps another is an error.
func (b *Bus) Add(name string, base, size uint64, h Handler) error {
	if size == 0 || base > math.MaxUint64-(size-1) {
		return fmt.Errorf("bus: %s: bad range %#x+%#x", name, base, size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.ranges()
	r := busRange{base, size, name, h}
	i := sort.Search(len(old), func(i int) bool { return old[i].base > base })
	if i > 0 && old[i-1].last() >= base {
		return fmt.Errorf("bus: %s at %#x overlaps %s at %#x", name, base, old[i-1].name, old[i-1].base)
	}
	if i < len(old) && r.last() >= old[i].base {
		return fmt.Errorf("bus: %s at %#x overlaps %s at %#x", name, base, old[i].name, old[i].base)
	}
	next := make([]busRange, 0, len(old)+1)
	next = append(append(append(next, old[:i]...), r), old[i:]...)
	b.table.Store(&next)
	return nil
}

// Remove unmaps the range that starts at base. It reports whether there was one.
func (b *Bus) Remove(base uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.ranges()
	for i := range old {
		if old[i].base == base {
			next := make([]busRange, 0, len(old)-1)
			next = append(append(next, old[:i]...), old[i+1:]...)
			b.table.Store(&next)
			return true
		}
	}
	return false
}

func (b *Bus) ranges() []busRange {
	if t := b.table.Load(); t != nil {
		return *t
	}
	return nil
}

// find returns the range that holds all n bytes at addr.
func (b *Bus) find(addr uint64, n int) *busRange {
	t := b.ranges()
	lo, hi := 0, len(t)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if t[mid].base > addr {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 {
		return nil
	}
	r := &t[lo-1]
	if off := addr - r.base; off >= r.size || uint64(n) > r.size-off {
		return nil
	}
	return r
}

// Read serves a guest's read of len(data) bytes. Bytes nobody serves read as
// 0xff, as on an empty bus. It reports whether a handler served it.
func (b *Bus) Read(addr uint64, data []byte) bool {
	for i := range data {
		data[i] = 0xff
	}
	r := b.find(addr, len(data))
	if r == nil {
		return false
	}
	r.h.Read(addr-r.base, data)
	return true
}

// Write serves a guest's write; one that nobody serves is dropped. It reports
// whether a handler served it.
func (b *Bus) Write(addr uint64, data []byte) bool {
	r := b.find(addr, len(data))
	if r == nil {
		return false
	}
	r.h.Write(addr-r.base, data)
	return true
}

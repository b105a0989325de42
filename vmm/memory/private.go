package memory

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrPrivate is wrapped by every error for memory that a confidential guest has
// not shared with the monitor.
var ErrPrivate = errors.New("private memory of a confidential guest")

// MakeConfidential makes all memory private. It comes before any other use of
// the memory; from then on only what [Guest.Convert] has shared is accessible.
func (g *Guest) MakeConfidential() {
	for i := range g.regions {
		r := &g.regions[i]
		r.private = make([]atomic.Uint64, (r.Size/pageSize+63)/64)
		r.mark(0, r.Size, true)
	}
}

// Confidential reports whether memory can be private.
func (g *Guest) Confidential() bool { return len(g.regions) > 0 && g.regions[0].private != nil }

// Find returns the index of the region that holds all of a range of whole pages.
func (g *Guest) Find(r Range) (int, error) {
	for i := range g.regions {
		if g.regions[i].Contains(r.Base, r.Size) && r.Size != 0 && (uint64(r.Base)|r.Size)%pageSize == 0 {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%d bytes at %#x: not whole pages of memory: %w", r.Size, uint64(r.Base), ErrOutside)
}

// Convert marks pages of a confidential guest's memory, whole ones of one region,
// as private, and gives back what the host has behind them, or as shared. A slice
// that somebody still holds of pages that became private reads as zeros; what is
// written there is lost.
func (g *Guest) Convert(r Range, private bool) error {
	i, err := g.Find(r)
	if err != nil || g.regions[i].private == nil {
		return err
	}
	region := &g.regions[i]
	off := uint64(r.Base - region.Base)
	region.mark(off, r.Size, private)
	if !private {
		return nil
	}
	return discard(region.host[off : off+r.Size])
}

// words calls f for each word of the bitmap that has bits of [off, off+n), until
// f returns false.
func (r *Region) words(off, n uint64, f func(word *atomic.Uint64, mask uint64) bool) {
	for p, end := off/pageSize, (off+n+pageSize-1)/pageSize; p < end; {
		bits := min(64-p%64, end-p)
		if !f(&r.private[p/64], (^uint64(0)>>(64-bits))<<(p%64)) {
			return
		}
		p += bits
	}
}

func (r *Region) mark(off, n uint64, private bool) {
	r.words(off, n, func(word *atomic.Uint64, mask uint64) bool {
		if private {
			word.Or(mask)
		} else {
			word.And(^mask)
		}
		return true
	})
}

// anyPrivate reports whether one of the bytes is private.
func (r *Region) anyPrivate(off, n uint64) (found bool) {
	r.words(off, n, func(word *atomic.Uint64, mask uint64) bool {
		found = word.Load()&mask != 0
		return !found
	})
	return found
}

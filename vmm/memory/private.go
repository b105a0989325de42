package memory

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrPrivate is wrapped by every error for memory that a confidential guest has
// not shared with the monitor.
var ErrPrivate = errors.New("private memory of a confidential guest")

// bitmap has a bit for each page of a region, set for a private one.
type bitmap []atomic.Uint64

// MakeConfidential makes all memory private. It comes before any other use of
// the memory; from then on only what [Guest.Convert] has shared is accessible.
func (g *Guest) MakeConfidential() {
	g.open = nil
	for i := range g.regions {
		size := g.regions[i].Size
		b := make(bitmap, (size/pageSize+63)/64)
		b.mark(0, size, true)
		g.private = append(g.private, b)
	}
}

// Confidential reports whether memory can be private.
func (g *Guest) Confidential() bool { return g.private != nil }

// sliceShared is the end of [Guest.Slice] for all but the open regions.
func (g *Guest) sliceShared(gpa GPA, n uint64) ([]byte, error) {
	for i, b := range g.private {
		r := &g.regions[i]
		if !r.Contains(gpa, n) {
			continue
		}
		off := uint64(gpa - r.Base)
		if b.any(off, n) {
			return nil, fmt.Errorf("%d bytes at %#x: %w", n, uint64(gpa), ErrPrivate)
		}
		return r.host[off : off+n : off+n], nil
	}
	return nil, fmt.Errorf("%d bytes at %#x: %w", n, uint64(gpa), ErrOutside)
}

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
	if err != nil || g.private == nil {
		return err
	}
	off := uint64(r.Base - g.regions[i].Base)
	g.private[i].mark(off, r.Size, private)
	if !private {
		return nil
	}
	return discard(g.regions[i].host[off : off+r.Size])
}

// words calls f for each word of the bitmap that has bits of [off, off+n), until
// f returns false.
func (b bitmap) words(off, n uint64, f func(word *atomic.Uint64, mask uint64) bool) {
	for p, end := off/pageSize, (off+n+pageSize-1)/pageSize; p < end; {
		bits := min(64-p%64, end-p)
		if !f(&b[p/64], (^uint64(0)>>(64-bits))<<(p%64)) {
			return
		}
		p += bits
	}
}

func (b bitmap) mark(off, n uint64, private bool) {
	b.words(off, n, func(word *atomic.Uint64, mask uint64) bool {
		if private {
			word.Or(mask)
		} else {
			word.And(^mask)
		}
		return true
	})
}

// any reports whether one of the bytes is private.
func (b bitmap) any(off, n uint64) (found bool) {
	b.words(off, n, func(word *atomic.Uint64, mask uint64) bool {
		found = word.Load()&mask != 0
		return !found
	})
	return found
}

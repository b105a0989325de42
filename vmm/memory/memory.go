package memory

import (
	"errors"
	"fmt"
	"math"
	"sort"
)

// GPA is a guest physical address.
type GPA uint64

// Range is a half-open range [Base, Base+Size) of guest physical addresses.
type Range struct {
	Base GPA
	Size uint64 // bytes
}

// End returns the first address behind the range.
func (r Range) End() GPA { return r.Base + GPA(r.Size) }

// Contains reports whether all n bytes at gpa lie inside the range.
func (r Range) Contains(gpa GPA, n uint64) bool {
	return gpa >= r.Base && n <= r.Size && uint64(gpa-r.Base) <= r.Size-n
}

func (r Range) String() string {
	return fmt.Sprintf("%#x-%#x", uint64(r.Base), uint64(r.End())-1)
}

// ErrOutside is wrapped by every error for an address that is not guest RAM.
var ErrOutside = errors.New("address outside guest memory")

// Region is one contiguous piece of guest RAM backed by host memory.
type Region struct {
	Range
	host []byte
}

// Host returns the host memory behind the region, Size bytes. Only the code
// that hands the region to KVM needs it.
func (r *Region) Host() []byte { return r.host }

// Guest is the RAM of one guest: non-overlapping regions in ascending order.
// Its methods may be called from any goroutine.
type Guest struct {
	regions []Region
	open    []Region // those without private pages: all, or none of a confidential guest's
	private []bitmap // of a confidential guest's regions
	alias   GPA      // address bit that makes no difference, in a confidential guest
}

// New maps zeroed, lazily allocated host memory for each range. Ranges must be
// page-aligned, non-empty and must not overlap; they may come in any order.
func New(ranges ...Range) (*Guest, error) {
	g := &Guest{}
	for _, r := range ranges {
		if r.Size == 0 || r.Size%pageSize != 0 || uint64(r.Base)%pageSize != 0 {
			return nil, fmt.Errorf("guest memory %v: not whole pages", r)
		}
		if r.Size > math.MaxInt64 || uint64(r.Base) > math.MaxUint64-r.Size {
			return nil, fmt.Errorf("guest memory %v: too large", r)
		}
		host, err := mapAnonymous(r.Size)
		if err != nil {
			_ = g.Close()
			return nil, fmt.Errorf("guest memory %v: map %d bytes on the host: %w", r, r.Size, err)
		}
		g.regions = append(g.regions, Region{Range: r, host: host})
	}
	sort.Slice(g.regions, func(i, j int) bool { return g.regions[i].Base < g.regions[j].Base })
	for i := 1; i < len(g.regions); i++ {
		if g.regions[i].Base < g.regions[i-1].End() {
			err := fmt.Errorf("guest memory %v overlaps %v", g.regions[i].Range, g.regions[i-1].Range)
			_ = g.Close()
			return nil, err
		}
	}
	g.open = g.regions
	return g, nil
}

// Close unmaps the guest's memory. No slice of it may be used afterwards.
func (g *Guest) Close() error {
	var errs []error
	for i := range g.regions {
		errs = append(errs, unmap(g.regions[i].host))
	}
	g.regions, g.open, g.private = nil, nil, nil
	return errors.Join(errs...)
}

// Regions returns the regions in ascending order.
func (g *Guest) Regions() []Region { return g.regions }

// Size returns the guest's RAM in bytes.
func (g *Guest) Size() uint64 {
	var n uint64
	for i := range g.regions {
		n += g.regions[i].Size
	}
	return n
}

// SetAlias names an address bit by which the guest says that it means shared
// memory. It comes before any other use of the memory.
func (g *Guest) SetAlias(bit GPA) { g.alias = bit }

// Strip returns an address without the bit of [Guest.SetAlias].
func (g *Guest) Strip(gpa GPA) GPA { return gpa &^ g.alias }

// Slice returns the n bytes of guest memory at gpa. They lie in one region or the
// error wraps [ErrOutside]; none is private or it wraps [ErrPrivate]. The guest may
// change them at any time.
func (g *Guest) Slice(gpa GPA, n uint64) ([]byte, error) {
	for i := range g.open {
		r := &g.open[i]
		if r.Contains(gpa, n) {
			off := uint64(gpa - r.Base)
			return r.host[off : off+n : off+n], nil
		}
	}
	return g.sliceShared(g.Strip(gpa), n)
}

// Read copies len(p) bytes at gpa into p.
func (g *Guest) Read(gpa GPA, p []byte) error {
	s, err := g.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, s)
	return nil
}

// Write copies p to gpa.
func (g *Guest) Write(gpa GPA, p []byte) error {
	s, err := g.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(s, p)
	return nil
}

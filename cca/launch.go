package cca

import (
	"fmt"
	"runtime"
	"sort"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/vmm/memory"
)

// Launch is everything of a realm's launch that the RIM depends on: the
// parameters and, in their order, what the host does with memory and vCPUs.
type Launch struct {
	Params Params
	Ops    []Op
}

// OpKind says what an [Op] does.
type OpKind string

// The kinds of operation.
const (
	OpRIPAS    OpKind = "ripas"    // set Range to RIPAS RAM
	OpPopulate OpKind = "populate" // fill Range with measured granules
	OpREC      OpKind = "rec"      // create a vCPU
)

// Op is one operation of a launch.
type Op struct {
	Kind OpKind
	Name string // what it is about, for people

	memory.Range           // whole granules
	Data         boot.Blob // of OpPopulate: the bytes at Offset in the range; what it leaves is zero
	Offset       uint64
	REC          REC
}

// PlanLaunch returns the launch of a plan of gvmm's own: all of RAM is set to
// RIPAS RAM, what is not zero is populated in whole granules, ascending, and the
// first vCPU starts as the boot protocol wants it.
func PlanLaunch(p *boot.Plan, c *Config) (*Launch, error) {
	if p.ARM64 == nil {
		return nil, fmt.Errorf("a realm is an arm64 guest, not one for %s", p.Arch)
	}
	l := &Launch{Params: c.Params}
	if l.Params.IPABits == 0 {
		l.Params.IPABits = ipaBitsFor(p.RAM[len(p.RAM)-1].End() - 1)
	}
	for _, m := range p.RAM {
		l.add(OpRIPAS, "RAM", m, nil, 0)
	}
	end := memory.GPA(0)
	for _, r := range p.Regions {
		g := pages(memory.Range{Base: r.Base, Size: uint64(r.Data.Size())})
		if g.Size == 0 {
			continue
		}
		if g.Base < end {
			return nil, fmt.Errorf("%s: it shares a granule at %#x with what lies before it, and each is populated once: give the guest more memory", r.Name, uint64(g.Base))
		}
		end = g.End()
		l.add(OpPopulate, r.Name, g, r.Data, uint64(r.Base-g.Base))
	}
	rec := REC{Runnable: true, PC: p.ARM64.PC}
	copy(rec.GPRs[:], p.ARM64.X[:])
	l.Ops = append(l.Ops, Op{Kind: OpREC, Name: "vCPU 0", REC: rec})
	l.Order(c.ABI)
	return l, nil
}

// Order puts the operations into the order of a kernel's interface, one of [ABIs]
// or "" for that of most. Where the kernel itself sets RIPAS, it comes last.
func (l *Launch) Order(name string) {
	if a := findABI(name); a != nil && a.explicit == nil {
		sort.SliceStable(l.Ops, func(i, j int) bool { return l.Ops[i].Kind != OpRIPAS && l.Ops[j].Kind == OpRIPAS })
	}
}

// Measure returns the RIM of the launch, 32 or 64 bytes. trace, where not nil,
// is called for each extension with the name of the operation it belongs to.
func (l *Launch) Measure(v Version, trace func(name string, s Step)) ([]byte, error) {
	name := "parameters"
	var step func(Step)
	if trace != nil {
		step = func(s Step) { trace(name, s) }
	}
	r, err := Create(v, l.Params, step)
	if err != nil {
		return nil, err
	}
	for _, op := range l.Ops {
		name = op.Name
		switch op.Kind {
		case OpRIPAS:
			err = r.InitRIPAS(op.Base, op.End())
		case OpPopulate:
			err = r.Populate(op.Range, op.Data, op.Offset)
		case OpREC:
			r.REC(op.REC)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
	}
	return r.Value(), nil
}

const chunkSize = 64 * Granule // bytes that one goroutine reads and hashes at a time

// chunk is a piece of a populated range on its way through a goroutine.
type chunk struct {
	buf  [chunkSize]byte
	sums [chunkSize / Granule]measurement
	done chan error
}

// Populate measures every granule of a range, ascending, as [RIM.Data] does:
// the bytes of data, which start at offset in the range, and zeros around them. Granules are hashed
// on all processors; only the chain of extensions is serial.
func (r *RIM) Populate(rng memory.Range, data boot.Blob, offset uint64) error {
	if err := r.checkRange(rng.Base, rng.End()); err != nil {
		return err
	}
	size := uint64(0) // of data
	if data != nil {
		size = uint64(max(data.Size(), 0))
	}
	if offset > rng.Size || size > rng.Size-offset {
		return fmt.Errorf("%d bytes at offset %d do not fit into %v", size, offset, rng)
	}
	ring := make([]*chunk, min(uint64(runtime.GOMAXPROCS(0))+1, (rng.Size+chunkSize-1)/chunkSize))
	for i := range ring {
		ring[i] = &chunk{done: make(chan error, 1)}
	}
	start := func(at uint64) { // at: start of a chunk in the range
		c := ring[at/chunkSize%uint64(len(ring))]
		go func() { c.done <- c.hash(r.params.Hash, at, min(chunkSize, rng.Size-at), data, offset, size) }()
	}
	next := uint64(0) // start of the first chunk that is not under way
	for ; next < min(rng.Size, uint64(len(ring))*chunkSize); next += chunkSize {
		start(next)
	}
	var failed error
	for at := uint64(0); at < next; at += chunkSize {
		c := ring[at/chunkSize%uint64(len(ring))]
		if err := <-c.done; err != nil || failed != nil {
			if failed == nil {
				failed = err
			}
			continue // wait for what is under way
		}
		for i := uint64(0); i < min(chunkSize, rng.Size-at)/Granule; i++ {
			r.data(rng.Base+memory.GPA(at+i*Granule), &c.sums[i])
		}
		if next < rng.Size {
			start(next)
			next += chunkSize
		}
	}
	return failed
}

// hash reads the n bytes of the range from at on and hashes their granules.
func (c *chunk) hash(h Hash, at, n uint64, data boot.Blob, offset, size uint64) error {
	b := c.buf[:n]
	clear(b)
	lo, hi := max(at, offset), min(at+n, offset+size)
	if lo < hi {
		k, err := data.ReadAt(b[lo-at:hi-at], int64(lo-offset))
		if uint64(k) < hi-lo {
			return fmt.Errorf("read %d bytes at offset %#x: %w", hi-lo, lo-offset, err)
		}
	}
	for i := range b[:n/Granule] {
		c.sums[i] = h.sum(b[i*Granule : (i+1)*Granule])
	}
	return nil
}

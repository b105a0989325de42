package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/gvmm/gvmm/devices/virtio"
)

// Bits of L1 and L2 entries (docs/interop/qcow2.txt, "Cluster mapping").
const (
	entryCopied = 1 << 63 // the refcount is exactly one: to be written in place
	entryPacked = 1 << 62
	entryZero   = 1 << 0
	entryOffset = 1<<56 - 1<<9
)

// kind is how a stretch of the disk is stored.
type kind uint8

const (
	hole   kind = iota // not at all: as in the backing file, or zero
	zero               // reads as zero; there may be a cluster for it
	stored             // in the clusters from off on
	packedCluster
)

// extent is a stretch of the disk that is stored in one way.
type extent struct {
	kind kind
	off  uint64 // where in the file, 0 for nowhere; the descriptor of a packed cluster
	own  bool   // nobody else refers to the clusters
	n    uint64 // bytes
}

// l2 returns where the L2 table of a byte of the disk lies, 0 for nowhere. For
// write it makes sure that there is one, and that it belongs to the active state
// alone.
func (m *Image) l2(pos uint64, write bool) (uint64, error) {
	i := pos >> (2*m.bits - 3)
	e, err := m.entry(m.l1, i)
	if err != nil {
		return 0, err
	}
	value := binary.BigEndian.Uint64(e)
	off := value & entryOffset
	if off&(m.cluster()-1) != 0 {
		return 0, fmt.Errorf("L2 table at %#x: %w", off, errCorrupt)
	}
	if !write || off != 0 && value&entryCopied != 0 {
		return off, nil
	}
	to, _, err := m.alloc(1)
	if err != nil {
		return 0, err
	}
	table, err := m.fresh(to)
	if err == nil && off != 0 {
		var from []byte
		if from, err = m.meta(off, m.cluster()); err == nil {
			copy(table, from)
		}
	}
	if err != nil {
		return 0, err
	}
	return to, m.publish(m.l1, i, to, 1, to|entryCopied, off, 1)
}

// publish takes n clusters at off, stores the entries that refer to them from
// index i of a table on, and releases what they replace.
func (m *Image) publish(table, i, off, n, entry, old, oldN uint64) error {
	e, err := m.meta(table+8*i, 8*n)
	if err != nil {
		return err
	}
	var block []byte
	var j uint64
	if off != 0 {
		if block, j, err = m.block(off>>m.bits, true); err != nil {
			return err
		}
	}
	refs, err := m.references(old, oldN)
	if err != nil {
		return err
	}
	touch(e)
	if off != 0 {
		m.touchRefcounts(block, j, n)
	}
	for k := range n {
		if off != 0 {
			m.setRefcount(block, j+k, 1)
			binary.BigEndian.PutUint64(e[8*k:], entry+k<<m.bits)
		} else {
			binary.BigEndian.PutUint64(e[8*k:], entry)
		}
		if uint64(len(refs)) > n-k-1 { // the last one takes what there are more of
			keep := uint64(len(refs)) - (n - k - 1)
			m.release(refs[:keep])
			refs = refs[keep:]
		}
	}
	return nil
}

// lookup says how the disk is stored from pos on, for at most n bytes.
func (m *Image) lookup(pos, n uint64) (extent, error) {
	table, err := m.l2(pos, false)
	if err != nil {
		return extent{}, err
	}
	perL2 := m.cluster() / 8
	first := pos >> m.bits & (perL2 - 1)
	in := pos & (m.cluster() - 1)
	if table == 0 {
		return extent{n: min(n, (perL2-first)<<m.bits-in)}, nil
	}
	l2, err := m.meta(table, m.cluster())
	if err != nil {
		return extent{}, err
	}
	x, err := m.decode(binary.BigEndian.Uint64(l2[8*first:]))
	x.n = m.cluster() - in
	for i := first + 1; err == nil && x.n < n && i < perL2 && x.kind != packedCluster; i++ {
		next, nextErr := m.decode(binary.BigEndian.Uint64(l2[8*i:]))
		want := x.off
		if x.off != 0 {
			want += (i - first) << m.bits
		}
		if nextErr != nil || next.kind != x.kind || next.own != x.own || next.off != want {
			break
		}
		x.n += m.cluster()
	}
	x.n = min(x.n, n)
	if x.off != 0 && x.kind != packedCluster {
		x.off += in
	}
	return x, err
}

// decode takes an L2 entry apart.
func (m *Image) decode(e uint64) (extent, error) {
	if e&entryPacked != 0 {
		return extent{kind: packedCluster, off: e &^ (entryCopied | entryPacked)}, nil
	}
	x := extent{off: e & entryOffset, own: e&entryCopied != 0}
	if x.off&(m.cluster()-1) != 0 {
		return x, fmt.Errorf("cluster at %#x: %w", x.off, errCorrupt)
	}
	switch {
	case e&entryZero != 0 && m.version >= 3:
		x.kind = zero
	case x.off != 0:
		x.kind = stored
	}
	return x, nil
}

// ReadVec implements [virtio.Disk].
func (m *Image) ReadVec(b virtio.Buffers, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.readVec(b, off)
}

func (m *Image) readVec(b virtio.Buffers, off int64) (err error) {
	defer m.guard(&err)()
	for at, n := 0, b.Len(); at < n && err == nil; {
		var x extent
		if x, err = m.lookup(uint64(off)+uint64(at), uint64(n-at)); err == nil {
			m.part = b.AppendRange(m.part[:0], at, int(x.n))
			err = m.read(m.part, uint64(off)+uint64(at), x)
			at += int(x.n)
		}
	}
	if err != nil {
		return fmt.Errorf("disk %s: read at byte %d: %w", m.path, off, err)
	}
	return nil
}

// read fills b, which is stored as x says.
func (m *Image) read(b virtio.Buffers, pos uint64, x extent) error {
	switch x.kind {
	case stored:
		return readClamped(m.file, b, x.off, m.fileSize)
	case packedCluster:
		data, err := m.unpack(x.off)
		if err == nil {
			b.CopyFrom(data[pos&(m.cluster()-1):], 0)
		}
		return err
	case hole:
		if m.backing != nil {
			return readClamped(m.backing, b, pos, m.backing.Size())
		}
	}
	zeroFill(b)
	return nil
}

// readClamped reads b; behind end are zeros.
func readClamped(d virtio.Disk, b virtio.Buffers, off, end uint64) error {
	n := uint64(b.Len())
	if off >= end {
		zeroFill(b)
		return nil
	}
	if n > end-off {
		zeroFill(b.AppendRange(nil, int(end-off), int(n)))
		b = b.AppendRange(nil, 0, int(end-off))
	}
	return d.ReadVec(b, int64(off))
}

func zeroFill(b virtio.Buffers) {
	for _, s := range b {
		clear(s)
	}
}

// WriteVec implements [virtio.Disk].
func (m *Image) WriteVec(b virtio.Buffers, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writeVec(b, off)
}

func (m *Image) writeVec(b virtio.Buffers, off int64) (err error) {
	defer m.guard(&err)()
	for at, n := 0, b.Len(); at < n && err == nil; {
		var x extent
		pos := uint64(off) + uint64(at)
		if x, err = m.lookup(pos, uint64(n-at)); err != nil {
			break
		}
		if x.kind == stored && x.own {
			if err = m.extend(x.off + x.n); err == nil {
				m.part = b.AppendRange(m.part[:0], at, int(x.n))
				err = m.file.WriteVec(m.part, int64(x.off))
			}
		} else {
			x.n, err = m.writeNew(b, at, pos, x)
		}
		at += int(x.n)
	}
	if err != nil {
		return fmt.Errorf("disk %s: write at byte %d: %w", m.path, off, err)
	}
	return nil
}

// writeNew writes the bytes of b from at on, which belong at pos, to clusters
// of their own. It returns how many it wrote: x.n, or fewer.
func (m *Image) writeNew(b virtio.Buffers, at int, pos uint64, x extent) (uint64, error) {
	table, err := m.l2(pos, true)
	if err != nil {
		return 0, err
	}
	in := pos & (m.cluster() - 1)
	to, n := x.off-in, (in+x.n+m.cluster()-1)>>m.bits
	reuse := x.kind == zero && x.off != 0 && x.own
	clean := false // the new clusters are known to be zero
	if !reuse {
		if to, n, err = m.alloc(n); err != nil {
			return 0, err
		}
		clean = to >= m.used
		if err := m.extend(to + n<<m.bits); err != nil {
			return 0, err
		}
	}
	size := min(x.n, n<<m.bits-in)
	rest := n<<m.bits - in - size
	keeps := x.kind == stored || x.kind == packedCluster || x.kind == hole && m.backing != nil
	v, start := virtio.Buffers(nil), to
	edge := func(pos, n uint64) error { // what the clusters hold beside b
		if n == 0 || !keeps && clean {
			return nil
		}
		old := make([]byte, n)
		v = append(v, old)
		if n = min(n, m.size-min(m.size, pos)); !keeps || n == 0 {
			return nil
		}
		return m.readVec(virtio.Buffers{old[:n]}, int64(pos))
	}
	if err := edge(pos-in, in); err != nil {
		return 0, err
	}
	if len(v) == 0 {
		start += in
	}
	v = b.AppendRange(v, at, int(size))
	if err := edge(pos+size, rest); err != nil {
		return 0, err
	}
	if err := m.file.WriteVec(v, int64(start)); err != nil {
		return 0, err
	}
	i := pos >> m.bits & (m.cluster()/8 - 1)
	if reuse {
		e, err := m.meta(table+8*i, 8*n)
		for k := uint64(0); err == nil && k < n; k++ {
			binary.BigEndian.PutUint64(e[8*k:], to+k<<m.bits|entryCopied)
		}
		return size, err
	}
	old, oldN := m.clustersOf(x, in, n)
	return size, m.publish(table, i, to, n, to|entryCopied, old, oldN)
}

// clustersOf returns the clusters that n entries, the first of which is x, refer to.
func (m *Image) clustersOf(x extent, in, n uint64) (off, count uint64) {
	if x.kind != packedCluster {
		if x.off == 0 {
			return 0, 0
		}
		return x.off - in, n
	}
	at, size := m.descriptor(x.off)
	off = at &^ (m.cluster() - 1)
	return off, (at+size-1)>>m.bits - off>>m.bits + 1
}

// Discard forgets [off, off+n): it reads as zero afterwards, except in parts of
// clusters.
func (m *Image) Discard(off, n uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.zeroClusters(off, n)
}

// WriteZeroes has [off, off+n) read as zero.
func (m *Image) WriteZeroes(off, n uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mask := m.cluster() - 1
	first, last := (off+mask)&^mask, (off+n)&^mask
	if off+n == m.size {
		last = (off + n + mask) &^ mask
	}
	if first >= last {
		return m.writeZeroBytes(off, n)
	}
	if err := m.writeZeroBytes(off, first-off); err != nil {
		return err
	}
	if err := m.zeroClusters(first, min(last, m.size)-first); err != nil || off+n <= last {
		return err
	}
	return m.writeZeroBytes(last, off+n-last)
}

func (m *Image) writeZeroBytes(off, n uint64) error {
	if n == 0 {
		return nil
	}
	return m.writeVec(virtio.Buffers{make([]byte, n)}, int64(off))
}

// zeroClusters has the whole clusters of [off, off+n) read as zero and gives
// back what they took.
func (m *Image) zeroClusters(off, n uint64) (err error) {
	defer m.guard(&err)()
	mask := m.cluster() - 1
	end := off + n
	if end != m.size {
		end &^= mask
	}
	for pos := (off + mask) &^ mask; pos < end; {
		x, err := m.lookup(pos, end-pos)
		if err != nil {
			return err
		}
		n := (x.n + mask) >> m.bits
		switch {
		case x.kind == hole && m.backing == nil || x.kind == zero && x.off == 0:
		case m.version < 3 && m.backing != nil:
			err = m.writeZeroBytes(pos, x.n) // version 2 cannot say that a cluster is zero
		default:
			var table, entry uint64
			if table, err = m.l2(pos, true); err != nil {
				return err
			}
			if m.backing != nil {
				entry = entryZero
			}
			old, oldN := m.clustersOf(x, 0, n)
			if err = m.publish(table, pos>>m.bits&(m.cluster()/8-1), 0, n, entry, old, oldN); err == nil && x.own {
				err = m.file.PunchHole(old, oldN<<m.bits)
			}
		}
		if err != nil {
			return fmt.Errorf("disk %s: zero at byte %d: %w", m.path, pos, err)
		}
		pos += n << m.bits
	}
	return nil
}

// packed is an unpacked cluster and its descriptor.
type packed struct {
	descriptor uint64
	data       []byte
}

// descriptor returns where the bytes of a packed cluster lie.
func (m *Image) descriptor(d uint64) (off, n uint64) {
	shift := 62 - (m.bits - 8)
	off = d & (1<<shift - 1)
	return off, (d>>shift+1)*512 - off%512
}

// unpack returns the contents of a packed cluster.
func (m *Image) unpack(d uint64) ([]byte, error) {
	if m.packed.data != nil && m.packed.descriptor == d {
		return m.packed.data, nil
	}
	off, n := m.descriptor(d)
	n = min(n, m.fileSize-min(m.fileSize, off)) // the last one of a file may be cut short
	var raw []byte
	for n > 0 {
		b, err := m.meta(off, min(n, windowSize-off%windowSize))
		if err != nil {
			return nil, err
		}
		raw, off, n = append(raw, b...), off+uint64(len(b)), n-uint64(len(b))
	}
	data := make([]byte, m.cluster())
	var from io.Reader = flate.NewReader(bytes.NewReader(raw))
	if m.zstd {
		z, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<maxClusterBits), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("packed cluster %#x: %w", d, err)
		}
		defer z.Close()
		from = z
	}
	if _, err := io.ReadFull(from, data); err != nil {
		return nil, fmt.Errorf("packed cluster %#x: %w", d, err)
	}
	m.packed = packed{d, data}
	return data, nil
}

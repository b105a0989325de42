package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The file is mapped in windows, which hold whole clusters.
const (
	windowBits = 30
	windowSize = 1 << windowBits
	maxWindows = 1 << 15
)

var errCorrupt = errors.New("the image is damaged: `qemu-img check` tells more")

// meta returns n bytes of metadata at off, which do not cross a window. They
// are the file's own.
func (m *Image) meta(off, n uint64) ([]byte, error) {
	if off > m.fileSize || n > m.fileSize-off {
		return nil, fmt.Errorf("metadata at %#x+%#x lies behind the file's end: %w", off, n, errCorrupt)
	}
	w := m.windows[off>>windowBits]
	if w == nil {
		if len(m.windows) == maxWindows {
			return nil, fmt.Errorf("metadata at %#x: in more than %d places", off, maxWindows)
		}
		prot := unix.PROT_READ
		if !m.readOnly {
			prot |= unix.PROT_WRITE
		}
		var err error
		if w, err = unix.Mmap(m.file.FD(), int64(off&^(windowSize-1)), windowSize, prot, unix.MAP_SHARED); err != nil {
			return nil, fmt.Errorf("map metadata: %w", err)
		}
		m.windows[off>>windowBits] = w
	}
	at := off & (windowSize - 1)
	return w[at : at+n : at+n], nil
}

// entry returns the 8 bytes of entry i of the table at off.
func (m *Image) entry(table, i uint64) ([]byte, error) { return m.meta(table+8*i, 8) }

// guard turns a fault on the mapping, which a file that was truncated or a full
// file system brings about, into an error of the call it is deferred in.
func (m *Image) guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		switch r := recover().(type) {
		case nil:
			return
		case interface{ Addr() uintptr }:
			*err = fmt.Errorf("disk %s: the file was truncated, or its file system is full: %v", m.path, r)
		default:
			panic(r)
		}
	}
}

// refcount returns refcount i of a block.
func (m *Image) refcount(block []byte, i uint64) uint64 {
	switch m.refOrder {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[2*i:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[4*i:]))
	case 6:
		return binary.BigEndian.Uint64(block[8*i:])
	}
	bit := i << m.refOrder
	return uint64(block[bit/8]) >> (bit % 8) & (1<<(1<<m.refOrder) - 1)
}

func (m *Image) setRefcount(block []byte, i, n uint64) {
	switch m.refOrder {
	case 3:
		block[i] = uint8(n)
	case 4:
		binary.BigEndian.PutUint16(block[2*i:], uint16(n))
	case 5:
		binary.BigEndian.PutUint32(block[4*i:], uint32(n))
	case 6:
		binary.BigEndian.PutUint64(block[8*i:], n)
	default:
		bit := i << m.refOrder
		mask := byte(1<<(1<<m.refOrder)-1) << (bit % 8)
		block[bit/8] = block[bit/8]&^mask | byte(n)<<(bit%8)
	}
}

func (m *Image) touchRefcounts(block []byte, i, n uint64) {
	touch(block[i<<m.refOrder/8 : ((i+n)<<m.refOrder+7)/8])
}

// perBlock is the number of refcounts in a block.
func (m *Image) perBlock() uint64 { return m.cluster() * 8 >> m.refOrder }

// block returns the refcounts of cluster c and c's place among them. Where there
// are none yet, create makes them, at the first of the clusters they count.
func (m *Image) block(c uint64, create bool) (block []byte, i uint64, err error) {
	n, i := c/m.perBlock(), c%m.perBlock()
	for n >= m.refTables {
		if !create {
			return nil, 0, fmt.Errorf("cluster %#x has no refcount: %w", c, errCorrupt)
		}
		if err := m.growRefcounts(); err != nil {
			return nil, 0, err
		}
	}
	e, err := m.entry(m.refs, n)
	if err != nil {
		return nil, 0, err
	}
	off := binary.BigEndian.Uint64(e)
	if off != 0 {
		if off&(m.cluster()-1) != 0 {
			return nil, 0, fmt.Errorf("refcount block at %#x: %w", off, errCorrupt)
		}
		block, err = m.meta(off, m.cluster())
		return block, i, err
	}
	if !create {
		return nil, 0, fmt.Errorf("cluster %#x has no refcount: %w", c, errCorrupt)
	}
	off = n * m.perBlock() << m.bits
	if block, err = m.fresh(off); err != nil {
		return nil, 0, err
	}
	m.setRefcount(block, 0, 1)
	if e, err = m.entry(m.refs, n); err != nil {
		return nil, 0, err
	}
	binary.BigEndian.PutUint64(e, off)
	return block, i, nil
}

// fresh returns a cluster of metadata that nothing refers to yet, zeroed.
func (m *Image) fresh(off uint64) ([]byte, error) {
	old := off < m.used
	if err := m.extend(off + m.cluster()); err != nil {
		return nil, err
	}
	// A store into a hole of a full file system would be a fault.
	if err := unix.Fallocate(m.file.FD(), 0, int64(off), int64(m.cluster())); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("allocate at %#x: %w", off, err)
	}
	b, err := m.meta(off, m.cluster())
	if err == nil && old {
		clear(b)
	}
	return b, err
}

// growStep is by how much the file grows at once, in bytes.
const growStep = 8 << 20

// extend makes sure that the file has the bytes before end.
func (m *Image) extend(end uint64) error {
	m.used = max(m.used, end)
	if end <= m.fileSize {
		return nil
	}
	size := (end + growStep - 1) &^ (growStep - 1)
	if err := unix.Ftruncate(m.file.FD(), int64(size)); err != nil {
		return fmt.Errorf("grow to %d bytes: %w", size, err)
	}
	m.fileSize = size
	return nil
}

// growRefcounts doubles the refcount table. The new one and the blocks that
// count it lie in the first clusters the old one cannot count.
func (m *Image) growRefcounts() error {
	base, per := m.refTables*m.perBlock(), m.perBlock()
	clusters := max(2*m.refTables*8>>m.bits, 1)
	if clusters<<m.bits > maxTable {
		return errors.New("its refcount table cannot grow further")
	}
	blocks := uint64(1)
	for blocks*per < clusters+blocks {
		blocks++
	}
	table := (base + blocks) << m.bits
	for i := range clusters {
		if _, err := m.fresh(table + i<<m.bits); err != nil {
			return err
		}
	}
	for i := range m.refTables {
		from, err := m.entry(m.refs, i)
		if err != nil {
			return err
		}
		value := binary.BigEndian.Uint64(from)
		to, err := m.entry(table, i)
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint64(to, value)
	}
	for i := range blocks {
		b, err := m.fresh((base + i) << m.bits)
		if err != nil {
			return err
		}
		for c := i * per; c < min((i+1)*per, clusters+blocks); c++ {
			m.setRefcount(b, c-i*per, 1)
		}
		to, err := m.entry(table, m.refTables+i)
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint64(to, (base+i)<<m.bits)
	}
	h, err := m.meta(offRefcountHeader, 12)
	if err != nil {
		return err
	}
	old, err := m.references(m.refs, m.refTables*8>>m.bits)
	if err != nil {
		return err
	}
	touch(h)
	binary.BigEndian.PutUint64(h, table)
	binary.BigEndian.PutUint32(h[8:], uint32(clusters))
	m.refs, m.refTables = table, clusters<<m.bits/8
	m.release(old)
	return nil
}

// alloc finds up to want free clusters in a row and keeps them from being found
// again. Nothing in the file says so before [Image.take].
func (m *Image) alloc(want uint64) (off, got uint64, err error) {
	for c := m.free; ; c++ {
		block, i, err := m.block(c, true)
		if err != nil {
			return 0, 0, err
		}
		for ; i < m.perBlock() && m.refcount(block, i) != 0; i++ {
			c++
		}
		if i == m.perBlock() {
			c--
			continue
		}
		for got < want && i < m.perBlock() && m.refcount(block, i) == 0 {
			i++
			got++
		}
		m.free = c + got
		return c << m.bits, got, nil
	}
}

// reference is the refcount of a cluster: its block and its place there.
type reference struct {
	block      []byte
	i, cluster uint64
}

// references returns the refcounts of n clusters at off, none for off 0, ready
// to be counted down.
func (m *Image) references(off, n uint64) ([]reference, error) {
	if off == 0 {
		return nil, nil
	}
	m.refsOf = m.refsOf[:0]
	for c := off >> m.bits; n > 0; n-- {
		block, i, err := m.block(c, false)
		if err != nil {
			return nil, err
		}
		if m.refcount(block, i) == 0 {
			return nil, fmt.Errorf("cluster %#x is used and has refcount 0: %w", c, errCorrupt)
		}
		m.touchRefcounts(block, i, 1)
		m.refsOf = append(m.refsOf, reference{block, i, c})
		c++
	}
	return m.refsOf, nil
}

// release counts one reference less to each.
func (m *Image) release(refs []reference) {
	for _, r := range refs {
		count := m.refcount(r.block, r.i)
		if count == 0 {
			continue // the same one twice, in a damaged image
		}
		if m.setRefcount(r.block, r.i, count-1); count == 1 {
			m.free = min(m.free, r.cluster)
		}
	}
}

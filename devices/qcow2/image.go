package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices/virtio"
)

// Magic is how an image begins.
const Magic = "QFI\xfb"

// The header's limits, and its flags (docs/interop/qcow2.txt, "Header").
const (
	headerV2, headerV3 = 72, 104

	minClusterBits, maxClusterBits = 9, 21
	maxTable                       = 32 << 20 // bytes of an L1 or refcount table, as in QEMU
	maxBacking                     = 1023     // bytes of a backing file's name
	maxDepth                       = 16       // images on top of each other

	incompatDirty, incompatCorrupt = 1 << 0, 1 << 1
	incompatCompression            = 1 << 3

	offAutoclear      = 88
	extBackingFormat  = 0xe2792aca
	compressionZstd   = 1  // 0 is zlib
	offRefcountHeader = 48 // table offset u64, clusters u32
)

// Image is an open image: a [virtio.Disk].
type Image struct {
	file     *virtio.Raw
	path     string
	readOnly bool
	version  uint32
	zstd     bool // packed clusters are zstd's, not zlib's

	size    uint64 // bytes of the disk
	bits    uint   // of a cluster
	backing virtio.Disk

	l1, l1Entries   uint64
	refs, refTables uint64 // refcount table: offset, entries
	refOrder        uint   // a refcount has 1<<refOrder bits

	fileSize uint64 // bytes; what is behind was never there
	used     uint64 // bytes; what is behind reads as zero
	free     uint64 // no cluster before this one is free

	mu      sync.Mutex        // serializes reads and writes: the methods of [virtio.Disk] take it
	windows map[uint64][]byte // the mapping, by window
	part    virtio.Buffers
	refsOf  []reference // scratch
	packed  packed      // the last cluster that was unpacked
}

// Open opens the image at path and those below it.
func Open(path string, readOnly, direct bool) (*Image, error) { return open(path, readOnly, direct, 0) }

func open(path string, readOnly, direct bool, depth int) (*Image, error) {
	f, err := virtio.OpenRaw(path, readOnly, direct)
	if err != nil {
		return nil, err
	}
	m := &Image{file: f, path: path, readOnly: readOnly, windows: map[uint64][]byte{}}
	if err := m.load(direct, depth); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", path, err), m.Close())
	}
	return m, nil
}

func (m *Image) load(direct bool, depth int) (err error) {
	defer m.guard(&err)()
	var st unix.Stat_t
	if err := unix.Fstat(m.file.FD(), &st); err != nil {
		return err
	}
	if m.fileSize = uint64(st.Size); st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("a qcow2 image is a regular file")
	}
	h, err := m.meta(0, min(4096, m.fileSize))
	if err != nil {
		return err
	}
	if len(h) < headerV2 || string(h[:4]) != Magic {
		return errors.New("not a qcow2 image")
	}
	be := binary.BigEndian
	head := headerV2
	m.version, m.refOrder = be.Uint32(h[4:]), 4
	var incompatible, autoclear uint64
	switch {
	case m.version == 3 && len(h) >= headerV3:
		incompatible, autoclear = be.Uint64(h[72:]), be.Uint64(h[offAutoclear:])
		m.refOrder, head = uint(be.Uint32(h[96:])), int(min(be.Uint32(h[100:]), 4096))
		if head < headerV3 || head > len(h) {
			return fmt.Errorf("header of %d bytes", head)
		}
		if incompatible&incompatCompression != 0 && head > headerV3 {
			if m.zstd = h[headerV3] == compressionZstd; h[headerV3] > compressionZstd {
				return fmt.Errorf("its clusters are compressed in way %d: zlib and zstd are known", h[headerV3])
			}
		}
	case m.version != 2:
		return fmt.Errorf("qcow version %d: 2 and 3 are known (`qemu-img convert -O qcow2` makes one)", m.version)
	}
	m.bits, m.size = uint(be.Uint32(h[20:])), be.Uint64(h[24:])
	m.l1Entries, m.l1 = uint64(be.Uint32(h[36:])), be.Uint64(h[40:])
	m.refs = be.Uint64(h[offRefcountHeader:])
	switch {
	case be.Uint32(h[32:]) != 0:
		return errors.New("it is encrypted: convert it with `qemu-img convert`")
	case incompatible&^(incompatDirty|incompatCorrupt|incompatCompression) != 0:
		return fmt.Errorf("incompatible features %#x (external data file, extended L2 entries): convert it with `qemu-img convert -O qcow2`", incompatible)
	case incompatible&(incompatDirty|incompatCorrupt) != 0 && !m.readOnly:
		return errors.New("it was not closed in order: run `qemu-img check -r all` on it first, or attach it with ro")
	case m.bits < minClusterBits || m.bits > maxClusterBits:
		return fmt.Errorf("clusters of 2^%d bytes", m.bits)
	case m.refOrder > 6:
		return fmt.Errorf("refcounts of 2^%d bits", m.refOrder)
	case m.size == 0 || m.size%512 != 0 || m.size > 1<<62:
		return fmt.Errorf("disk of %d bytes: want whole sectors of 512", m.size)
	}
	clusters := uint64(be.Uint32(h[56:]))
	m.refTables = clusters << m.bits / 8
	perL2 := m.cluster() / 8
	need := ((m.size-1)>>m.bits)/perL2 + 1
	if m.l1Entries < need || m.l1Entries*8 > maxTable || clusters<<m.bits > maxTable {
		return fmt.Errorf("L1 table of %d entries, refcount table of %d clusters", m.l1Entries, clusters)
	}
	for _, t := range []struct{ off, n uint64 }{{m.l1, need * 8}, {m.refs, clusters << m.bits}} {
		if t.off&(m.cluster()-1) != 0 || t.off > m.fileSize || t.n > m.fileSize-t.off {
			return fmt.Errorf("table at %#x+%#x lies outside the file", t.off, t.n)
		}
	}
	m.used = (m.fileSize + m.cluster() - 1) &^ (m.cluster() - 1)
	if err := m.openBacking(h, head, direct, depth); err != nil {
		return err
	}
	if autoclear != 0 && !m.readOnly {
		// What other programs keep in step with the data, bitmaps for example, no
		// longer is.
		clear(h[offAutoclear : offAutoclear+8])
	}
	return nil
}

// openBacking opens the image that holds what this one does not.
func (m *Image) openBacking(h []byte, head int, direct bool, depth int) error {
	at, n := binary.BigEndian.Uint64(h[8:]), uint64(binary.BigEndian.Uint32(h[16:]))
	if at == 0 {
		return nil
	}
	if n == 0 || n > maxBacking || at > uint64(len(h)) || n > uint64(len(h))-at {
		return fmt.Errorf("name of the backing file at %#x+%d lies outside the header", at, n)
	}
	name, format := string(h[at:at+n]), ""
	for ext := h[head:]; len(ext) >= 8; {
		kind, size := binary.BigEndian.Uint32(ext), uint64(binary.BigEndian.Uint32(ext[4:]))
		if kind == 0 || size > uint64(len(ext))-8 {
			break
		}
		if kind == extBackingFormat {
			format = string(ext[8 : 8+size])
		}
		ext = ext[min(8+(size+7)&^7, uint64(len(ext))):]
	}
	if depth == maxDepth {
		return fmt.Errorf("more than %d images on top of each other", maxDepth)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(m.path), name)
	}
	switch format {
	case "qcow2":
		b, err := open(name, true, direct, depth+1)
		if err != nil {
			return fmt.Errorf("backing file: %w", err)
		}
		m.backing = b
	case "raw":
		b, err := virtio.OpenRaw(name, true, direct)
		if err != nil {
			return fmt.Errorf("backing file: %w", err)
		}
		m.backing = b
	case "":
		return fmt.Errorf("it does not say what format its backing file %s has, and a guess can be wrong: `qemu-img rebase -u -b %[1]s -F FORMAT` says it", name)
	default:
		return fmt.Errorf("backing file %s has format %q: qcow2 and raw are known", name, format)
	}
	return nil
}

// Size implements [virtio.Disk].
func (m *Image) Size() uint64 { return m.size }

// BlockSize implements [virtio.Disk].
func (m *Image) BlockSize() uint32 { return m.file.BlockSize() }

// ReadOnly implements [virtio.Disk].
func (m *Image) ReadOnly() bool { return m.readOnly }

// Flush implements [virtio.Disk].
func (m *Image) Flush() error { return m.file.Flush() }

// Close releases the image and those below it.
func (m *Image) Close() error {
	var errs []error
	for _, w := range m.windows {
		errs = append(errs, unix.Munmap(w))
	}
	clear(m.windows)
	if b, ok := m.backing.(interface{ Close() error }); ok {
		errs = append(errs, b.Close())
	}
	return errors.Join(append(errs, m.file.Close())...)
}

func (m *Image) cluster() uint64 { return 1 << m.bits }

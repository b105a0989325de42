package virtio

import (
	"encoding/binary"
	"fmt"
)

// Features, requests and answers of the block device (virtio 1.3 5.2.3, 5.2.6).
const (
	blkSegMax    = 1 << 2
	blkReadOnly  = 1 << 5
	blkBlockSize = 1 << 6
	blkFlush     = 1 << 9

	blkIn    = 0
	blkOut   = 1
	blkSync  = 4
	blkGetID = 8

	blkOK          = 0
	blkIOError     = 1
	blkUnsupported = 2

	blkHeaderBytes = 16
	blkSerialBytes = 20
	blkQueueSize   = 256

	sector = 512
)

// maxTransfer bounds one request's data, so that a pause never waits long.
const maxTransfer = 128 << 20

// Disk is the back end of a block device. Its methods are called by one
// goroutine at a time. Offsets and lengths are bytes, whole sectors of 512, and
// inside the disk.
type Disk interface {
	// Size is the capacity in bytes, a multiple of 512.
	Size() uint64
	// BlockSize is the unit that transfers should be aligned to, in bytes.
	BlockSize() uint32
	ReadOnly() bool
	// ReadVec fills b from off on, WriteVec writes b there: all or an error.
	ReadVec(b Buffers, off int64) error
	WriteVec(b Buffers, off int64) error
	// Flush returns once everything written is on stable storage.
	Flush() error
}

// Blk is a virtio block device (virtio 1.3 5.2) with one queue.
type Blk struct {
	disk   Disk
	serial [blkSerialBytes]byte
	config [24]byte // up to blk_size
	chain  Chain
	data   Buffers
}

// NewBlk makes a block device of disk. The serial number has at most 20 bytes.
// The caller closes the disk after the device.
func NewBlk(disk Disk, serial string) (*Blk, error) {
	b := &Blk{disk: disk}
	if len(serial) > len(b.serial) {
		return nil, fmt.Errorf("virtio-blk: serial number %q: longer than %d bytes", serial, len(b.serial))
	}
	copy(b.serial[:], serial)
	binary.LittleEndian.PutUint64(b.config[0:], disk.Size()/sector)
	binary.LittleEndian.PutUint32(b.config[12:], blkQueueSize-2) // seg_max: header and status take two
	binary.LittleEndian.PutUint32(b.config[20:], disk.BlockSize())
	return b, nil
}

// Name implements [Device].
func (b *Blk) Name() string { return "virtio-blk" }

// ID implements [Device].
func (b *Blk) ID() uint16 { return 2 }

// Features implements [Device].
func (b *Blk) Features() uint64 {
	f := uint64(blkSegMax | blkBlockSize | blkFlush)
	if b.disk.ReadOnly() {
		f |= blkReadOnly
	}
	return f
}

// QueueSizes implements [Device].
func (b *Blk) QueueSizes() []uint16 { return blkQueues[:] }

var blkQueues = [...]uint16{blkQueueSize}

// ReadConfig implements [Device].
func (b *Blk) ReadConfig(offset uint64, data []byte) { readConfig(b.config[:], offset, data) }

// WriteConfig implements [Device]: nothing can be written.
func (b *Blk) WriteConfig(uint64, []byte) {}

// Activate implements [Device].
func (b *Blk) Activate(*Session) error { return nil }

// Reset implements [Device].
func (b *Blk) Reset() {}

// Serve implements [Device].
func (b *Blk) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	for q.Pop(&b.chain) {
		q.Push(&b.chain, b.request(s, q, &b.chain))
	}
}

// request carries out one request and returns the number of bytes written to
// the guest's buffers. The last writable byte is the status; header and data
// may be split over descriptors at any place.
func (b *Blk) request(s *Session, q *Queue, c *Chain) uint32 {
	room := c.Writable.Len() - 1
	if room < 0 {
		return 0 // nowhere to put even the status
	}
	status, written := uint8(blkIOError), 0
	var header [blkHeaderBytes]byte
	if c.Readable.CopyTo(header[:], 0) == len(header) {
		position := binary.LittleEndian.Uint64(header[8:])
		switch binary.LittleEndian.Uint32(header[:]) {
		case blkIn:
			if off, ok := b.place(position, room); ok {
				b.data = c.Writable.AppendRange(b.data[:0], 0, room)
				if b.disk.ReadVec(b.data, off) == nil {
					status, written = blkOK, room
				}
			}
		case blkOut:
			n := c.Readable.Len() - len(header)
			if off, ok := b.place(position, n); ok && !b.disk.ReadOnly() {
				b.data = c.Readable.AppendRange(b.data[:0], len(header), n)
				err := b.disk.WriteVec(b.data, off)
				if err == nil && !s.Has(blkFlush) {
					// A driver that cannot flush expects a write-through disk (5.2.6.2).
					err = b.disk.Flush()
				}
				if err == nil {
					status = blkOK
				}
			}
		case blkSync:
			q.Flush() // what is done need not wait for the storage
			if b.disk.Flush() == nil {
				status = blkOK
			}
		case blkGetID:
			status, written = blkOK, c.Writable.CopyFrom(b.serial[:min(len(b.serial), room)], 0)
		default:
			status = blkUnsupported
		}
	}
	c.Writable.CopyFrom([]byte{status}, room)
	return uint32(written + 1)
}

// place checks a request for n bytes at a sector against the disk and returns
// its byte offset.
func (b *Blk) place(position uint64, n int) (int64, bool) {
	size := b.disk.Size()
	if n%sector != 0 || n > maxTransfer || position > size/sector || uint64(n) > size-position*sector {
		return 0, false
	}
	return int64(position * sector), true
}

// readConfig copies from a configuration space that is kept as bytes.
func readConfig(space []byte, offset uint64, data []byte) {
	if offset < uint64(len(space)) {
		copy(data, space[offset:])
	}
}

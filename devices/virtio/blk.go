package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Features, requests and answers of the block device (virtio 1.3 5.2.3, 5.2.6).
const (
	blkSegMax      = 1 << 2
	blkReadOnly    = 1 << 5
	blkBlockSize   = 1 << 6
	blkFlush       = 1 << 9
	blkMultiQueue  = 1 << 12
	blkDiscard     = 1 << 13
	blkWriteZeroes = 1 << 14

	blkIn         = 0
	blkOut        = 1
	blkSync       = 4
	blkGetID      = 8
	blkForget     = 11
	blkZero       = 13
	blkRangeBytes = 16 // of a range to discard or zero
	blkMaxRanges  = 16

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

// MaxBlkQueues is the most queues of a block device.
const MaxBlkQueues = 16

// Disk is the back end of a block device. Several goroutines call its methods at
// the same time; what happens to bytes that two of them touch is the guest's
// business. Offsets and lengths are bytes, whole sectors of 512, and
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
	// Discard says that n bytes at off are not needed any more: they may read as
	// anything. WriteZeroes has them read as zero.
	Discard(off, n uint64) error
	WriteZeroes(off, n uint64) error
	// Flush returns once everything whose write returned before is on stable storage.
	Flush() error
}

// Blk is a virtio block device (virtio 1.3 5.2).
type Blk struct {
	base
	disk   Disk
	serial [blkSerialBytes]byte
	lanes  []blkLane // one a queue
}

type blkLane struct {
	chain Chain
	data  Buffers
}

// NewBlk makes a block device of disk with 1 to [MaxBlkQueues] queues. The serial
// number has at most 20 bytes. The caller closes the disk after the device.
func NewBlk(disk Disk, serial string, queues int) (*Blk, error) {
	if len(serial) > blkSerialBytes {
		return nil, fmt.Errorf("virtio-blk: serial number %q: longer than %d bytes", serial, blkSerialBytes)
	}
	if queues < 1 || queues > MaxBlkQueues {
		return nil, fmt.Errorf("virtio-blk: %d queues: give 1 to %d", queues, MaxBlkQueues)
	}
	config := make([]byte, 60) // up to write_zeroes_may_unmap
	binary.LittleEndian.PutUint64(config[0:], disk.Size()/sector)
	binary.LittleEndian.PutUint32(config[12:], blkQueueSize-2) // seg_max: header and status take two
	binary.LittleEndian.PutUint32(config[20:], disk.BlockSize())
	features := uint64(blkSegMax | blkBlockSize | blkFlush)
	if queues > 1 {
		features |= blkMultiQueue
		binary.LittleEndian.PutUint16(config[34:], uint16(queues))
	}
	if disk.ReadOnly() {
		features |= blkReadOnly
	} else {
		features |= blkDiscard | blkWriteZeroes
		for at, v := range map[int]uint32{36: maxTransfer / sector, 40: blkMaxRanges, 44: disk.BlockSize() / sector, 48: maxTransfer / sector, 52: blkMaxRanges} {
			binary.LittleEndian.PutUint32(config[at:], v)
		}
		config[56] = 1 // zeroed blocks may give back their storage
	}
	b := &Blk{disk: disk, lanes: make([]blkLane, queues), base: base{name: "virtio-blk", id: 2, features: features,
		queues: slices.Repeat([]uint16{blkQueueSize}, queues), config: config}}
	copy(b.serial[:], serial)
	return b, nil
}

// Serve implements [Device].
func (b *Blk) Serve(s *Session, queue int) {
	q, l := s.Queues[queue], &b.lanes[queue]
	for q.Pop(&l.chain) {
		q.Push(&l.chain, b.request(s, q, l))
	}
}

// request carries out one request and returns the number of bytes written to
// the guest's buffers. The last writable byte is the status; header and data
// may be split over descriptors at any place.
func (b *Blk) request(s *Session, q *Queue, l *blkLane) uint32 {
	c := &l.chain
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
				l.data = c.Writable.AppendRange(l.data[:0], 0, room)
				if b.disk.ReadVec(l.data, off) == nil {
					status, written = blkOK, room
				}
			}
		case blkOut:
			n := c.Readable.Len() - len(header)
			if off, ok := b.place(position, n); ok && !b.disk.ReadOnly() {
				l.data = c.Readable.AppendRange(l.data[:0], len(header), n)
				err := b.disk.WriteVec(l.data, off)
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
		case blkForget, blkZero:
			if b.ranges(header[0], c) == nil {
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

var errRanges = errors.New("virtio-blk: malformed ranges, or a disk that is not written")

// ranges discards or zeroes the ranges that a request lists (virtio 1.3 5.2.6).
func (b *Blk) ranges(kind byte, c *Chain) error {
	var list [blkMaxRanges * blkRangeBytes]byte
	n := c.Readable.Len() - blkHeaderBytes
	if b.disk.ReadOnly() || n <= 0 || n > len(list) || n%blkRangeBytes != 0 {
		return errRanges
	}
	c.Readable.CopyTo(list[:n], blkHeaderBytes)
	for at := 0; at < n; at += blkRangeBytes {
		r := list[at:]
		n, flags := int(binary.LittleEndian.Uint32(r[8:]))*sector, binary.LittleEndian.Uint32(r[12:])
		off, ok := b.place(binary.LittleEndian.Uint64(r), n)
		const unmap = 1 // may give back the storage
		call, known := b.disk.WriteZeroes, uint32(unmap)
		if kind == blkForget {
			call, known = b.disk.Discard, 0
		}
		if !ok || flags&^known != 0 {
			return errRanges
		}
		if err := call(uint64(off), uint64(n)); err != nil {
			return err
		}
	}
	return nil
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

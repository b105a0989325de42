package virtio

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices/iov"
)

// bounceBytes is the size of the aligned buffer for direct transfers to guest
// memory that the storage cannot address.
const bounceBytes = 256 << 10

// Raw is a [Disk] that is a raw image file or a host block device.
type Raw struct {
	fd       int
	path     string
	size     uint64
	block    uint32
	readOnly bool
	direct   bool
	note     string
	lanes    [rawLanes]lane
	idle     chan *lane // those that no transfer uses

	flushing sync.Mutex
	lost     error // why written data may be lost
}

// lane is what one transfer at a time needs.
type lane struct {
	file   iov.File
	bounce []byte // mapped when first needed
}

// rawLanes is the number of transfers that run at the same time; more wait.
const rawLanes = 8

// OpenRaw opens the image at path and locks it: any number of readers, or one
// writer. With direct, transfers bypass the host's page cache (O_DIRECT).
func OpenRaw(path string, readOnly, direct bool) (*Raw, error) {
	flags, lock := unix.O_RDWR, unix.LOCK_EX
	if readOnly {
		flags, lock = unix.O_RDONLY, unix.LOCK_SH
	}
	if direct {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		hint := ""
		if direct && errors.Is(err, unix.EINVAL) {
			hint = " (its file system has no direct I/O: leave direct out)"
		} else if !readOnly && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS)) {
			hint = " (to attach it without write access add ro)"
		}
		return nil, fmt.Errorf("disk %s: open: %w%s", path, err, hint)
	}
	d := &Raw{fd: fd, path: path, block: sector, readOnly: readOnly, direct: direct, idle: make(chan *lane, rawLanes)}
	for i := range d.lanes {
		d.idle <- &d.lanes[i]
	}
	if err := d.open(lock); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	return d, nil
}

func (d *Raw) open(lock int) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return errors.New("neither a regular file nor a block device")
	}
	if err := unix.Flock(d.fd, lock|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("another process uses it (two machines can share a disk only if both attach it read-only)")
	} else if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	size, err := unix.Seek(d.fd, 0, unix.SEEK_END)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	if d.direct {
		// What the storage can address; kernels before 6.1 do not say.
		var sx unix.Statx_t
		if unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx) == nil && sx.Dio_offset_align > sector {
			d.block = sx.Dio_offset_align
		}
	}
	d.size = uint64(size) / uint64(d.block) * uint64(d.block)
	if d.size == 0 {
		return fmt.Errorf("%d bytes are less than one block of %d", size, d.block)
	}
	if rest := uint64(size) - d.size; rest != 0 {
		d.note = fmt.Sprintf("disk %s: its last %d bytes are not a whole block of %d: the guest does not see them", d.path, rest, d.block)
	}
	return nil
}

// Note is what the user should know about the disk, "" if nothing.
func (d *Raw) Note() string { return d.note }

// Size implements [Disk].
func (d *Raw) Size() uint64 { return d.size }

// BlockSize implements [Disk].
func (d *Raw) BlockSize() uint32 { return d.block }

// ReadOnly implements [Disk].
func (d *Raw) ReadOnly() bool { return d.readOnly }

// ReadVec implements [Disk].
func (d *Raw) ReadVec(b Buffers, off int64) error {
	return d.move(b, off, (*iov.File).ReadAt, func(l *lane, part Buffers, off int64) error {
		bounce := Buffers{l.bounce[:part.Len()]}
		err := d.transfer(l, bounce, off, (*iov.File).ReadAt)
		part.CopyFrom(bounce[0], 0)
		return err
	})
}

// WriteVec implements [Disk].
func (d *Raw) WriteVec(b Buffers, off int64) error {
	return d.move(b, off, (*iov.File).WriteAt, func(l *lane, part Buffers, off int64) error {
		n := part.CopyTo(l.bounce, 0)
		return d.transfer(l, Buffers{l.bounce[:n]}, off, (*iov.File).WriteAt)
	})
}

type vectored func(f *iov.File, fd int, b Buffers, off int64) (int, error)

// transfer calls read or write until all of b is moved.
func (d *Raw) transfer(l *lane, b Buffers, off int64, call vectored) error {
	for left := b.Len(); left > 0; {
		n, err := call(&l.file, d.fd, b, off)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("disk %s: transfer at byte %d: %w", d.path, off, err)
		}
		off += int64(n)
		if left -= n; left > 0 {
			b = b.AppendRange(nil, n, left)
		}
	}
	return nil
}

// move transfers b, or where the storage cannot address it, in parts through a
// buffer with an alignment that suits direct I/O; guests need not align theirs.
func (d *Raw) move(b Buffers, off int64, call vectored, bounced func(l *lane, part Buffers, off int64) error) error {
	l := <-d.idle
	defer func() { d.idle <- l }()
	err := d.transfer(l, b, off, call)
	if !d.direct || !errors.Is(err, unix.EINVAL) {
		return err
	}
	if l.bounce == nil {
		l.bounce, err = unix.Mmap(-1, 0, bounceBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("disk %s: buffer for direct I/O: %w", d.path, err)
		}
	}
	var part Buffers
	for at, n := 0, b.Len(); at < n; at += bounceBytes {
		part = b.AppendRange(part[:0], at, bounceBytes)
		if err := bounced(l, part, off+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements [Disk]. After a failure the page cache may hold as clean what
// never reached the storage (fsync(2), ERRORS): no later flush succeeds then.
func (d *Raw) Flush() error {
	if d.readOnly {
		return nil
	}
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if d.lost != nil && !d.direct {
		return d.lost
	}
	if d.lost = unix.Fdatasync(d.fd); d.lost != nil {
		d.lost = fmt.Errorf("disk %s: fdatasync: %w", d.path, d.lost)
	}
	return d.lost
}

// Close releases the image. The device that uses it is closed before.
func (d *Raw) Close() error {
	for i := range d.lanes {
		if b := d.lanes[i].bounce; b != nil {
			_ = unix.Munmap(b)
		}
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("disk %s: close: %w", d.path, err)
	}
	return nil
}

// FD returns the image's file descriptor.
func (d *Raw) FD() int { return d.fd }

// Discard implements [Disk].
func (d *Raw) Discard(off, n uint64) error { return d.PunchHole(off, n) }

// WriteZeroes implements [Disk].
func (d *Raw) WriteZeroes(off, n uint64) error {
	err := unix.Fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	if !errors.Is(err, unix.EOPNOTSUPP) {
		if err != nil {
			err = fmt.Errorf("disk %s: zero %d bytes at %d: %w", d.path, n, off, err)
		}
		return err
	}
	zeros := make([]byte, min(n, bounceBytes))
	for err = nil; n > 0 && err == nil; {
		part := min(n, bounceBytes)
		err = d.WriteVec(Buffers{zeros[:part]}, int64(off))
		off, n = off+part, n-part
	}
	return err
}

// PunchHole gives back the storage of n bytes at off, where the file system can.
// They read as zero afterwards, or, where it cannot, as before.
func (d *Raw) PunchHole(off, n uint64) error {
	err := unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("disk %s: give back %d bytes at %d: %w", d.path, n, off, err)
	}
	return nil
}

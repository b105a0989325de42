package virtio

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
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
	iov      []unix.Iovec // of the transfer under way
	bounce   []byte       // mapped when first needed
	note     string
}

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
	d := &Raw{fd: fd, path: path, block: sector, readOnly: readOnly, direct: direct}
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
	err := d.transfer(unix.SYS_PREADV, b, off)
	if d.direct && errors.Is(err, unix.EINVAL) {
		err = d.bounced(b, off, func(part Buffers, off int64) error {
			if err := d.transfer(unix.SYS_PREADV, Buffers{d.bounce[:part.Len()]}, off); err != nil {
				return err
			}
			part.CopyFrom(d.bounce, 0)
			return nil
		})
	}
	return err
}

// WriteVec implements [Disk].
func (d *Raw) WriteVec(b Buffers, off int64) error {
	err := d.transfer(unix.SYS_PWRITEV, b, off)
	if d.direct && errors.Is(err, unix.EINVAL) {
		err = d.bounced(b, off, func(part Buffers, off int64) error {
			n := part.CopyTo(d.bounce, 0)
			return d.transfer(unix.SYS_PWRITEV, Buffers{d.bounce[:n]}, off)
		})
	}
	return err
}

// bounced moves b in parts through a buffer with an alignment that suits
// direct I/O; guests need not align theirs.
func (d *Raw) bounced(b Buffers, off int64, move func(part Buffers, off int64) error) error {
	if d.bounce == nil {
		m, err := unix.Mmap(-1, 0, bounceBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("disk %s: buffer for direct I/O: %w", d.path, err)
		}
		d.bounce = m
	}
	var part Buffers
	for at, n := 0, b.Len(); at < n; at += bounceBytes {
		part = b.AppendRange(part[:0], at, bounceBytes)
		if err := move(part, off+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements [Disk].
func (d *Raw) Flush() error {
	if d.readOnly {
		return nil
	}
	if err := unix.Fdatasync(d.fd); err != nil {
		return fmt.Errorf("disk %s: fdatasync: %w", d.path, err)
	}
	return nil
}

// Close releases the image. The device that uses it is closed before.
func (d *Raw) Close() error {
	if d.bounce != nil {
		_ = unix.Munmap(d.bounce)
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("disk %s: close: %w", d.path, err)
	}
	return nil
}

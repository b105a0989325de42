package virtio

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transfer does preadv(2) or pwritev(2) until all of b is moved. Unlike
// unix.Preadv it does not allocate.
func (d *Raw) transfer(call uintptr, b Buffers, off int64) error {
	d.iov = d.iov[:0]
	for _, s := range b {
		v := unix.Iovec{Base: unsafe.SliceData(s)}
		v.SetLen(len(s))
		d.iov = append(d.iov, v)
	}
	for v := d.iov; len(v) > 0; {
		n, _, errno := unix.Syscall6(call, uintptr(d.fd), uintptr(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v)), uintptr(off), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("disk %s: transfer at byte %d: %w", d.path, off, errno)
		}
		if n == 0 {
			return fmt.Errorf("disk %s: transfer at byte %d: %w", d.path, off, io.ErrUnexpectedEOF)
		}
		off += int64(n)
		for n > 0 && uint64(n) >= v[0].Len {
			n -= uintptr(v[0].Len)
			v = v[1:]
		}
		if n > 0 {
			v[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(v[0].Base), n))
			v[0].Len -= uint64(n)
		}
	}
	return nil
}

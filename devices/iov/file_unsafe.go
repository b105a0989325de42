package iov

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSlices is the most slices of one call (IOV_MAX).
const maxSlices = 1024

// File reads and writes a file at offsets, straight from and to [Buffers]. It
// makes no allocation once it has seen the longest list; x/sys makes one a
// call. One goroutine at a time uses it.
type File struct{ vec []unix.Iovec }

// ReadAt reads from offset off of fd into b. It may end early, as preadv(2).
func (f *File) ReadAt(fd int, b Buffers, off int64) (int, error) {
	return f.call(unix.SYS_PREADV, fd, b, off)
}

// WriteAt writes b to offset off of fd. It may end early, as pwritev(2).
func (f *File) WriteAt(fd int, b Buffers, off int64) (int, error) {
	return f.call(unix.SYS_PWRITEV, fd, b, off)
}

func (f *File) call(trap uintptr, fd int, b Buffers, off int64) (int, error) {
	f.vec = f.vec[:0]
	for _, s := range b[:min(len(b), maxSlices)] {
		v := unix.Iovec{Base: unsafe.SliceData(s)}
		v.SetLen(len(s))
		f.vec = append(f.vec, v)
	}
	defer clear(f.vec) // the slices are the caller's again
	for {
		// On 64-bit hosts the whole offset is in its first word.
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(f.vec))), uintptr(len(f.vec)), uintptr(off), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

package ninep

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here exist in x/sys too, but allocate there: for the vector, or for
// the empty path.

// preadv reads from offset off of fd straight into iov.
func preadv(fd int, iov []unix.Iovec, off int64) (int, unix.Errno) {
	return vectored(unix.SYS_PREADV, fd, iov, off)
}

// pwritev writes iov straight to offset off of fd.
func pwritev(fd int, iov []unix.Iovec, off int64) (int, unix.Errno) {
	return vectored(unix.SYS_PWRITEV, fd, iov, off)
}

func vectored(call uintptr, fd int, iov []unix.Iovec, off int64) (int, unix.Errno) {
	for {
		// On 64-bit hosts the whole offset is in its first word.
		n, _, err := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
			uintptr(len(iov)), uintptr(off), 0, 0)
		if err == 0 {
			return int(n), 0
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}

// statx describes the object behind fd, which may be an O_PATH descriptor.
func statx(fd int, st *unix.Statx_t) unix.Errno {
	var empty [1]byte
	_, _, err := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statxMask, uintptr(unsafe.Pointer(st)), 0)
	return err
}

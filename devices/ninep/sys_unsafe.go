package ninep

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// statx describes the object behind fd, which may be an O_PATH descriptor.
// That of x/sys allocates, for the empty path.
func statx(fd int, st *unix.Statx_t) unix.Errno {
	var empty [1]byte
	_, _, err := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statxMask, uintptr(unsafe.Pointer(st)), 0)
	return err
}

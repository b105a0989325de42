package ninep

import "golang.org/x/sys/unix"

// maxIov is the most slices of one read or write (IOV_MAX).
const maxIov = 1024

// length returns the number of bytes in bufs.
func length(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// gather copies bytes from offset off of src to dst and returns how many.
func gather(dst []byte, src [][]byte, off int) int {
	n := 0
	for _, b := range src {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(dst[n:], b[off:])
		if off = 0; n == len(dst) {
			break
		}
	}
	return n
}

// scatter copies src into dst from offset off on.
func scatter(dst [][]byte, off int, src []byte) {
	for _, b := range dst {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		src = src[copy(b[off:], src):]
		if off = 0; len(src) == 0 {
			return
		}
	}
}

// vec fills iov with the n bytes of bufs from offset off on and returns the
// part it used: less than n bytes where bufs or iov end.
func vec(iov []unix.Iovec, bufs [][]byte, off, n int) []unix.Iovec {
	used := 0
	for _, b := range bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		if n <= 0 || used == len(iov) {
			break
		}
		b = b[off:]
		off = 0
		b = b[:min(n, len(b))]
		n -= len(b)
		iov[used].Base = &b[0]
		iov[used].SetLen(len(b))
		used++
	}
	return iov[:used]
}

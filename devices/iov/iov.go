// Package iov is scattered bytes: runs of bytes in several slices, as the
// buffers of a virtqueue are, and their way to files and back.
package iov

import "iter"

// Buffers is a list of byte slices taken as one run of bytes: headers and data
// may be split over them at any place (virtio 1.3 2.7.4).
type Buffers [][]byte

// Len returns the number of bytes.
func (b Buffers) Len() int {
	n := 0
	for _, s := range b {
		n += len(s)
	}
	return n
}

// from yields the slices from offset off on, none of them empty.
func (b Buffers) from(off int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, s := range b {
			if off >= len(s) {
				off -= len(s)
				continue
			}
			if !yield(s[off:]) {
				return
			}
			off = 0
		}
	}
}

// CopyTo copies bytes from offset off into p. It returns how many there were.
func (b Buffers) CopyTo(p []byte, off int) int {
	done := 0
	for s := range b.from(off) {
		if done += copy(p[done:], s); done == len(p) {
			break
		}
	}
	return done
}

// CopyFrom copies p into the buffers from offset off on. It returns how many
// bytes found room.
func (b Buffers) CopyFrom(p []byte, off int) int {
	done := 0
	for s := range b.from(off) {
		if done += copy(s, p[done:]); done == len(p) {
			break
		}
	}
	return done
}

// AppendRange appends to dst the slices that make up the n bytes of b from
// offset off (fewer where b ends) and returns it. Passing the previous result
// cut to length 0 avoids an allocation.
func (b Buffers) AppendRange(dst Buffers, off, n int) Buffers {
	for s := range b.from(off) {
		if n <= 0 {
			break
		}
		s = s[:min(n, len(s))]
		n -= len(s)
		dst = append(dst, s)
	}
	return dst
}

package boot

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

const chunkSize = 1 << 20

// chunks is an unpacked file, held in pieces so that its length need not be
// known before and nothing is held twice. Every piece but the last is full.
type chunks struct {
	data [][]byte
	size int64
}

// gunzip unpacks r, to at most limit bytes.
func gunzip(r io.Reader, limit uint64) (*chunks, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false) // what follows the kernel is no business of ours
	c := &chunks{}
	for err == nil {
		b := make([]byte, chunkSize)
		n := 0
		for n < len(b) && err == nil {
			var k int
			k, err = z.Read(b[n:])
			n += k
		}
		c.data = append(c.data, b[:n:n])
		c.size += int64(n)
		if uint64(c.size) > limit {
			return nil, fmt.Errorf("unpacks to more than %s: give the guest more memory (-M)", humanSize(limit))
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("at offset %#x of the unpacked file: %w", c.size, err)
	}
	return c, nil
}

// head returns a copy of at most n bytes from the start; n is at most chunkSize.
func (c *chunks) head(n int) []byte {
	return append([]byte(nil), c.data[0][:min(n, len(c.data[0]))]...)
}

// ReadAt implements [io.ReaderAt].
func (c *chunks) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		if pos < 0 || pos >= c.size {
			return done, io.EOF
		}
		done += copy(p[done:], c.data[pos/chunkSize][pos%chunkSize:])
	}
	return done, nil
}

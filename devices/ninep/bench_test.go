package ninep

import (
	"os"
	"path/filepath"
	"testing"
)

// pages is what a virtqueue has for replies: a header's buffer, then n bytes in
// pages.
func pages(n int) [][]byte {
	resp := [][]byte{make([]byte, 160)}
	for ; n > 0; n -= 4096 {
		resp = append(resp, make([]byte, 4096))
	}
	return resp
}

func benchServer(b *testing.B) *client {
	b.Helper()
	dir := b.TempDir()
	data := make([]byte, 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "file"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	c := newServer(b, dir, false)
	c.open(1, 2, "file")
	return c
}

func bench(b *testing.B, c *client, bytes int64, reqs ...[][]byte) {
	b.Helper()
	resp := pages(128 << 10)
	b.SetBytes(bytes)
	b.ReportAllocs()
	for b.Loop() {
		for _, req := range reqs {
			if n := c.s.Serve(req, resp); n == 0 || resp[0][4] == rLerror {
				b.Fatal("request failed")
			}
		}
	}
}

func BenchmarkGetattr(b *testing.B) {
	c := benchServer(b)
	bench(b, c, 0, [][]byte{message(tGetattr, 1, uint64(gotBasic))})
}

func BenchmarkWalkClunk(b *testing.B) {
	c := benchServer(b)
	bench(b, c, 0, [][]byte{message(tWalk, walkFields(0, 2, []string{"file"})...)}, [][]byte{message(tClunk, 2)})
}

func BenchmarkRead128K(b *testing.B) {
	c := benchServer(b)
	bench(b, c, 128<<10, [][]byte{message(tRead, 1, uint64(0), 128<<10)})
}

func BenchmarkWrite128K(b *testing.B) {
	c := benchServer(b)
	req := [][]byte{message(tWrite, 1, uint64(0), 128<<10, make([]byte, 128<<10))}
	bench(b, c, 128<<10, req)
}

// TestNoAllocations holds the promise for what a busy share does most.
func TestNoAllocations(t *testing.T) {
	dir := t.TempDir()
	write(t, "data", dir, "f")
	c := newServer(t, dir, false)
	c.open(1, 2, "f")
	resp := pages(16 << 10)
	for name, msg := range map[string][]byte{
		"getattr": message(tGetattr, 1, uint64(gotBasic)),
		"read":    message(tRead, 1, uint64(0), 16<<10),
		"write":   message(tWrite, 1, uint64(0), 4, []byte("data")),
	} {
		req := [][]byte{msg}
		if n := testing.AllocsPerRun(100, func() { c.s.Serve(req, resp) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

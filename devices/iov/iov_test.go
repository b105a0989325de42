package iov

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// split cuts p at random places, empty slices among them.
func split(r *rand.Rand, p []byte) Buffers {
	var b Buffers
	for len(p) > 0 {
		n := r.IntN(min(len(p), 9) + 1)
		b, p = append(b, p[:n:n]), p[n:]
	}
	return b
}

func TestBuffers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		flat := make([]byte, r.IntN(60))
		for i := range flat {
			flat[i] = byte(i + 1)
		}
		b := split(r, flat)
		off, n := r.IntN(70), r.IntN(70)
		want := flat[min(off, len(flat)):min(off+n, len(flat))]
		if b.Len() != len(flat) {
			t.Fatalf("%d bytes, want %d", b.Len(), len(flat))
		}
		got := make([]byte, n)
		if k := b.CopyTo(got, off); !bytes.Equal(got[:k], want) {
			t.Fatalf("%v from %d: % x, want % x", b, off, got[:k], want)
		}
		part := b.AppendRange(nil, off, n)
		if !bytes.Equal(bytes.Join(part, nil), want) {
			t.Fatalf("%v from %d: range %v, want % x", b, off, part, want)
		}
		if k := b.CopyFrom(bytes.Repeat([]byte{0xee}, n), off); k != len(want) || bytes.Count(flat, []byte{0xee}) != k {
			t.Fatalf("%d bytes found room at %d of %d, want %d", k, off, len(flat), len(want))
		}
	}
}

func TestFile(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var f File
	fd := int(file.Fd())
	if n, err := f.WriteAt(fd, Buffers{[]byte("ab"), nil, []byte("cde")}, 10); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 8)
	if n, err := f.ReadAt(fd, Buffers{got[:3], got[3:]}, 11); n != 4 || err != nil || string(got[:n]) != "bcde" {
		t.Fatal(n, err, got)
	}
	if n, err := f.ReadAt(fd, make(Buffers, 3*maxSlices), 0); n != 0 || err != nil {
		t.Fatalf("more slices than one call takes: %d, %v", n, err)
	}
	if _, err := f.ReadAt(-1, Buffers{got}, 0); !errors.Is(err, unix.EBADF) {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = f.ReadAt(fd, Buffers{got}, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

package memory

import (
	"errors"
	"math"
	"testing"
)

func TestSliceIsChecked(t *testing.T) {
	g, err := New(Range{1 << 32, 0x2000}, Range{0, 0x4000})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()
	if g.Size() != 0x6000 || g.Regions()[0].Base != 0 {
		t.Errorf("size %#x, first region %v", g.Size(), g.Regions()[0].Range)
	}
	for _, r := range []Range{{0, 0}, {0, 0x4000}, {0x3fff, 1}, {0x4000, 0}, {1 << 32, 0x2000}, {1<<32 + 0x1fff, 1}} {
		b, err := g.Slice(r.Base, r.Size)
		if err != nil || uint64(len(b)) != r.Size || uint64(cap(b)) != r.Size {
			t.Errorf("%v: %d bytes of %d, %v", r, len(b), cap(b), err)
		}
	}
	for _, r := range []Range{{0, 0x4001}, {0x3fff, 2}, {0x4000, 1}, {1<<32 - 1, 2}, {1 << 32, 0x2001},
		{math.MaxUint64, 1}, {1, math.MaxUint64}, {math.MaxUint64, math.MaxUint64}, {0x1000, math.MaxUint64 - 0xfff}} {
		if b, err := g.Slice(r.Base, r.Size); !errors.Is(err, ErrOutside) {
			t.Errorf("%#x+%#x: %d bytes, %v", uint64(r.Base), r.Size, len(b), err)
		}
	}
	if err := g.Write(0x3ffe, []byte{1, 2}); err != nil {
		t.Error(err)
	}
	if err := g.Write(0x3fff, []byte{3, 4}); !errors.Is(err, ErrOutside) {
		t.Error(err)
	}
	var p [2]byte
	if err := g.Read(0x3ffe, p[:]); err != nil || p != [2]byte{1, 2} {
		t.Errorf("% x, %v: a refused write left something behind", p, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, ranges := range [][]Range{
		{{0, 0}}, {{0, 0x1001}}, {{0x800, 0x1000}},
		{{0, 0x2000}, {0x1000, 0x1000}},
		{{0, math.MaxUint64 &^ 0xfff}}, {{math.MaxUint64 &^ 0xfff, 0x1000}},
	} {
		if g, err := New(ranges...); err == nil {
			t.Errorf("%v: accepted", ranges)
			_ = g.Close()
		}
	}
}

func TestSharedWords(t *testing.T) {
	b := make([]byte, 4)
	Store16(b[2:], 0xa55a)
	if Fence(); Load16(b[2:]) != 0xa55a || b[0] != 0 || b[1] != 0 || b[2] != 0x5a {
		t.Errorf("% x", b)
	}
}

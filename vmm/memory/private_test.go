package memory

import (
	"errors"
	"testing"
)

func confidential(t testing.TB) *Guest {
	g, err := New(Range{0, 0x80000}, Range{1 << 32, 0x103000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	g.MakeConfidential()
	return g
}

func TestPrivateIsRefused(t *testing.T) {
	g := confidential(t)
	if !g.Confidential() {
		t.Fatal("not confidential")
	}
	for _, r := range []Range{{0, 1}, {0x7ffff, 1}, {1 << 32, 0x103000}, {1<<32 + 0x102fff, 1}} {
		if _, err := g.Slice(r.Base, r.Size); !errors.Is(err, ErrPrivate) {
			t.Errorf("%v: %v", r, err)
		}
	}
	// Across the border of two words of the bitmap, and of the region.
	shared := Range{1<<32 + 0x3f000, 0x42000}
	if err := g.Convert(shared, false); err != nil {
		t.Fatal(err)
	}
	if err := g.Write(shared.Base, []byte("shared")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Slice(shared.Base, shared.Size); err != nil {
		t.Error(err)
	}
	for _, r := range []Range{{shared.Base - 1, 2}, {shared.End() - 1, 2}, {shared.Base - 0x1000, 0x1000}, {shared.End(), 1}} {
		if _, err := g.Slice(r.Base, r.Size); !errors.Is(err, ErrPrivate) {
			t.Errorf("%v beside the shared pages: %v", r, err)
		}
	}
	one := Range{shared.Base + 0x1000, 0x1000}
	if err := g.Write(one.Base, []byte{1}); err != nil {
		t.Fatal(err)
	}
	stale, err := g.Slice(one.Base, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Convert(one, true); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Slice(shared.Base, shared.Size); !errors.Is(err, ErrPrivate) {
		t.Errorf("a private page within: %v", err)
	}
	if stale[0] != 0 {
		t.Error("the host kept what was behind a page that became private")
	}
	if _, err := g.Slice(shared.Base, 0x1000); err != nil {
		t.Error(err)
	}
}

func TestConvertRefuses(t *testing.T) {
	g := confidential(t)
	for _, r := range []Range{{0, 0}, {0, 0x800}, {0x800, 0x1000}, {0x7f000, 0x2000}, {0x80000, 0x1000}, {1 << 32, 0x104000}, {1 << 32, ^uint64(0xfff)}} {
		if err := g.Convert(r, false); !errors.Is(err, ErrOutside) {
			t.Errorf("%#x+%#x: %v", uint64(r.Base), r.Size, err)
		}
	}
	plain, err := New(Range{0, 0x1000})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if err := plain.Write(0, []byte{7}); err != nil {
		t.Fatal(err)
	}
	if err := plain.Convert(Range{0, 0x1000}, true); err != nil {
		t.Fatal(err)
	}
	if b, err := plain.Slice(0, 1); err != nil || b[0] != 7 || plain.Confidential() {
		t.Errorf("a plain guest's memory: % x, %v", b, err)
	}
}

// FuzzConvert compares the bitmap with a list of pages.
func FuzzConvert(f *testing.F) {
	f.Add([]byte{0, 64, 0, 63, 2, 1, 10, 200, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const pages = 200
		g, err := New(Range{0x1000, pages * pageSize})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = g.Close() }()
		g.MakeConfidential()
		var shared [pages + 256 + 2]bool
		for ; len(ops) >= 3; ops = ops[3:] {
			first, n, private := int(ops[0]), int(ops[1]), ops[2]&1 != 0
			err := g.Convert(Range{GPA(0x1000 + first*pageSize), uint64(n) * pageSize}, private)
			if fits := n > 0 && first+n <= pages; fits != (err == nil) {
				t.Fatalf("%d pages from %d: %v", n, first, err)
			} else if fits {
				for i := range n {
					shared[first+i] = !private
				}
			}
		}
		for i := range pages {
			for n := 1; n < 3 && i+n <= pages; n++ {
				_, err := g.Slice(GPA(0x1000+i*pageSize+1), uint64(n-1)*pageSize+1)
				if want := shared[i] && (n == 1 || shared[i+1]); want != (err == nil) {
					t.Fatalf("%d pages at page %d: %v", n, i, err)
				}
			}
		}
	})
}

func BenchmarkSlice(b *testing.B) {
	g, err := New(Range{0, 0xc0000000}, Range{1 << 32, 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Slice(1<<32+0x1000, 4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSliceConfidential(b *testing.B) {
	g := confidential(b)
	if err := g.Convert(Range{1 << 32, 0x103000}, false); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Slice(1<<32+0x1000, 4096); err != nil {
			b.Fatal(err)
		}
	}
}

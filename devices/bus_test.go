package devices

import (
	"bytes"
	"testing"
)

// recorder remembers the last access it served.
type recorder struct {
	offset uint64
	data   []byte
}

func (r *recorder) Read(offset uint64, data []byte) {
	r.offset = offset
	for i := range data {
		data[i] = byte(offset) + byte(i)
	}
}

func (r *recorder) Write(offset uint64, data []byte) {
	r.offset, r.data = offset, bytes.Clone(data)
}

func TestBusRoutes(t *testing.T) {
	var b Bus
	var low, high recorder
	for _, r := range []struct {
		name       string
		base, size uint64
		h          Handler
	}{{"high", 0x2000, 0x10, &high}, {"low", 0x1000, 0x1000, &low}} {
		if err := b.Add(r.name, r.base, r.size, r.h); err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 2)
	if !b.Read(0x2004, data) || high.offset != 4 || !bytes.Equal(data, []byte{4, 5}) {
		t.Errorf("read of high: offset %#x, data % x", high.offset, data)
	}
	if !b.Write(0x1ffe, []byte{7, 8}) || low.offset != 0xffe || !bytes.Equal(low.data, []byte{7, 8}) {
		t.Errorf("write to low: offset %#x, data % x", low.offset, low.data)
	}
	for _, addr := range []uint64{0, 0xfff, 0x1fff, 0x200f, 0x2010, ^uint64(0)} {
		data := []byte{1, 2}
		if b.Read(addr, data) || !bytes.Equal(data, []byte{0xff, 0xff}) {
			t.Errorf("read at %#x, which no range holds whole, gave % x", addr, data)
		}
		if b.Write(addr, data) {
			t.Errorf("write at %#x was served", addr)
		}
	}
	if !b.Remove(0x1000) || b.Remove(0x1000) || b.Read(0x1000, data) {
		t.Error("removed range is still there")
	}
}

func TestBusRefusesOverlap(t *testing.T) {
	var b Bus
	if err := b.Add("first", 0x100, 0x10, &recorder{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ base, size uint64 }{
		{0x100, 0x10}, {0x0ff, 2}, {0x10f, 1}, {0, 0x1000}, {0x108, 0}, {^uint64(0), 2},
	} {
		if err := b.Add("second", r.base, r.size, &recorder{}); err == nil {
			t.Errorf("%#x+%#x was accepted", r.base, r.size)
		}
	}
	if err := b.Add("top", ^uint64(0), 1, &recorder{}); err != nil {
		t.Errorf("the last address: %v", err)
	}
}

package virtio

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestRNG(t *testing.T) {
	m := newFakeMachine(t)
	d := newMMIODriver(t, m, NewRNG(), nil)
	r := newGuestRing(t, m.mem, ringAt, 64)
	d.probe(FeatureVersion1, r)
	for _, x := range []struct {
		buffers []guestBuffer
		want    uint32
	}{
		{[]guestBuffer{{dataAt, 64, true}}, 64},
		{[]guestBuffer{{dataAt, 10, true}, {dataAt + 100, 300, true}}, 310},
		{[]guestBuffer{{dataAt, 1 << 20, true}}, rngMax},
		{[]guestBuffer{{dataAt, 64, false}}, 0},
	} {
		clear(m.mem.Regions()[0].Host()[dataAt:])
		r.add(x.buffers...)
		d.kick(0)
		var n uint32
		m.await(t, "entropy", func() (ok bool) { _, n, ok = r.take(); return ok })
		d.ack()
		if n != x.want {
			t.Errorf("%v: %d bytes, want %d", x.buffers, n, x.want)
		}
		for _, b := range x.buffers {
			if got := r.get(b.addr, int(min(b.len, rngMax))); b.writable == bytes.Equal(got, make([]byte, len(got))) {
				t.Errorf("%v: wrong buffers filled", x.buffers)
			}
		}
	}
}

// lineWriter announces each write.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), errTest }

func TestConsole(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		out := make(lineWriter, 4)
		con := NewConsole(out)
		d := attach(con, nil)
		rx, tx := newGuestRing(t, m.mem, ringAt, 64), newGuestRing(t, m.mem, 2*ringAt, 64)
		// Typed before the guest is there.
		if n, err := con.Write([]byte("early ")); n != 6 || err != nil {
			t.Fatal(n, err)
		}
		d.probe(^uint64(0), rx, tx)
		tx.put(dataAt, []byte("hello world"))
		tx.add(guestBuffer{dataAt, 6, false}, guestBuffer{dataAt + 6, 5, false})
		d.kick(consoleTx)
		if a, b := <-out, <-out; a+b != "hello world" {
			t.Errorf("printed %q", a+b)
		}
		m.await(t, "output used", func() bool { _, n, ok := tx.take(); return ok && n == 0 })
		d.ack()
		// Buffers first, then more input; each answer fills at most one buffer.
		for i := range uint64(3) {
			rx.add(guestBuffer{dataAt + 16*i, 8, true})
		}
		d.kick(consoleRx)
		var got []byte
		take := func() bool {
			d.ack()
			id, n, ok := rx.take()
			if ok {
				got = append(got, rx.get(dataAt+16*uint64(id), int(n))...)
			}
			return ok
		}
		m.await(t, "early input", take)
		if _, err := con.Write([]byte("typed line")); err != nil {
			t.Fatal(err)
		}
		m.await(t, "input", take)
		m.await(t, "more input", take)
		if string(got) != "early typed line" {
			t.Errorf("input %q", got)
		}
		// Nobody takes it: Write blocks, Close releases it.
		done := make(chan error)
		go func() {
			_, err := con.Write(make([]byte, 3*consoleBuffer))
			done <- err
		}()
		_ = con.Close()
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write after Close: %v", err)
		}
	})
}

// TestConsoleLongInput passes more input than the console keeps, while the
// guest hands in one buffer at a time.
func TestConsoleLongInput(t *testing.T) {
	m := newFakeMachine(t)
	con := NewConsole(io.Discard)
	d := newMMIODriver(t, m, con, nil)
	rx, tx := newGuestRing(t, m.mem, ringAt, 64), newGuestRing(t, m.mem, 2*ringAt, 64)
	d.probe(FeatureVersion1|FeatureEventIdx, rx, tx)
	want := bytes.Repeat([]byte("0123456789abcdef-"), 2000)
	go func() { _, _ = con.Write(want) }()
	var got []byte
	for len(got) < len(want) {
		rx.add(guestBuffer{dataAt, 1000, true})
		d.kick(consoleRx)
		m.await(t, "input", func() bool {
			_, n, ok := rx.take()
			if ok {
				got = append(got, rx.get(dataAt, int(n))...)
			}
			return ok
		})
	}
	if !bytes.Equal(got, want) {
		t.Error("input differs")
	}
}

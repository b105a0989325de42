package virtio

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gvmm/gvmm/devices/ninep"
)

func newShare(t *testing.T, dir string) *ninep.Server {
	srv, err := ninep.NewServer(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	return srv
}

func TestNineP(t *testing.T) {
	for _, features := range []uint64{FeatureVersion1 | ninepMountTag, ninepMountTag, 0} { // Unikraft accepts no VERSION_1
		t.Run(fmt.Sprintf("features=%#x", features), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
				testNineP(t, m, attach, features)
			})
		})
	}
}

func testNineP(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver, features uint64) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("shared text"), 0o644); err != nil {
		t.Fatal(err)
	}
	dev, err := NewNineP("fs0", newShare(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	d := attach(dev, func(err error) { t.Error(err) })
	if n := d.config(0, 2); n != 3 {
		t.Errorf("tag_len %d", n)
	}
	for i, want := range []byte("fs0\x00") {
		if got := d.config(uint64(2+i), 1); got != uint64(want) {
			t.Errorf("tag[%d] = %#x", i, got)
		}
	}
	r := newGuestRing(t, m.mem, ringAt, ninepQueueSize)
	d.probe(features, r)

	// call sends a T-message that is split after 7 bytes; the reply lands in two
	// buffers, one of 11 bytes as for Rread's header.
	const replyAt = dataAt + 0x10000
	call := func(typ uint8, body ...byte) []byte {
		t.Helper()
		msg := binary.LittleEndian.AppendUint32(nil, uint32(7+len(body)))
		msg = append(append(msg, typ, 1, 0), body...)
		r.put(dataAt, msg)
		head := r.add(guestBuffer{dataAt, 7, false}, guestBuffer{dataAt + 7, uint32(len(body)), false},
			guestBuffer{replyAt, 11, true}, guestBuffer{replyAt + 0x1000, 0x2000, true})
		d.kick(0)
		var id, n uint32
		m.await(t, "reply", func() (ok bool) { id, n, ok = r.take(); return ok })
		d.ack()
		reply := append(r.get(replyAt, 11), r.get(replyAt+0x1000, 0x2000)...)
		if id != uint32(head) || n < 7 || binary.LittleEndian.Uint32(reply) != n || reply[5] != 1 || reply[6] != 0 {
			t.Fatalf("request %d: chain %d used with %d bytes: % x", typ, id, n, reply[:11])
		}
		if reply[4] != typ+1 {
			t.Fatalf("request %d: reply % x", typ, reply[:11])
		}
		return reply[7:n]
	}
	str := func(s string) []byte { return append([]byte{byte(len(s)), 0}, s...) }
	u32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	for range 2 { // and again after a reset, as a rebooted guest does
		call(100, join(u32(127*4096), str("9P2000.L"))...)                    // Tversion
		call(104, join(u32(0), u32(^uint32(0)), str(""), str(""), u32(0))...) // Tattach
		call(110, join(u32(0), u32(1), []byte{1, 0}, str("file"))...)         // Twalk
		call(12, join(u32(1), u32(2))...)                                     // Tlopen
		if got := call(116, join(u32(1), make([]byte, 8), u32(100))...); string(got[4:]) != "shared text" {
			t.Errorf("Rread % x", got)
		}
		call(118, join(u32(1), []byte{7, 0, 0, 0, 0, 0, 0, 0}, u32(4), []byte("TEXT"))...) // Twrite
		if got, _ := os.ReadFile(filepath.Join(dir, "file")); string(got) != "shared TEXT" {
			t.Errorf("the file holds %q", got)
		}
		call(118, join(u32(1), []byte{7, 0, 0, 0, 0, 0, 0, 0}, u32(4), []byte("text"))...)
		d.reset()
		r = newGuestRing(t, m.mem, ringAt, ninepQueueSize)
		d.probe(features, r)
	}

	// No room for a reply: the chain comes back empty.
	r.put(dataAt, []byte{7, 0, 0, 0, 108, 1, 0})
	r.add(guestBuffer{dataAt, 7, false}, guestBuffer{replyAt, 6, true})
	r.add(guestBuffer{dataAt, 7, false})
	d.kick(0)
	for range 2 {
		var n uint32
		m.await(t, "empty reply", func() (ok bool) { d.ack(); _, n, ok = r.take(); return ok })
		d.ack()
		if n != 0 {
			t.Errorf("%d bytes written where there was no room", n)
		}
	}
}

func TestNinePTag(t *testing.T) {
	for _, tag := range []string{"", string(make([]byte, 256))} {
		if _, err := NewNineP(tag, nil); err == nil {
			t.Errorf("a tag of %d bytes was accepted", len(tag))
		}
	}
}

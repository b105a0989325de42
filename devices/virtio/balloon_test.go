package virtio

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestBalloon(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		b := NewBalloon(64 << 20)
		d := attach(b, nil)
		var rings []*guestRing
		for i := range uint64(4) {
			rings = append(rings, newGuestRing(t, m.mem, (i+1)*ringAt, 128))
		}
		inflate, deflate, stats, reports := rings[0], rings[1], rings[2], rings[3]
		d.probe(^uint64(0)&^FeatureAccessPlatform, rings...)
		used := func(r *guestRing, queue int) {
			t.Helper()
			d.kick(queue)
			m.await(t, "buffer used", func() bool { d.ack(); _, _, ok := r.take(); return ok })
		}
		const page = 0x60000
		full := bytes.Repeat([]byte{7}, 3*balloonPage)

		if err := b.SetTarget(8 << 20); err != nil {
			t.Fatal(err)
		}
		m.await(t, "change of the target", func() bool { d.ack(); return d.config(0, 4) == 8<<20/balloonPage })
		if err := b.SetTarget(65 << 20); err == nil || !strings.Contains(err.Error(), "the guest has 64 MiB") {
			t.Error(err)
		}

		// Two pages in a row, one beyond the guest's memory, one a second time.
		inflate.put(page, full)
		var list []byte
		for _, pfn := range []uint32{page / balloonPage, page/balloonPage + 1, 0xffffffff, page / balloonPage} {
			list = binary.LittleEndian.AppendUint32(list, pfn)
		}
		inflate.put(dataAt, list)
		inflate.add(guestBuffer{dataAt, uint32(len(list)), false})
		used(inflate, 0)
		if got := inflate.get(page, len(full)); !bytes.Equal(got[:2*balloonPage], make([]byte, 2*balloonPage)) || !bytes.Equal(got[2*balloonPage:], full[2*balloonPage:]) {
			t.Error("inflate: the pages in the balloon, and they alone, are given back")
		}
		deflate.add(guestBuffer{dataAt, uint32(len(list)), false})
		used(deflate, 1)

		reports.put(page, full)
		reports.add(guestBuffer{page + balloonPage, balloonPage, true})
		used(reports, 3)
		if got := reports.get(page, len(full)); !bytes.Equal(got[:balloonPage], full[:balloonPage]) || got[balloonPage] != 0 || got[2*balloonPage] != 7 {
			t.Error("reporting: the reported page, and it alone, is given back")
		}

		if _, err := b.Statistics(time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not report") {
			t.Error(err)
		}
		report := func(free uint64) {
			s := binary.LittleEndian.AppendUint64([]byte{4, 0}, free)
			stats.put(dataAt+4096, append(s, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9)) // an unknown tag, and a torn entry
			stats.add(guestBuffer{dataAt + 4096, uint32(len(s) + 11), false})
			d.kick(2)
		}
		report(1000) // the driver's first buffer
		for held := false; !held; {
			b.mu.Lock()
			held = b.held
			b.mu.Unlock()
			runtime.Gosched()
		}
		answered := make(chan error, 1)
		go func() {
			got, err := b.Statistics(10 * time.Second)
			if err == nil && (got["free"] != 2000 || len(got) != 1) {
				t.Errorf("statistics %v", got)
			}
			answered <- err
		}()
		m.await(t, "statistics asked for", func() bool { d.ack(); _, _, ok := stats.take(); return ok })
		report(2000)
		if err := <-answered; err != nil {
			t.Error(err)
		}
		d.reset()
		if _, err := b.Statistics(time.Second); err == nil || !strings.Contains(err.Error(), "no balloon driver") {
			t.Error(err)
		}
	})
}

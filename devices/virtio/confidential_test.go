package virtio

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// TestConfidential checks what devices ask of a confidential guest's drivers, and
// that a ring or buffer in private memory costs the guest its device and no more.
func TestConfidential(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		m.mem.MakeConfidential()
		convert := func(at, size uint64, private bool) {
			if err := m.mem.Convert(memory.Range{Base: memory.GPA(at), Size: size}, private); err != nil {
				t.Fatal(err)
			}
		}
		var said atomic.Value
		var c Chain
		dev := &testDevice{id: 4, sizes: []uint16{64}, serve: echo(&c)}
		d := attach(dev, func(err error) { said.Store(err.Error()) })
		broken := func(why string) {
			t.Helper()
			m.await(t, "device error", func() bool { return d.status()&statusNeedsReset != 0 })
			if s, _ := said.Load().(string); !strings.Contains(s, why) {
				t.Errorf("reported %q, want %q", s, why)
			}
			d.reset()
			d.ack()
		}
		convert(ringAt, 0x4000, false)
		r := newGuestRing(t, m.mem, ringAt, 64)
		d.probe(FeatureVersion1, r)
		if d.status()&statusFeaturesOK != 0 {
			t.Error("FEATURES_OK stands without ACCESS_PLATFORM")
		}
		broken("ACCESS_PLATFORM")
		if d.name == "legacy" {
			return // it cannot accept the feature
		}

		r = newGuestRing(t, m.mem, ringAt, 64)
		d.probe(FeatureVersion1|FeatureAccessPlatform, r)
		if d.status() != 15 || !dev.session.Has(FeatureAccessPlatform) {
			t.Fatalf("status %d, features %#x", d.status(), dev.session.Features)
		}
		r.add(guestBuffer{ringAt + 0x3000, 7, false})
		d.kick(0)
		m.await(t, "an answer from shared memory", func() bool { _, n, ok := r.take(); return ok && n == 7 })
		d.ack()

		const private = ringAt + 0x4000
		r.add(guestBuffer{private, 7, true})
		d.kick(0)
		broken("private memory")

		d.probe(FeatureVersion1 | FeatureAccessPlatform) // without rings: it has none to lose
		d.reset()
		r = newGuestRing(t, m.mem, ringAt, 64)
		if d.prepare != nil {
			d.prepare(r)
		}
		convert(ringAt, 0x1000, true)
		d.probe(FeatureVersion1|FeatureAccessPlatform, r)
		broken("private memory")
	})
}

// TestPlainOffersNoPlatform keeps plain guests' features as they were: drivers of
// old refuse bits that they do not know.
func TestPlainOffersNoPlatform(t *testing.T) {
	d := newMMIODriver(t, newFakeMachine(t), &testDevice{id: 4, sizes: []uint16{64}}, nil)
	if d.t.offered&FeatureAccessPlatform != 0 {
		t.Error("ACCESS_PLATFORM offered to a plain guest")
	}
}

package virtio

import (
	"bytes"
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/devices/usernet"
	"github.com/gvmm/gvmm/vmm/memory"
)

// fakeNet is a back end that keeps what is sent and gives what is queued.
type fakeNet struct {
	offloads netdev.Offloads

	mu      sync.Mutex
	arrived sync.Cond
	closed  bool
	toGuest [][]byte
	sent    [][]byte
	guest   netdev.Offloads
}

func newFakeNet(o netdev.Offloads) *fakeNet {
	f := &fakeNet{offloads: o}
	f.arrived.L = &f.mu
	return f
}

func (f *fakeNet) Offloads() netdev.Offloads { return f.offloads }

func (f *fakeNet) SetOffloads(o netdev.Offloads) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guest = o
	return nil
}

func (f *fakeNet) Send(pkt []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, bytes.Clone(pkt))
	return nil
}

func (f *fakeNet) Receive(buf []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	if len(f.toGuest) == 0 {
		return 0, nil
	}
	k := copy(buf, f.toGuest[0])
	f.toGuest = f.toGuest[1:]
	return k, nil
}

func (f *fakeNet) Wait() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.toGuest) == 0 && !f.closed {
		f.arrived.Wait()
	}
	if f.closed {
		return os.ErrClosed
	}
	return nil
}

func (f *fakeNet) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.arrived.Broadcast()
	return nil
}

// give queues packets for the guest, each frame with a header in front.
func (f *fakeNet) give(h netdev.Header, frames ...[]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, frame := range frames {
		pkt := make([]byte, netdev.HeaderSize, netdev.HeaderSize+len(frame))
		h.Put(pkt)
		f.toGuest = append(f.toGuest, append(pkt, frame...))
	}
	f.arrived.Broadcast()
}

func (f *fakeNet) sentCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sent)
}

func testFrame(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7)
	}
	return b
}

func closeNet(t testing.TB, n *Net) {
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

const (
	netRxRing = ringAt
	netTxRing = ringAt + 0x10000
	netRxData = dataAt
	netTxData = dataAt + 0x100000
)

func netRings(t testing.TB, m *fakeMachine) (rx, tx *guestRing) {
	return newGuestRing(t, m.mem, netRxRing, netQueueSize), newGuestRing(t, m.mem, netTxRing, netQueueSize)
}

// takeUsed waits for one used entry and returns it.
func takeUsed(t testing.TB, m *fakeMachine, d *driver, r *guestRing) (id, written uint32) {
	t.Helper()
	m.await(t, "used buffer", func() bool {
		d.ack()
		var ok bool
		id, written, ok = r.take()
		return ok
	})
	return id, written
}

func TestNetBothWays(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *fakeMachine, attach func(Device, func(error)) *driver) {
		back := newFakeNet(netdev.Checksum | netdev.TSO4 | netdev.TSO6)
		mac := [6]byte{0x52, 0x54, 0, 1, 2, 3}
		n := NewNet(back, mac)
		closeNet(t, n)
		d := attach(n, func(err error) { t.Error(err) })
		header := 12
		if d.name == "legacy" {
			header = 10
		}
		for round := range 2 {
			rx, tx := netRings(t, m)
			d.probe(netMAC|netStatus|FeatureVersion1, rx, tx)
			for i, b := range mac {
				if got := d.config(uint64(i), 1); got != uint64(b) {
					t.Errorf("MAC byte %d is %#x", i, got)
				}
			}
			if d.config(6, 2) != 1 {
				t.Error("the link is down")
			}
			if round == 0 {
				back.give(netdev.Header{Flags: netdev.FlagDataValid}, testFrame(1, 60)) // before there is a buffer
			}
			// To the guest, header and data in two descriptors.
			rx.add(guestBuffer{netRxData, uint32(header), true}, guestBuffer{netRxData + 0x1000, 1514, true})
			d.kick(netRx)
			if round == 1 {
				back.give(netdev.Header{}, testFrame(1, 60))
			}
			if _, written := takeUsed(t, m, d, rx); int(written) != header+60 {
				t.Errorf("%d bytes written", written)
			}
			want := make([]byte, header)
			if header == 12 {
				want[10] = 1 // num_buffers (5.1.6.4)
			}
			if got := rx.get(netRxData, header); !bytes.Equal(got, want) {
				t.Errorf("header % x", got)
			}
			if got := rx.get(netRxData+0x1000, 60); !bytes.Equal(got, testFrame(1, 60)) {
				t.Errorf("frame % x", got)
			}
			// From the guest, split at a place of its own.
			pkt := append(make([]byte, header), testFrame(2, 100)...)
			pkt[2] = 99 // a field without meaning when there are no flags
			tx.put(netTxData, pkt)
			tx.add(guestBuffer{netTxData, 3, false}, guestBuffer{netTxData + 3, uint32(len(pkt) - 3), false})
			d.kick(netTx)
			takeUsed(t, m, d, tx)
			if sent := back.sentCount(); sent != round+1 {
				t.Fatalf("%d packets sent", sent)
			}
			if got := back.sent[round]; !bytes.Equal(got, append(make([]byte, 12), testFrame(2, 100)...)) {
				t.Errorf("sent % x", got)
			}
			d.reset()
		}
	})
}

func netDriver(t testing.TB, back netdev.Backend, features uint64) (*fakeMachine, *driver, *guestRing, *guestRing) {
	m := newFakeMachine(t)
	n := NewNet(back, [6]byte{2})
	closeNet(t, n)
	d := newMMIODriver(t, m, n, nil)
	rx, tx := netRings(t, m)
	d.probe(features|FeatureVersion1|netMAC, rx, tx)
	return m, d, rx, tx
}

func TestNetMergedBuffers(t *testing.T) {
	back := newFakeNet(netdev.Checksum | netdev.TSO4)
	m, d, rx, _ := netDriver(t, back, netMrgRxbuf|netGuestCsum|netGuestTSO4)
	const size = 1526
	for i := range uint64(8) {
		rx.add(guestBuffer{netRxData + i*0x1000, size, true})
	}
	d.kick(netRx)
	big := netdev.Header{Flags: netdev.FlagNeedsChecksum, GSOType: netdev.GSOTCPv4, GSOSize: 1460, HeaderLen: 54, CsumStart: 34, CsumOffset: 16}
	back.give(big, testFrame(3, 5000))
	back.give(netdev.Header{}, testFrame(4, 100))
	back.give(big, testFrame(5, 6000)) // does not fit any more: 4 of 8 buffers and 1 are gone
	var got []byte
	for range 4 {
		id, written := takeUsed(t, m, d, rx)
		got = append(got, rx.get(netRxData+uint64(id)*0x1000, int(written))...)
	}
	want := make([]byte, 12)
	big.Put(want)
	want[10] = 4
	if !bytes.Equal(got, append(want, testFrame(3, 5000)...)) {
		t.Errorf("merged packet: %d bytes, header % x", len(got), got[:12])
	}
	id, written := takeUsed(t, m, d, rx)
	if got := rx.get(netRxData+uint64(id)*0x1000, int(written)); !bytes.Equal(got[12:], testFrame(4, 100)) || got[10] != 1 {
		t.Errorf("small packet: %d bytes", len(got))
	}
	if _, _, ok := rx.take(); ok {
		t.Error("a packet was begun without room for all of it")
	}
	rx.add(guestBuffer{netRxData + 8*0x1000, size, true})
	d.kick(netRx)
	got = nil
	for range 4 {
		id, written := takeUsed(t, m, d, rx)
		got = append(got, rx.get(netRxData+uint64(id)*0x1000, int(written))...)
	}
	if !bytes.Equal(got[12:], testFrame(5, 6000)) {
		t.Error("the packet that waited for buffers is damaged")
	}
}

// Buffers that are too small cost packets, not the device.
func TestNetSmallBuffers(t *testing.T) {
	for _, features := range []uint64{0, netMrgRxbuf} {
		back := newFakeNet(0)
		m, d, rx, _ := netDriver(t, back, features)
		rx.add(guestBuffer{netRxData, 5, true}) // not even a header
		sizes := uint32(100)
		if features != 0 {
			sizes = 12 // 64 of them hold 768 bytes
		}
		for i := range uint64(80) {
			rx.add(guestBuffer{netRxData + 0x1000 + i*0x100, sizes, true})
		}
		d.kick(netRx)
		back.give(netdev.Header{}, testFrame(1, 1514), testFrame(2, 60))
		if id, written := takeUsed(t, m, d, rx); id != 0 || written != 0 {
			t.Errorf("useless buffer came back as %d with %d bytes", id, written)
		}
		_, written := takeUsed(t, m, d, rx)
		if got := rx.get(netRxData+0x1000, 100); features == 0 && (written != 72 || !bytes.Equal(got[12:72], testFrame(2, 60))) {
			t.Errorf("%d bytes % x", written, got)
		} else if features != 0 && (written != 12 || got[10] != 6) {
			t.Errorf("%d bytes in the first of %d buffers", written, got[10])
		}
	}
}

// Packets stay in the back end while the guest has no buffers.
func TestNetBackPressure(t *testing.T) {
	back := newFakeNet(0)
	m, d, rx, _ := netDriver(t, back, 0)
	for i := range 50 {
		back.give(netdev.Header{}, testFrame(byte(i), 60))
	}
	rx.add(guestBuffer{netRxData, 2048, true})
	d.kick(netRx)
	takeUsed(t, m, d, rx)
	for range 49 {
		rx.add(guestBuffer{netRxData, 2048, true})
		d.kick(netRx)
		takeUsed(t, m, d, rx)
	}
	if got := rx.get(netRxData+12, 60); !bytes.Equal(got, testFrame(49, 60)) {
		t.Error("packets were lost or came out of order")
	}
}

func TestNetBadPackets(t *testing.T) {
	back := newFakeNet(netdev.Checksum | netdev.TSO4 | netdev.TSO6)
	m, d, _, tx := netDriver(t, back, netCsum|netHostTSO4)
	send := func(h netdev.Header, n int) {
		t.Helper()
		pkt := make([]byte, 12+n)
		h.Put(pkt)
		tx.put(netTxData, pkt)
		tx.add(guestBuffer{netTxData, uint32(len(pkt)), false})
		d.kick(netTx)
		takeUsed(t, m, d, tx)
	}
	csum := netdev.Header{Flags: netdev.FlagNeedsChecksum, CsumStart: 34, CsumOffset: 16}
	tso := csum
	tso.GSOType, tso.GSOSize = netdev.GSOTCPv4, 1460
	for name, bad := range map[string]func(h *netdev.Header){
		"checksum behind the end": func(h *netdev.Header) { h.CsumStart = 90 },
		"checksum wraps":          func(h *netdev.Header) { h.CsumStart, h.CsumOffset = 0xffff, 0xffff },
		"checksum in the header":  func(h *netdev.Header) { h.CsumStart = 3 },
		"TSO6 not accepted":       func(h *netdev.Header) { h.GSOType = netdev.GSOTCPv6 },
		"unknown segmentation":    func(h *netdev.Header) { h.GSOType = 77 },
		"ECN not offered":         func(h *netdev.Header) { h.GSOType |= netdev.GSOECN },
		"segments of nothing":     func(h *netdev.Header) { h.GSOSize = 0 },
		"TSO without checksum":    func(h *netdev.Header) { h.Flags = 0 },
	} {
		h := tso
		bad(&h)
		if send(h, 100); len(back.sent) != 0 {
			t.Fatalf("%s: was sent", name)
		}
	}
	send(netdev.Header{}, 13)
	tx.add(guestBuffer{netTxData, 7, false})                                                         // no whole header
	tx.add(guestBuffer{netTxData, 2000, true})                                                       // nothing readable
	tx.add(guestBuffer{0, 1 << 20, false}, guestBuffer{0, 1 << 20, false}, guestBuffer{0, 1, false}) // larger than any packet
	d.kick(netTx)
	for range 3 {
		takeUsed(t, m, d, tx)
	}
	if sent := back.sentCount(); sent != 0 {
		t.Error("a packet that is none was sent")
	}
	send(tso, 3000)
	send(csum, 60)
	if sent := back.sentCount(); sent != 2 || netdev.ParseHeader(back.sent[0]) != tso || netdev.ParseHeader(back.sent[1]) != csum {
		t.Error("good packets were not sent as they are")
	}
}

// A driver gets only what it has accepted, also after another one's time.
func TestNetOffloadsToGuest(t *testing.T) {
	back := newFakeNet(netdev.Checksum | netdev.TSO4)
	m, d, rx, _ := netDriver(t, back, 0)
	if back.guest != 0 {
		t.Errorf("offloads %d", back.guest)
	}
	rx.add(guestBuffer{netRxData, 4096, true})
	d.kick(netRx)
	back.give(netdev.Header{Flags: netdev.FlagNeedsChecksum, CsumStart: 34, CsumOffset: 16}, testFrame(1, 60))
	back.give(netdev.Header{}, testFrame(2, 61))
	if _, written := takeUsed(t, m, d, rx); written != 73 {
		t.Errorf("%d bytes, want the second packet", written)
	}
	d.reset()
	rx, tx := netRings(t, m)
	d.probe(netGuestTSO4|netGuestCsum, rx, tx)
	if want := netdev.Checksum | netdev.TSO4; back.guest != want {
		t.Errorf("offloads %d, want %d", back.guest, want)
	}
	d.reset()
	d.probe(netGuestTSO4, rx, tx) // nonsense: segmentation without checksum
	if back.guest != 0 {
		t.Errorf("offloads %d", back.guest)
	}
}

// A back end that ends takes the link down.
func TestNetLinkDown(t *testing.T) {
	back := newFakeNet(0)
	m, d, _, _ := netDriver(t, back, netStatus)
	_ = back.Close()
	m.await(t, "configuration change", func() bool { return d.config(6, 2) == 0 })
}

func TestNetAllocations(t *testing.T) {
	back := newFakeNet(0)
	mem, err := memory.New(memory.Range{Base: 0, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	n := NewNet(discard{back}, [6]byte{2})
	n.headerSize = 12
	b, err := mem.Slice(0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	c := Chain{Readable: Buffers{b[:12], b[12:]}}
	if k := testing.AllocsPerRun(100, func() { n.send(&c) }); k != 0 {
		t.Errorf("%v allocations to send a packet", k)
	}
}

type discard struct{ *fakeNet }

func (discard) Send([]byte) error { return nil }

// The whole way: an ARP request through the device to the user network and back.
func TestNetUserNetwork(t *testing.T) {
	un, err := usernet.New(usernet.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, d, rx, tx := netDriver(t, un, netMrgRxbuf)
	rx.add(guestBuffer{netRxData, 2048, true})
	d.kick(netRx)
	arp := []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" +
		"\x02\x00\x00\x00\x00\x01\x0a\x00\x02\x0f\x00\x00\x00\x00\x00\x00\x0a\x00\x02\x02")
	tx.put(netTxData, append(make([]byte, 12), arp...))
	tx.add(guestBuffer{netTxData, uint32(12 + len(arp)), false})
	d.kick(netTx)
	_, written := takeUsed(t, m, d, rx)
	got := rx.get(netRxData+12, int(written)-12)
	if len(got) != 42 || !bytes.Equal(got[:6], arp[6:12]) || binary.BigEndian.Uint16(got[20:]) != 2 {
		t.Errorf("answer % x", got)
	}
}

// FuzzNet has a driver use both queues with any descriptors and headers.
func FuzzNet(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, uint16(0xffff))
	f.Add(bytes.Repeat([]byte{1, 0, 4, 0, 6, 1, 64, 0, 34, 0, 16, 0}, 20), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, mask uint16) {
		m := newFakeMachine(t)
		back := newFakeNet(netdev.Checksum | netdev.TSO4 | netdev.TSO6)
		n := NewNet(back, [6]byte{2})
		d := newMMIODriver(t, m, n, nil)
		rx, tx := netRings(t, m)
		d.probe(uint64(mask)|FeatureVersion1|FeatureIndirectDesc, rx, tx)
		tx.put(netTxData, b)
		tx.put(0, b)
		for i := 0; i+6 <= len(b); i += 6 {
			r := []*guestRing{rx, tx}[b[i]&1]
			addr := uint64(netTxData + int(b[i+1]))
			if b[i]&2 != 0 {
				addr = uint64(b[i+1]) << 14
			}
			at := uint16(b[i+5])
			r.describe(r.desc, at, addr, uint32(b[i+2])<<(b[i+3]&15), uint16(b[i+3]>>4), uint16(b[i+4]))
			r.offer(at)
			if b[i]&4 != 0 {
				back.give(netdev.Header{}, b)
			}
		}
		d.kick(netRx)
		d.kick(netTx)
		if b := append(make([]byte, 60), b...); len(b) < netdev.MaxPacket-netdev.HeaderSize {
			back.give(netdev.Header{}, b)
		}
		done := make(chan struct{})
		go func() {
			d.reset()
			_ = d.close()
			_ = n.Close()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the device hangs")
		}
	})
}

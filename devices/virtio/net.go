package virtio

import (
	"encoding/binary"
	"errors"

	"github.com/gvmm/gvmm/devices/netdev"
)

// Features of the network device (virtio 1.3 5.1.3).
const (
	netCsum      = 1 << 0
	netGuestCsum = 1 << 1
	netMAC       = 1 << 5
	netGuestTSO4 = 1 << 7
	netGuestTSO6 = 1 << 8
	netHostTSO4  = 1 << 11
	netHostTSO6  = 1 << 12
	netMrgRxbuf  = 1 << 15
	netStatus    = 1 << 16

	netRx        = 0
	netTx        = 1
	netQueueSize = 256

	netLegacyHeader = 10 // without num_buffers (5.1.6.1)
	etherHeader     = 14

	// maxMerged bounds the buffers of one received packet. Drivers' buffers
	// hold at least 1514 bytes of it, so that 64 take the largest packet.
	maxMerged = 64
)

// Net is a virtio network device (virtio 1.3 5.1) with one pair of queues.
//
// Received packets wait in the back end, all but one, until the guest has
// buffers for them.
type Net struct {
	base
	back netdev.Backend
	arm  chan struct{} // Serve has taken everything: wait for more
	done chan struct{} // the goroutine that waits has ended
	quit chan struct{}

	started, closed bool // guarded by mu

	headerSize   int             // set in Activate
	mergeable    bool            // set in Activate
	fromGuest    netdev.Offloads // set in Activate, as is
	toGuest      netdev.Offloads
	tx           Chain
	txBuf, rxBuf []byte
	rxLen        int // of the packet in rxBuf that waits for buffers, 0 if none
	rx           [maxMerged]Chain
	held         int // chains in rx that are taken and not used yet
}

// NewNet makes a network device with the given hardware address.
func NewNet(back netdev.Backend, mac [6]byte) *Net {
	n := &Net{back: back, arm: make(chan struct{}, 1), done: make(chan struct{}), quit: make(chan struct{}),
		txBuf: make([]byte, netdev.MaxPacket), rxBuf: make([]byte, netdev.MaxPacket)}
	// The address stays as it is, also for legacy drivers, which may write it (5.1.4).
	n.base = base{name: "virtio-net", id: 1, features: netMAC | netStatus | netMrgRxbuf,
		queues: []uint16{netQueueSize, netQueueSize}, config: append(mac[:], 1, 0)} // VIRTIO_NET_S_LINK_UP
	o := back.Offloads()
	if o&netdev.Checksum != 0 {
		n.features |= netCsum | netGuestCsum
		if o&netdev.TSO4 != 0 {
			n.features |= netHostTSO4 | netGuestTSO4
		}
		if o&netdev.TSO6 != 0 {
			n.features |= netHostTSO6 | netGuestTSO6
		}
	}
	return n
}

// Close closes the back end. The device's transport is closed before.
func (n *Net) Close() error {
	n.mu.Lock()
	started, closed := n.started, n.closed
	n.closed = true
	n.mu.Unlock()
	if closed {
		return nil
	}
	close(n.quit)
	err := n.back.Close()
	if started {
		<-n.done
	}
	return err
}

// Activate implements [Device].
func (n *Net) Activate(s *Session) error {
	n.mergeable = s.Has(netMrgRxbuf)
	n.headerSize = netdev.HeaderSize
	if !n.mergeable && !s.Has(FeatureVersion1) {
		n.headerSize = netLegacyHeader
	}
	n.fromGuest = offloads(s, netCsum, netHostTSO4, netHostTSO6)
	n.toGuest = offloads(s, netGuestCsum, netGuestTSO4, netGuestTSO6)
	n.held, n.rxLen = 0, 0
	if err := n.back.SetOffloads(n.toGuest); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("the network has been closed")
	}
	n.session = s
	if !n.started {
		n.started = true
		go n.wait()
	}
	return nil
}

// offloads translates the accepted features of one direction. Segmentation
// needs checksums (5.1.3.1).
func offloads(s *Session, csum, tso4, tso6 uint64) netdev.Offloads {
	var o netdev.Offloads
	if s.Has(csum) {
		o = netdev.Checksum
		if s.Has(tso4) {
			o |= netdev.TSO4
		}
		if s.Has(tso6) {
			o |= netdev.TSO6
		}
	}
	return o
}

// wait wakes the receive queue when there is a packet, each time it has asked
// for that.
func (n *Net) wait() {
	defer close(n.done)
	for {
		select {
		case <-n.arm:
		case <-n.quit:
			return
		}
		err := n.back.Wait()
		n.mu.Lock()
		if err != nil {
			// The cable is out; nothing is received any more.
			n.config[6] = 0
			if n.session != nil && !n.closed {
				n.session.ConfigChanged()
			}
			n.mu.Unlock()
			return
		}
		if n.session != nil {
			n.session.Wake(netRx)
		}
		n.mu.Unlock()
	}
}

// Serve implements [Device].
func (n *Net) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	if queue == netRx {
		for range netQueueSize { // a flood must not keep a pause waiting
			if !n.receive(q) {
				return
			}
		}
		s.Wake(netRx)
		return
	}
	for q.Pop(&n.tx) {
		n.send(&n.tx)
		q.Push(&n.tx, 0)
	}
}

// send passes a packet of the guest's on. One that makes no sense is dropped.
func (n *Net) send(c *Chain) {
	frame := c.Readable.Len() - n.headerSize
	if frame < etherHeader || frame > netdev.MaxPacket-netdev.HeaderSize {
		return
	}
	clear(n.txBuf[:netdev.HeaderSize])
	c.Readable.CopyTo(n.txBuf[:n.headerSize], 0)
	h := netdev.ParseHeader(n.txBuf)
	if !h.Check(frame, n.fromGuest) {
		return
	}
	if h.Flags &= netdev.FlagNeedsChecksum; h.Flags == 0 {
		h = netdev.Header{} // the other fields mean nothing then
	}
	h.Put(n.txBuf)
	pkt := n.txBuf[:netdev.HeaderSize+frame]
	c.Readable.CopyTo(pkt[netdev.HeaderSize:], n.headerSize)
	_ = n.back.Send(pkt) // a lost packet is nobody's error
}

// receive moves one packet from the back end to the guest. It reports false
// when there is none, or no room for it.
func (n *Net) receive(q *Queue) bool {
	if n.rxLen == 0 {
		var err error
		if n.rxLen, err = n.back.Receive(n.rxBuf); err != nil || n.rxLen == 0 {
			n.rxLen = 0
			select {
			case n.arm <- struct{}{}:
			default:
			}
			return false
		}
		// One from the time of another driver may use what this one cannot take.
		if h := netdev.ParseHeader(n.rxBuf); !h.Check(n.rxLen-netdev.HeaderSize, n.toGuest) {
			n.rxLen = 0
			return true
		}
		if n.toGuest == 0 {
			clear(n.rxBuf[:netdev.HeaderSize])
		}
	}
	if !n.deliver(q) {
		return false // with the packet kept, until the guest adds buffers
	}
	n.rxLen = 0
	return true
}

// deliver moves the packet in rxBuf to the guest. It reports false when there
// are too few buffers at the moment. A packet that no number of such buffers
// could hold is dropped, and the buffers are kept for the next.
func (n *Net) deliver(q *Queue) bool {
	limit := 1
	if n.mergeable {
		limit = maxMerged
	}
	need := n.headerSize + n.rxLen - netdev.HeaderSize
	used, room := 0, 0
	for room < need {
		if used == limit {
			return true
		}
		if used == n.held {
			if !q.Pop(&n.rx[used]) {
				return false
			}
			if n.rx[used].Writable.Len() < n.headerSize {
				q.Push(&n.rx[used], 0) // not even room for the header
				continue
			}
			n.held++
		}
		room += n.rx[used].Writable.Len()
		used++
	}
	if n.headerSize == netdev.HeaderSize {
		binary.LittleEndian.PutUint16(n.rxBuf[10:], uint16(used))
	}
	n.rx[0].Writable.CopyFrom(n.rxBuf[:n.headerSize], 0)
	data, off := n.rxBuf[netdev.HeaderSize:n.rxLen], n.headerSize
	for i := range used {
		k := n.rx[i].Writable.CopyFrom(data, off)
		data = data[k:]
		q.Push(&n.rx[i], uint32(off+k))
		off = 0
	}
	// What is left goes to the front; the slices are swapped, not copied, to
	// keep each chain's memory for its next use.
	for i := used; i < n.held; i++ {
		n.rx[i-used], n.rx[i] = n.rx[i], n.rx[i-used]
	}
	n.held -= used
	return true
}

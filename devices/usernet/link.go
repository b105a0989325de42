package usernet

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gvmm/gvmm/devices/netdev"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	etherHeader = header.EthernetMinimumSize
	typeIPv4    = uint16(header.IPv4ProtocolNumber)
	typeARP     = uint16(header.ARPProtocolNumber)
)

// link is the wire between the stack and the guest. The stack sees it as a link
// of bare IP packets: there is one neighbour only, so the Ethernet header is put
// in front when the guest takes the packet, and ARP is answered here.
type link struct {
	*channel.Endpoint // what a link without addresses answers; its queue, which counts no bytes, is not used
	n                 *Network
	offloads          atomic.Uint32 // netdev.Offloads the guest takes

	mu      sync.Mutex
	arrived sync.Cond             // on mu: a packet, or err
	err     error                 // why the link is closed
	packets []*stack.PacketBuffer // waiting for the guest, from first on
	first   int
	bytes   int // of memory they hold, about
}

func newLink(n *Network) *link {
	l := &link{n: n, Endpoint: channel.New(0, uint32(n.mtu), "")}
	// The guest's packets reach us through memory, so their checksums, which it
	// may leave out, are not looked at.
	l.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	l.arrived.L = &l.mu
	return l
}

// Close does nothing: see close.
func (l *link) Close() {}

// GSOMaxSize implements [stack.GSOEndpoint].
func (l *link) GSOMaxSize() uint32 { return 61440 }

// SupportedGSO implements [stack.GSOEndpoint]: a guest that segments itself
// also completes checksums.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.segments() {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (l *link) segments() bool {
	const both = netdev.Checksum | netdev.TSO4
	return netdev.Offloads(l.offloads.Load())&both == both
}

// WritePackets queues packets for the guest. What finds no room is lost, as on
// any wire: TCP slows down.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	pkts := list.AsSlice()
	for i, p := range pkts {
		if !l.queue(p) {
			if i == 0 {
				return 0, &tcpip.ErrNoBufferSpace{}
			}
			return i, nil
		}
	}
	return len(pkts), nil
}

// queue appends a reference to p.
func (l *link) queue(p *stack.PacketBuffer) bool {
	cost := p.Size() + packetCost
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.bytes+cost > maxQueued {
		return false
	}
	if l.first > 0 && len(l.packets) == cap(l.packets) {
		n := copy(l.packets, l.packets[l.first:])
		clear(l.packets[n:])
		l.packets, l.first = l.packets[:n], 0
	}
	l.packets = append(l.packets, p.Clone())
	l.bytes += cost
	l.arrived.Signal()
	return true
}

// close drops what waits; err is what Wait and Receive return from then on.
func (l *link) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	for _, p := range l.packets[l.first:] {
		p.DecRef()
	}
	l.packets, l.first, l.bytes = nil, 0, 0
	l.arrived.Broadcast()
}

// Offloads implements netdev.Backend.
func (n *Network) Offloads() netdev.Offloads { return netdev.Checksum | netdev.TSO4 }

// SetOffloads implements netdev.Backend.
func (n *Network) SetOffloads(o netdev.Offloads) error {
	n.link.offloads.Store(uint32(o))
	return nil
}

// Wait implements netdev.Backend.
func (n *Network) Wait() error {
	n.present()
	l := n.link
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && l.first == len(l.packets) {
		l.arrived.Wait()
	}
	return l.err
}

// Receive implements netdev.Backend.
func (n *Network) Receive(buf []byte) (int, error) {
	n.present()
	l := n.link
	for {
		l.mu.Lock()
		if l.first == len(l.packets) {
			defer l.mu.Unlock()
			return 0, l.err
		}
		p := l.packets[l.first]
		l.packets[l.first] = nil
		if l.first++; l.first == len(l.packets) {
			l.packets, l.first = l.packets[:0], 0
		}
		l.bytes -= p.Size() + packetCost
		l.mu.Unlock()
		size := l.fill(buf, p)
		p.DecRef()
		if size > 0 {
			return size, nil
		}
	}
}

// fill writes p to buf as the guest gets it, 0 if it is not for this guest.
func (l *link) fill(buf []byte, p *stack.PacketBuffer) int {
	size := netdev.HeaderSize + etherHeader + p.Size()
	if size > len(buf) {
		return 0
	}
	var h netdev.Header
	if g := p.GSOOptions; g.Type != stack.GSONone {
		if !l.segments() {
			return 0 // left over from another driver's time
		}
		if g.NeedsCsum {
			h.Flags = netdev.FlagNeedsChecksum
			h.CsumStart, h.CsumOffset = etherHeader+g.L3HdrLen, g.CsumOffset
		}
		if p.Data().Size() > int(g.MSS) {
			h.GSOType, h.GSOSize, h.HeaderLen = netdev.GSOTCPv4, g.MSS, uint16(etherHeader+p.HeaderSize())
		}
	}
	h.Put(buf)
	b := buf[netdev.HeaderSize:]
	mac := l.n.guestMAC.Load()
	for i := range 6 {
		b[i] = byte(mac >> (8 * (5 - i)))
	}
	copy(b[6:], l.n.gatewayMAC[:])
	binary.BigEndian.PutUint16(b[12:], uint16(p.NetworkProtocolNumber))
	b = b[etherHeader:]
	b = b[copy(b, p.NetworkHeader().Slice()):]
	b = b[copy(b, p.TransportHeader().Slice()):]
	w := tcpip.SliceWriter(b)
	_, _ = p.Data().ReadTo(&w, true)
	return size
}

// queueFrame queues a frame's payload that the stack has no part in.
func (n *Network) queueFrame(etherType uint16, payload []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(payload)})
	p.NetworkProtocolNumber = tcpip.NetworkProtocolNumber(etherType)
	n.link.queue(p)
	p.DecRef()
}

func (n *Network) setGuestMAC(mac [6]byte) {
	var v uint64
	for _, b := range mac {
		v = v<<8 | uint64(b)
	}
	if n.guestMAC.Load() != v {
		n.guestMAC.Store(v)
	}
}

// Send implements netdev.Backend: a frame from the guest.
func (n *Network) Send(pkt []byte) error {
	if n.present(); len(pkt) < netdev.HeaderSize+etherHeader || !n.isUp() {
		return nil
	}
	frame := pkt[netdev.HeaderSize:]
	if src := [6]byte(frame[6:12]); src[0]&1 == 0 {
		n.setGuestMAC(src)
	}
	payload := frame[etherHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		n.arp(payload)
	case typeIPv4:
		n.ip(payload)
	}
	return nil
}

// ip takes an IPv4 packet (RFC 791 3.1) from the guest. The stack checks it
// again; here only where it goes is decided.
func (n *Network) ip(b []byte) {
	if len(b) < header.IPv4MinimumSize || b[0]>>4 != 4 {
		return
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	proto, ihl := b[9], int(b[0]&15)*4
	whole := binary.BigEndian.Uint16(b[6:])&0x3fff == 0
	if proto == uint8(header.UDPProtocolNumber) && whole && len(b) >= ihl+header.UDPMinimumSize && ihl >= header.IPv4MinimumSize &&
		binary.BigEndian.Uint16(b[ihl+2:]) == dhcpServerPort && (dst == n.host || dst == broadcastAddr()) {
		n.dhcp(b[ihl+header.UDPMinimumSize:])
		return
	}
	if outside(src) || outside(dst) || dst == n.broadcast {
		return
	}
	n.aliveOnce.Do(func() { close(n.alive) })
	if proto == uint8(header.ICMPv4ProtocolNumber) && dst != n.host && dst != n.dns {
		if whole && ihl >= header.IPv4MinimumSize && len(b) >= ihl {
			total := int(binary.BigEndian.Uint16(b[2:]))
			n.echoOut(src, dst, b[ihl:max(ihl, min(total, len(b)))])
		}
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	n.link.InjectInbound(header.IPv4ProtocolNumber, p)
	p.DecRef()
}

// arp answers for the addresses that live here (RFC 826).
func (n *Network) arp(b []byte) {
	const request = "\x00\x01\x08\x00\x06\x04\x00\x01"
	if len(b) < 28 || string(b[:8]) != request {
		return
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if !sender.IsUnspecified() {
		n.aliveOnce.Do(func() { close(n.alive) })
	}
	if target != n.host && target != n.dns {
		return
	}
	var r [28]byte
	copy(r[:], request)
	r[7] = 2 // reply
	copy(r[8:], n.gatewayMAC[:])
	copy(r[14:], b[24:28])
	copy(r[18:], b[8:18])
	n.queueFrame(typeARP, r[:])
}

package usernet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxDatagram is the largest payload of a UDP datagram over IPv4.
const maxDatagram = 65535 - header.IPv4MinimumSize - header.UDPMinimumSize

// flowKey names a flow as the guest sees it. A ping has its identifier for the
// guest's port and 0 for the other.
type flowKey struct {
	proto         tcpip.TransportProtocolNumber
	guest, remote netip.AddrPort
}

// flow is one run of datagrams between the guest and one peer. A flow that the
// guest began has a socket of its own, one that came in through a forward
// shares the forward's.
type flow struct {
	key    flowKey
	sock   *net.UDPConn
	client netip.AddrPort // through a forward: the peer
	last   atomic.Int64   // time of the last datagram, Unix nanoseconds

	refused atomic.Bool            // the peer's host said that nobody listens
	query   atomic.Pointer[[]byte] // to the name server: what is not answered yet
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

type clientKey struct {
	sock   *net.UDPConn
	client netip.AddrPort
}

type flowTable struct {
	mu       sync.Mutex
	byKey    map[flowKey]*flow
	byClient map[clientKey]*flow
	nextPort uint16
	closed   bool

	bufMu sync.Mutex
	buf   []byte // what any flow reads into
}

func (t *flowTable) init() {
	t.byKey, t.byClient = map[flowKey]*flow{}, map[clientKey]*flow{}
}

func (t *flowTable) get(k flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[k]
}

// add enters f, in the place of the flow that was idle longest when there are
// too many; t.mu is held. It reports false when the table is closed.
func (t *flowTable) add(f *flow) bool {
	f.touch()
	if t.closed {
		return false
	}
	if len(t.byKey) >= maxFlows {
		var oldest *flow
		for _, g := range t.byKey {
			if oldest == nil || g.last.Load() < oldest.last.Load() {
				oldest = g
			}
		}
		t.remove(oldest)
	}
	t.byKey[f.key] = f
	if f.client.IsValid() {
		t.byClient[clientKey{f.sock, f.client}] = f
	}
	return true
}

// remove takes f out and closes its socket; t.mu is held.
func (t *flowTable) remove(f *flow) {
	if t.byKey[f.key] != f {
		return
	}
	delete(t.byKey, f.key)
	if f.client.IsValid() {
		delete(t.byClient, clientKey{f.sock, f.client})
	} else {
		_ = f.sock.Close()
	}
}

func (t *flowTable) drop(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(f)
}

func (t *flowTable) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, f := range t.byKey {
		t.remove(f)
	}
}

// udpOut takes every datagram of the guest's (stack.SetTransportProtocolHandler).
// When it reports false the guest is told that the port is unreachable.
func (n *Network) udpOut(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	h := header.UDP(p.TransportHeader().Slice())
	if size := int(h.Length()) - header.UDPMinimumSize; size < 0 || size > p.Data().Size() {
		return true
	} else {
		p.Data().CapLength(size)
	}
	key := flowKey{header.UDPProtocolNumber,
		netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort),
		netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)}
	payload := p.Data().AsRange().ToSlice()
	f := n.flows.get(key)
	if f == nil {
		to, err := n.target(key.remote)
		var sock *net.UDPConn
		if err == nil {
			sock, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		}
		if err != nil {
			if n.isDNS(key) {
				n.answerServfail(key, payload)
				return true
			}
			return false
		}
		if f = n.startFlow(key, sock); f == nil {
			return true
		}
	}
	f.touch()
	if f.client.IsValid() {
		_, _ = f.sock.WriteToUDPAddrPort(payload, f.client)
		return true
	}
	if n.isDNS(key) {
		f.query.Store(&payload)
	}
	if _, err := f.sock.Write(payload); errors.Is(err, unix.ECONNREFUSED) {
		n.refuse(f)
	}
	return !f.refused.Swap(false)
}

func (n *Network) isDNS(k flowKey) bool { return k.remote == netip.AddrPortFrom(n.dns, 53) }

// refuse notes that the peer's host has refused a datagram. The guest is told
// at its next one; a name query is answered at once.
func (n *Network) refuse(f *flow) {
	if q := f.query.Swap(nil); q != nil {
		n.answerServfail(f.key, *q)
	} else {
		f.refused.Store(true)
	}
}

func (n *Network) answerServfail(key flowKey, query []byte) {
	if a := servfail(query); a != nil {
		n.datagram(key, a)
	}
}

// startFlow enters a flow with a connected socket and reads the peer's answers
// until it is idle for too long. It takes over sock.
func (n *Network) startFlow(key flowKey, sock *net.UDPConn) *flow {
	f := &flow{key: key, sock: sock}
	rc, err := sock.SyscallConn()
	n.flows.mu.Lock()
	defer n.flows.mu.Unlock()
	if err != nil || !n.flows.add(f) { // Close waits for what was added
		_ = sock.Close()
		return nil
	}
	n.wg.Go(func() {
		defer n.flows.drop(f)
		n.answers(f, rc)
	})
	return f
}

// answers reads datagrams for the guest. All flows share one buffer: it is held
// only while there is a datagram to read.
func (n *Network) answers(f *flow, rc syscall.RawConn) {
	read := func(fd uintptr) bool {
		n.flows.bufMu.Lock()
		defer n.flows.bufMu.Unlock()
		if n.flows.buf == nil {
			n.flows.buf = make([]byte, 65536)
		}
		k, rerr := unix.Read(int(fd), n.flows.buf)
		if errors.Is(rerr, unix.EAGAIN) {
			return false
		}
		if rerr == nil {
			f.touch()
			f.query.Store(nil)
			n.datagram(f.key, n.flows.buf[:k])
		} else if errors.Is(rerr, unix.ECONNREFUSED) {
			n.refuse(f)
		}
		return true
	}
	for {
		idle := time.Since(time.Unix(0, f.last.Load()))
		if idle >= flowIdle {
			return
		}
		_ = f.sock.SetReadDeadline(time.Now().Add(flowIdle - idle))
		if err := rc.Read(read); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// datagram sends the guest what the peer of the flow has said.
func (n *Network) datagram(k flowKey, payload []byte) {
	echo := k.proto == header.ICMPv4ProtocolNumber
	if len(payload) > maxDatagram || echo && (len(payload) < header.ICMPv4MinimumSize || header.ICMPv4(payload).Type() != header.ICMPv4EchoReply) {
		return
	}
	r, terr := n.stack.FindRoute(nicID, address(k.remote.Addr()), address(k.guest.Addr()), ipv4.ProtocolNumber, false)
	if terr != nil {
		return
	}
	defer r.Release()
	if echo {
		h := header.ICMPv4(payload)
		h.SetIdent(k.guest.Port()) // the host's kernel had put its own there
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(payload, 0))
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(payload),
	})
	defer p.DecRef()
	if !echo {
		u := header.UDP(p.TransportHeader().Push(header.UDPMinimumSize))
		u.Encode(&header.UDPFields{SrcPort: k.remote.Port(), DstPort: k.guest.Port(), Length: uint16(p.Size())})
		sum := checksum.Checksum(payload, r.PseudoHeaderChecksum(k.proto, uint16(p.Size())))
		if sum = ^u.CalculateChecksum(sum); sum == 0 {
			sum = 0xffff // 0 says that there is none (RFC 768)
		}
		u.SetChecksum(sum)
	}
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: k.proto, TTL: r.DefaultTTL()}, p)
}

// echoOut sends a ping on, if the host lets unprivileged programs do that
// (sysctl net.ipv4.ping_group_range); otherwise it is lost.
func (n *Network) echoOut(src, dst netip.Addr, msg []byte) {
	if len(msg) < header.ICMPv4MinimumSize || header.ICMPv4(msg).Type() != header.ICMPv4Echo || n.prefix.Contains(dst) {
		return
	}
	key := flowKey{header.ICMPv4ProtocolNumber, netip.AddrPortFrom(src, header.ICMPv4(msg).Ident()), netip.AddrPortFrom(dst, 0)}
	f := n.flows.get(key)
	if f == nil {
		sock, err := pingSocket(dst)
		if err != nil {
			return
		}
		if f = n.startFlow(key, sock); f == nil {
			return
		}
	}
	f.touch()
	_, _ = f.sock.Write(msg)
}

func pingSocket(dst netip.Addr) (*net.UDPConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = file.Close() }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
		return nil, err
	}
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close()
		return nil, unix.EPROTONOSUPPORT
	}
	return u, nil
}

// udpIn leads datagrams from a forward's socket to the guest. Each client of
// the host has a port of the gateway's.
func (n *Network) udpIn(sock *net.UDPConn, to netip.AddrPort) {
	buf := make([]byte, 65536)
	for {
		k, client, err := sock.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a client refused an answer
			continue
		}
		if !n.isUp() {
			continue // nobody is there yet: lost, as UDP is
		}
		if f := n.clientFlow(sock, client, to); f != nil {
			f.touch()
			n.datagram(f.key, buf[:k])
		}
	}
}

func (n *Network) clientFlow(sock *net.UDPConn, client, to netip.AddrPort) *flow {
	t := &n.flows
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.byClient[clientKey{sock, client}]; f != nil {
		return f
	}
	f := &flow{key: flowKey{proto: header.UDPProtocolNumber, guest: to}, sock: sock, client: client}
	for range 2 * maxFlows { // more than can be taken
		t.nextPort++
		f.key.remote = netip.AddrPortFrom(n.host, 49152+t.nextPort&0x3fff)
		if t.byKey[f.key] == nil {
			break
		}
	}
	if !t.add(f) {
		return nil
	}
	return f
}

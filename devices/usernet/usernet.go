// Package usernet gives a guest a network without any privilege on the host.
//
// The guest sees a small network of its own: itself, a gateway that stands for
// the host, and a name server. Its TCP connections, UDP flows and pings end in
// a TCP/IP stack in this process and go on as ordinary sockets of the host;
// chosen ports of the host lead to the guest.
//
// The guest reaches whatever this process could reach, and by the gateway's
// address what listens on the host's 127.0.0.1. IPv4 only.
package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmm/gvmm/devices/netdev"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Limits of one network, so that a guest cannot make the monitor grow.
const (
	maxConns    = 512       // TCP connections, both directions together
	maxFlows    = 256       // UDP and ping flows; the oldest makes room
	maxSyns     = 128       // connections being set up
	tcpBuffer   = 256 << 10 // bytes a connection and direction
	copyBuffer  = 32 << 10
	maxQueued   = 1 << 20 // bytes that wait for the guest
	packetCost  = 512     // what a packet costs beside its bytes
	dialTimeout = 30 * time.Second
	flowIdle    = 60 * time.Second
)

const nicID tcpip.NICID = 1

// Config describes a network.
type Config struct {
	// MAC is the guest's hardware address. Frames go there until the guest has
	// sent one with another source.
	MAC [6]byte
	// Prefix is the guest's network, at least 16 addresses; the zero value is
	// 10.0.2.0/24. The gateway is its address 2, the name server 3, the guest 15.
	Prefix netip.Prefix
	// Guest and Gateway, if given, are these two addresses, and Prefix is their /24.
	Guest, Gateway netip.Addr
	// MTU is the largest IP packet, 576 to 65535 bytes; 0 is 1500.
	MTU      int
	Forwards []netdev.Forward
	// Sockets are the host's sides of the forwards where they are open already
	// ([netdev.Forward.Listen]); New takes them over. Nil has it open them.
	Sockets []*os.File
	// Resolver answers the guest's name queries. The zero value is the first
	// name server in the host's resolv.conf at the time of the query, or, when
	// that cannot be read any more, at the start.
	Resolver netip.AddrPort
}

// Network is a running user network. It implements the back end of a network
// card (netdev.Backend).
type Network struct {
	prefix            netip.Prefix
	host, dns, guest  netip.Addr
	broadcast         netip.Addr // of the prefix
	mtu               int
	resolver          netip.AddrPort // fixed by the configuration
	firstResolver     netip.AddrPort // the host's when the network started
	gatewayMAC        [6]byte
	guestMAC          atomic.Uint64
	stack             *stack.Stack // from present on
	link              *link
	ctx               context.Context
	cancel            context.CancelFunc
	forwards          []io.Closer
	addrs             []net.Addr
	up, alive         chan struct{} // closed: the stack runs; the guest has used an address
	upOnce, aliveOnce sync.Once
	buffers           sync.Pool // *[copyBuffer]byte

	mu     sync.Mutex
	closed bool
	conns  int
	wg     sync.WaitGroup

	flows flowTable
}

// New starts a network and listens on the host's side of its forwards at once:
// connections that come before the guest serves the port wait for it.
func New(cfg Config) (*Network, error) {
	if cfg.Guest.IsValid() {
		cfg.Prefix = netip.PrefixFrom(cfg.Guest, 24)
	}
	if !cfg.Prefix.IsValid() {
		cfg.Prefix = netip.MustParsePrefix("10.0.2.0/24")
	}
	if !cfg.Prefix.Addr().Is4() || cfg.Prefix.Bits() > 27 {
		return nil, fmt.Errorf("user network %v: want an IPv4 network of /27 or larger", cfg.Prefix)
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	if cfg.MTU < 576 || cfg.MTU > 65535 {
		return nil, fmt.Errorf("user network: MTU %d: want 576 to 65535", cfg.MTU)
	}
	n := &Network{prefix: cfg.Prefix.Masked(), mtu: cfg.MTU, resolver: cfg.Resolver,
		up: make(chan struct{}), alive: make(chan struct{})}
	n.host, n.dns, n.guest = nth(n.prefix, 2), nth(n.prefix, 3), nth(n.prefix, 15)
	n.broadcast = lastOf(n.prefix)
	if cfg.Guest.IsValid() {
		n.host, n.guest = cfg.Gateway, cfg.Guest
		for i := byte(2); n.dns == n.host || n.dns == n.guest; i++ {
			n.dns = nth(n.prefix, i)
		}
		if !n.prefix.Contains(n.host) || n.host == n.guest || n.host == n.broadcast || n.guest == n.broadcast {
			return nil, fmt.Errorf("user network: guest %v, gateway %v: want two addresses of one /24", n.guest, n.host)
		}
	}
	a := n.host.As4()
	n.gatewayMAC = [6]byte{0x52, 0x55, a[0], a[1], a[2], a[3]}
	n.setGuestMAC(cfg.MAC)
	n.firstResolver, _ = hostResolver() // without one queries fail
	n.buffers.New = func() any { return new([copyBuffer]byte) }
	n.flows.init()
	n.ctx, n.cancel = context.WithCancel(context.Background())

	n.link = newLink(n)
	for i, f := range cfg.Forwards {
		var sock *os.File
		if i < len(cfg.Sockets) {
			sock = cfg.Sockets[i]
		}
		if err := n.listen(f, sock); err != nil {
			_ = n.Close()
			return nil, fmt.Errorf("user network: %w", err)
		}
	}
	return n, nil
}

// present notes that the guest's driver is there. The stack starts now: it
// would cost the guest's start half a millisecond otherwise.
func (n *Network) present() {
	n.upOnce.Do(func() {
		log.SetLevel(log.Warning) // it would tell stderr about odd packets
		n.stack = stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol},
		})
		if err := n.configure(); err != nil {
			n.link.close(err)
			return
		}
		close(n.up)
	})
}

// isUp reports whether present has succeeded.
func (n *Network) isUp() bool {
	select {
	case <-n.up:
		return true
	default:
		return false
	}
}

// nth returns the address that many places behind the prefix's first.
func nth(p netip.Prefix, i byte) netip.Addr {
	a := p.Addr().As4()
	a[3] += i
	return netip.AddrFrom4(a)
}

func lastOf(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|^uint32(0)>>p.Bits())
	return netip.AddrFrom4(a)
}

func (n *Network) configure() error {
	s := n.stack
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: tcpBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcpBuffer, Max: tcpBuffer}
	sack := tcpip.TCPSACKEnabled(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(10 * time.Millisecond) // there is no path on which segments linger
	for _, o := range []tcpip.SettableTransportProtocolOption{&rcv, &snd, &sack, &wait} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("user network: set up TCP: %v", err)
		}
	}
	forwarder := tcp.NewForwarder(s, tcpBuffer, maxSyns, n.tcpOut)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, n.udpOut)
	if err := s.CreateNIC(nicID, n.link); err != nil {
		return fmt.Errorf("user network: create interface: %v", err)
	}
	// Every address but the guest's own is reached through this stack.
	s.SetPromiscuousMode(nicID, true)
	s.SetSpoofing(nicID, true)
	for _, a := range []netip.Addr{n.host, n.dns} {
		pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(a).WithPrefix()}
		if err := s.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("user network: address %v: %v", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: ipv4Any(), NIC: nicID}})
	return nil
}

// Addrs returns the addresses the forwards listen on, in their order.
func (n *Network) Addrs() []net.Addr { return n.addrs }

// Close ends every connection and forward and waits until nothing of the
// network runs any more.
func (n *Network) Close() error {
	n.mu.Lock()
	already := n.closed
	n.closed = true
	n.mu.Unlock()
	if already {
		return nil
	}
	n.cancel()
	var errs []error
	for _, f := range n.forwards {
		errs = append(errs, f.Close())
	}
	n.flows.closeAll()
	n.link.close(os.ErrClosed)
	n.upOnce.Do(func() {}) // the stack stays off if it is
	if n.stack != nil {
		n.stack.Close()
	}
	n.wg.Wait()
	if n.stack != nil {
		n.stack.Destroy() // with what was set up meanwhile
	}
	return errors.Join(errs...)
}

// beginConn counts a TCP connection that Close waits for, within the limit; it
// reports false when there is no room or the network is closed. endConn follows.
func (n *Network) beginConn() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.conns >= maxConns {
		return false
	}
	n.conns++
	n.wg.Add(1)
	return true
}

func (n *Network) endConn() {
	n.mu.Lock()
	n.conns--
	n.mu.Unlock()
	n.wg.Done()
}

// target maps an address the guest wants to reach to one of the host's. The
// host's own loopback is behind the gateway's address and nowhere else.
func (n *Network) target(to netip.AddrPort) (netip.AddrPort, error) {
	a := to.Addr()
	switch {
	case a == n.host:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port()), nil
	case a == n.dns:
		if to.Port() != 53 {
			return netip.AddrPort{}, errors.New("the name server's address serves port 53 only")
		}
		return n.nameServer()
	case n.prefix.Contains(a), outside(a):
		return netip.AddrPort{}, fmt.Errorf("nothing at %v", a)
	}
	return to, nil
}

// outside reports whether a is no address that can be reached through the host.
func outside(a netip.Addr) bool {
	return a.IsLoopback() || a.IsMulticast() || a.As4()[0] == 0 || a == broadcastAddr()
}

func broadcastAddr() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

func address(a netip.Addr) tcpip.Address     { return tcpip.AddrFrom4(a.As4()) }
func fromAddress(a tcpip.Address) netip.Addr { return netip.AddrFrom4(a.As4()) }

func ipv4Any() tcpip.Subnet {
	return tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{}), PrefixLen: 0}.Subnet()
}

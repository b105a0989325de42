package usernet

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gvmm/gvmm/devices/netdev"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

var (
	_        netdev.Backend = (*Network)(nil)
	guestMAC                = [6]byte{0x52, 0x54, 0, 1, 2, 3}
)

// testGuest is a guest's IP stack, connected to the network by its frames.
type testGuest struct {
	*stack.Stack
	addr netip.Addr
	stop func()

	bigIn, bigOut atomic.Int32 // packets that are to be segmented
}

// newNetwork starts a network that is closed at the end of the test.
func newNetwork(t testing.TB, cfg Config) *Network {
	t.Helper()
	cfg.MAC = guestMAC
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

// startGuest attaches a guest with the address that DHCP would give it.
func startGuest(t testing.TB, n *Network) *testGuest { return startGuestWith(t, n, 0) }

func startGuestWith(t testing.TB, n *Network, o netdev.Offloads) *testGuest {
	t.Helper()
	if err := n.SetOffloads(o); err != nil {
		t.Fatal(err)
	}
	g := &testGuest{addr: n.guest}
	g.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	wire := channel.New(4096, uint32(n.mtu)+etherHeader, tcpip.LinkAddress(guestMAC[:]))
	if o != 0 {
		wire.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
		wire.SupportedGSOKind = stack.HostGSOSupported
	}
	if err := g.CreateNIC(1, ethernet.New(wire)); err != nil {
		t.Fatal(err)
	}
	pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(n.guest), PrefixLen: n.prefix.Bits()}}
	if err := g.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	g.SetRouteTable([]tcpip.Route{
		{Destination: pa.AddressWithPrefix.Subnet(), NIC: 1},
		{Destination: ipv4Any(), Gateway: address(n.host), NIC: 1},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		for {
			p := wire.ReadContext(ctx)
			if p == nil {
				return
			}
			pkt := make([]byte, netdev.HeaderSize, netdev.HeaderSize+p.Size())
			for _, s := range p.AsSlices() {
				pkt = append(pkt, s...)
			}
			if gso := p.GSOOptions; gso.Type != stack.GSONone {
				h := netdev.Header{Flags: netdev.FlagNeedsChecksum, CsumStart: etherHeader + gso.L3HdrLen, CsumOffset: gso.CsumOffset}
				if p.Data().Size() > int(gso.MSS) {
					h.GSOType, h.GSOSize = netdev.GSOTCPv4, gso.MSS
					g.bigOut.Add(1)
				}
				h.Put(pkt)
			}
			p.DecRef()
			if err := n.Send(pkt); err != nil {
				t.Errorf("Send: %v", err)
			}
		}
	}()
	go func() {
		defer wg.Done()
		buf := make([]byte, netdev.MaxPacket)
		for n.Wait() == nil {
			for {
				k, err := n.Receive(buf)
				if k == 0 || err != nil {
					break
				}
				h := netdev.ParseHeader(buf)
				if !h.Check(k-netdev.HeaderSize, o) {
					t.Errorf("header %+v", h)
				}
				if h.GSOType != 0 {
					g.bigIn.Add(1)
				}
				p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[netdev.HeaderSize:k])})
				wire.InjectInbound(0, p)
				p.DecRef()
			}
		}
	}()
	g.stop = sync.OnceFunc(func() {
		_ = n.Close()
		cancel()
		wg.Wait()
		wire.Close()
		g.Destroy()
	})
	t.Cleanup(g.stop)
	return g
}

func (n *Network) connCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conns
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: address(a.Addr()), Port: a.Port()}
}

func gonetDial(ctx context.Context, g *testGuest, to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.Stack, full(to), ipv4.ProtocolNumber)
}

func gonetListenUDP(g *testGuest, at tcpip.FullAddress) (*gonet.UDPConn, error) {
	return gonet.DialUDP(g.Stack, &at, nil, ipv4.ProtocolNumber)
}

func (g *testGuest) dial(t testing.TB, to netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := gonetDial(ctx, g, to)
	if err != nil {
		t.Fatalf("guest dials %v: %v", to, err)
	}
	return c
}

func (g *testGuest) dialUDP(t testing.TB, to netip.AddrPort) *gonet.UDPConn {
	t.Helper()
	at := full(to)
	c, err := gonet.DialUDP(g.Stack, nil, &at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatalf("guest dials %v: %v", to, err)
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (g *testGuest) listen(t testing.TB, port uint16) *gonet.TCPListener {
	t.Helper()
	l, err := gonet.ListenTCP(g.Stack, full(netip.AddrPortFrom(g.addr, port)), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hostTCP serves connections on the host's 127.0.0.1 and returns the address
// as the guest sees it.
func hostTCP(t testing.TB, n *Network, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				serve(c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = n.Close()
		_ = l.Close()
		wg.Wait()
	})
	return netip.AddrPortFrom(n.host, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// checkGoroutines fails the test when more goroutines of ours or of the stack
// run at its end than at its start.
func checkGoroutines(t *testing.T) {
	t.Helper()
	count := func() (int, string) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		k := 0
		var left []string
		for _, g := range strings.Split(string(buf), "\n\n") {
			if strings.Contains(g, "usernet.(") || strings.Contains(g, "gvisor.dev") {
				k++
				left = append(left, g)
			}
		}
		return k, strings.Join(left, "\n\n")
	}
	before, _ := count()
	t.Cleanup(func() {
		var after int
		var stacks string
		for range 200 { // they may be on their way out
			if after, stacks = count(); after <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%d goroutines before, %d after:\n%s", before, after, stacks)
	})
}

// udpPacket returns an IPv4 packet with one UDP datagram.
func udpPacket(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize+len(payload))
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: address(src.Addr()), DstAddr: address(dst.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(b[header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(u))})
	copy(u.Payload(), payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(src.Addr()), address(dst.Addr()), uint16(len(u)))
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(payload, sum)))
	return b
}

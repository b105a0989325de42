package netdev

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
)

// Forward leads a port of the host to the guest, through a user network.
type Forward struct {
	Proto     string     // "tcp" or "udp"
	HostAddr  netip.Addr // the zero value is 127.0.0.1
	HostPort  uint16     // 0 lets the host choose
	GuestAddr netip.Addr // the zero value is the address that DHCP gives out
	GuestPort uint16
}

func (f Forward) String() string {
	return fmt.Sprintf("%s %s to port %d", f.Proto, netip.AddrPortFrom(f.HostAddr, f.HostPort), f.GuestPort)
}

// Listen opens the host's side: a TCP socket that listens, or a UDP socket.
func (f Forward) Listen() (*os.File, error) {
	if !f.HostAddr.IsValid() {
		f.HostAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if f.GuestAddr.IsValid() && !f.GuestAddr.Is4() || f.GuestPort == 0 {
		return nil, fmt.Errorf("forward %v: want a port and an IPv4 address of the guest", f)
	}
	at := netip.AddrPortFrom(f.HostAddr, f.HostPort)
	var sock interface {
		File() (*os.File, error)
		Close() error
	}
	var err error
	switch f.Proto {
	case "tcp":
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // costs start-up time
		var l net.Listener
		if l, err = lc.Listen(context.Background(), "tcp", at.String()); err == nil {
			sock = l.(*net.TCPListener)
		}
	case "udp":
		sock, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	default:
		return nil, fmt.Errorf("forward %v: protocol %q: want tcp or udp", f, f.Proto)
	}
	if err != nil {
		return nil, fmt.Errorf("forward %v: %w; choose another host port or end the program that has it", f, err)
	}
	file, err := sock.File()
	_ = sock.Close() // of two descriptors
	return file, err
}

// RandomMAC returns a new locally administered unicast address.
func RandomMAC() [6]byte {
	r := rand.Uint32()
	return [6]byte{0x52, 0x54, 0x00, byte(r), byte(r >> 8), byte(r >> 16)}
}

package usernet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// DHCP (RFC 2131, options RFC 2132). There is one client and one address.
const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	dhcpFixed      = 240 // bytes in front of the options, magic included
	dhcpMagic      = 0x63825363
	dhcpLease      = 86400 // seconds

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpInform   = 8

	optPad, optMask, optRouter, optDNS, optMTU     = 0, 1, 3, 6, 26
	optBroadcast, optAddress, optLease, optMsgType = 28, 50, 51, 53
	optServer, optEnd                              = 54, 255
)

// dhcp answers one message of the guest's.
func (n *Network) dhcp(req []byte) {
	if len(req) < dhcpFixed || req[0] != 1 || req[1] != 1 || req[2] != 6 ||
		binary.BigEndian.Uint32(req[236:]) != dhcpMagic {
		return
	}
	ciaddr := netip.AddrFrom4([4]byte(req[12:16]))
	want, server := ciaddr, n.host
	kind := byte(0)
	for o := req[dhcpFixed:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			break
		}
		switch v := o[2 : 2+int(o[1])]; {
		case o[0] == optMsgType && len(v) == 1:
			kind = v[0]
		case o[0] == optAddress && len(v) == 4:
			want = netip.AddrFrom4([4]byte(v))
		case o[0] == optServer && len(v) == 4:
			server = netip.AddrFrom4([4]byte(v))
		}
		o = o[2+int(o[1]):]
	}
	if server != n.host {
		return // another server was chosen
	}
	yours, answer := n.guest, byte(0)
	switch kind {
	case dhcpDiscover:
		answer = dhcpOffer
	case dhcpRequest:
		if answer = dhcpAck; want != n.guest {
			yours, answer = netip.IPv4Unspecified(), dhcpNak
		}
	case dhcpInform:
		yours, answer = netip.IPv4Unspecified(), dhcpAck
	case 0: // plain BOOTP (RFC 951)
	default:
		return
	}

	m := make([]byte, dhcpFixed, 320)
	m[0], m[1], m[2] = 2, 1, 6
	copy(m[4:8], req[4:8])     // transaction
	copy(m[10:12], req[10:12]) // flags
	copy(m[28:44], req[28:44]) // hardware address
	binary.BigEndian.PutUint32(m[236:], dhcpMagic)
	put := func(o byte, v ...byte) { m = append(append(m, o, byte(len(v))), v...) }
	putAddr := func(o byte, a netip.Addr) { b := a.As4(); put(o, b[:]...) }
	if answer != 0 {
		put(optMsgType, answer)
		putAddr(optServer, n.host)
	}
	if answer != dhcpNak {
		copy(m[12:16], req[12:16])
		copy(m[16:20], yours.AsSlice())
		if kind == dhcpDiscover || kind == dhcpRequest {
			put(optLease, 0, dhcpLease>>16, dhcpLease>>8&0xff, dhcpLease&0xff)
		}
		mask := ^uint32(0) << (32 - n.prefix.Bits())
		put(optMask, binary.BigEndian.AppendUint32(nil, mask)...)
		putAddr(optBroadcast, n.broadcast)
		putAddr(optRouter, n.host)
		putAddr(optDNS, n.dns)
		put(optMTU, byte(n.mtu>>8), byte(n.mtu))
	}
	m = append(m, optEnd)
	m = append(m, make([]byte, max(0, 300-len(m)))...) // the size of BOOTP

	// To the address the client has, or the one it gets, unless it can only
	// take broadcasts (RFC 2131 4.1).
	to := yours
	if !ciaddr.IsUnspecified() && answer != dhcpNak {
		to = ciaddr
	} else if answer == dhcpNak || req[10]&0x80 != 0 || yours.IsUnspecified() {
		to = broadcastAddr()
	}
	n.datagram(flowKey{header.UDPProtocolNumber, netip.AddrPortFrom(to, dhcpClientPort), netip.AddrPortFrom(n.host, dhcpServerPort)}, m)
}

// Package netdev is the host's side of a network card: what takes the guest's
// Ethernet frames and gives it others. A tap interface is here; the user
// network is in its own package.
package netdev

import (
	"encoding/binary"
)

// HeaderSize is the length of the header in front of every frame: struct
// virtio_net_hdr with num_buffers, little-endian (virtio 1.3 5.1.6).
const HeaderSize = 12

// MaxPacket is the longest packet: the header, an Ethernet header with a VLAN
// tag and the largest IP packet (one that is segmented further down).
const MaxPacket = HeaderSize + 14 + 4 + 65535

// Offloads are the things one side may leave for the other to do.
type Offloads uint8

// The offloads, each for both directions.
const (
	Checksum Offloads = 1 << iota // partial checksums (header flag NEEDS_CSUM)
	TSO4                          // TCP over IPv4 in packets larger than the MTU
	TSO6                          // TCP over IPv6 in packets larger than the MTU
)

// Backend moves packets between one network card and the host. A packet is one
// byte slice: a header of [HeaderSize] bytes and a whole Ethernet frame without
// its checksum.
//
// One goroutine sends and one other receives; Close may come from any.
type Backend interface {
	// Offloads are what the back end can do, in both directions.
	Offloads() Offloads
	// SetOffloads says which of them the guest takes in packets for it: none
	// until the first call.
	SetOffloads(o Offloads) error
	// Send gives a packet to the network, at most [MaxPacket] bytes. It does
	// not keep pkt, but may change its header. The header is sane
	// ([Header.Check]); the frame is as the guest made it. An error means that
	// the packet was dropped; nothing more is to be done about it.
	Send(pkt []byte) error
	// Receive fills buf with the next packet and returns its length, or 0 when
	// there is none at the moment. A packet that does not fit is dropped. The
	// header's num_buffers is left 0.
	Receive(buf []byte) (int, error)
	// Wait returns when Receive, which has returned 0, is worth a call again; it
	// may run while Receive does. The error is that of Receive:
	// the back end has been closed or is broken for good. Packets wait in the
	// back end for as long as nobody calls Receive: there the flow is stopped.
	Wait() error
	// Close ends the network; Wait and Receive return [os.ErrClosed] from then on.
	Close() error
}

// Bits of [Header] (virtio 1.3 5.1.6).
const (
	FlagNeedsChecksum = 1
	FlagDataValid     = 2

	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOECN   = 0x80
)

// Header is the header of a packet.
type Header struct {
	Flags, GSOType        uint8
	HeaderLen, GSOSize    uint16
	CsumStart, CsumOffset uint16
}

// ParseHeader reads the header at the start of b, which has at least 10 bytes.
func ParseHeader(b []byte) Header {
	return Header{
		Flags: b[0], GSOType: b[1],
		HeaderLen: binary.LittleEndian.Uint16(b[2:]), GSOSize: binary.LittleEndian.Uint16(b[4:]),
		CsumStart: binary.LittleEndian.Uint16(b[6:]), CsumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
}

// Put writes the header to the first [HeaderSize] bytes of b, num_buffers as 0.
func (h Header) Put(b []byte) {
	b[0], b[1] = h.Flags, h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HeaderLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
	b[10], b[11] = 0, 0
}

// Check reports whether a guest's header fits a frame of n bytes and uses only
// the offloads in o (virtio 1.3 5.1.6.2).
func (h Header) Check(n int, o Offloads) bool {
	if h.Flags&FlagNeedsChecksum != 0 &&
		(o&Checksum == 0 || int(h.CsumStart)+int(h.CsumOffset)+2 > n || h.CsumStart < 14) {
		return false
	}
	switch h.GSOType &^ GSOECN {
	case GSONone:
		return h.GSOType == GSONone
	case GSOTCPv4:
		if o&TSO4 == 0 {
			return false
		}
	case GSOTCPv6:
		if o&TSO6 == 0 {
			return false
		}
	default:
		return false
	}
	return h.GSOSize > 0 && h.Flags&FlagNeedsChecksum != 0 && h.GSOType&GSOECN == 0
}

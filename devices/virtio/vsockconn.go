package virtio

import (
	"net"
	"sync"
)

// vsockBuffer is what a connection holds in each direction, in bytes.
const vsockBuffer = 256 << 10

// vsockConn is one connection of a [Vsock]. Its fields are guarded by the
// device's mutex.
type vsockConn struct {
	key     vsockKey
	dev     *Vsock
	sock    net.Conn // nil until the host has taken the connection
	open    bool     // both sides have
	gone    bool     // forgotten by the device
	changed sync.Cond

	input  []byte // from the host, for the guest
	ended  bool   // no more comes from the host
	output []byte // from the guest, for the host
	shut   uint32 // what the guest will not do any more

	// Credit (virtio 1.3 5.10.6.3), in bytes and free-running.
	peerAlloc, peerForwarded, sent uint32
	forwarded, told                uint32
	greeting                       int // bytes at the head of output that are ours
}

// sendable returns how many bytes may go to the guest now.
func (c *vsockConn) sendable() int {
	credit := int32(c.peerAlloc - (c.sent - c.peerForwarded))
	if !c.open || credit <= 0 {
		return 0
	}
	return min(len(c.input), int(credit), vsockMaxPacket)
}

// pump carries the stream both ways until the connection ends.
func (c *vsockConn) pump(sock net.Conn) {
	go c.toGuest(sock)
	c.toHost(sock)
}

// toGuest reads what the host sends.
func (c *vsockConn) toGuest(sock net.Conn) {
	v := c.dev
	buf := make([]byte, 32<<10)
	for {
		n, err := sock.Read(buf)
		v.mu.Lock()
		for !c.gone && len(c.input)+n > vsockBuffer {
			c.changed.Wait()
		}
		if c.gone {
			v.mu.Unlock()
			return
		}
		if c.shut&shutdownReceive == 0 {
			c.input = append(c.input, buf[:n]...)
		}
		if err != nil {
			if c.ended = true; len(c.input) == 0 && c.open {
				v.answer(c.key, opShutdown, shutdownSend)
			}
		}
		if c.sendable() > 0 && v.session != nil {
			v.session.Wake(vsockRx)
		}
		c.changed.Broadcast()
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// toHost writes what the guest sends, and sees to the end.
func (c *vsockConn) toHost(sock net.Conn) {
	v := c.dev
	v.mu.Lock()
	defer v.mu.Unlock()
	var failed error
	halfClosed := false
	for !c.gone {
		switch {
		case failed != nil || c.shut == shutdownSend|shutdownReceive && len(c.output) == 0 ||
			c.ended && len(c.input) == 0 && c.shut&shutdownSend != 0 && len(c.output) == 0:
			v.refuse(c.key)
			return
		case len(c.output) > 0:
			data := c.output
			c.output = nil
			v.mu.Unlock()
			_, failed = sock.Write(data)
			v.mu.Lock()
			c.forwarded += uint32(len(data) - c.greeting)
			c.greeting = 0
			if c.forwarded-c.told >= vsockBuffer/4 && !c.gone {
				v.answer(c.key, opCreditUpdate, 0)
			}
			continue
		case c.shut&shutdownSend != 0 && !halfClosed:
			halfClosed = true
			if u, ok := sock.(*net.UnixConn); ok {
				_ = u.CloseWrite()
			}
			continue
		}
		c.changed.Wait()
	}
}

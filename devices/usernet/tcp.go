package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/gvmm/gvmm/devices/netdev"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// How long a connection to a forwarded port waits for the guest: until it has
// served the port once, and after that.
const (
	patienceFirst = 30 * time.Second
	patienceLater = 2 * time.Second

	announceTime = 250 * time.Millisecond // for the guest to say that it is there
	lingerTime   = 30 * time.Second       // for the guest to take the last data
	tryTime      = 3 * time.Second        // of one attempt, with two SYN segments
)

// guestConn is a connection of the stack with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep *tcp.Endpoint
}

func newGuestConn(wq *waiter.Queue, ep tcpip.Endpoint) guestConn {
	return guestConn{gonet.NewTCPConn(wq, ep), ep.(*tcp.Endpoint)}
}

func resetHost(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// tcpOut serves a connection that the guest opens. It is accepted when the
// host's side of it is.
func (n *Network) tcpOut(r *tcp.ForwarderRequest) {
	if !n.beginConn() {
		r.Complete(true)
		return
	}
	defer n.endConn()
	id := r.ID()
	to, err := n.target(netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort))
	if err != nil {
		r.Complete(true)
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(n.ctx, "tcp", to.String())
	if err != nil {
		r.Complete(true)
		return
	}
	host := c.(*net.TCPConn)
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		resetHost(host)
		return
	}
	n.splice(newGuestConn(&wq, ep), host, host)
}

// splice copies both ways until both sides have ended. The end of one direction
// is passed on as such; a failure resets both. in is what is read from host.
func (n *Network) splice(guest guestConn, host *net.TCPConn, in io.Reader) {
	var failed atomic.Bool
	abort := func() {
		failed.Store(true)
		guest.ep.Abort()
		resetHost(host)
	}
	stop := context.AfterFunc(n.ctx, abort)
	done := make(chan struct{})
	go func() { // Close waits for the caller, and the caller for this
		defer close(done)
		if err := n.copy(guest, in); err != nil || guest.CloseWrite() != nil {
			abort()
		}
	}()
	if err := n.copy(host, guest); err != nil || host.CloseWrite() != nil {
		abort()
	}
	<-done
	if !failed.Load() {
		_ = host.Close()
	}
	_ = guest.Close()
	// What the guest has not taken yet holds memory: the connection counts
	// until it has, or has had its time.
	late := time.AfterFunc(lingerTime, guest.ep.Abort)
	guest.ep.Wait()
	late.Stop()
	stop()
}

// copy copies until src ends, with a buffer of the network's.
func (n *Network) copy(dst io.Writer, src io.Reader) error {
	b := n.buffers.Get().(*[copyBuffer]byte)
	defer n.buffers.Put(b)
	// Not by ReadFrom and WriteTo, which have buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, b[:])
	return err
}

// listen starts a forward on its socket, which is opened unless given.
func (n *Network) listen(f netdev.Forward, sock *os.File) (err error) {
	if sock == nil {
		if sock, err = f.Listen(); err != nil {
			return err
		}
	}
	defer func() { _ = sock.Close() }() // what is made of it has a descriptor of its own
	if !f.GuestAddr.IsValid() {
		f.GuestAddr = n.guest
	}
	to := netip.AddrPortFrom(f.GuestAddr, f.GuestPort)
	var l net.Listener
	var c net.PacketConn
	if f.Proto == "tcp" {
		if l, err = net.FileListener(sock); err == nil {
			n.forwards, n.addrs = append(n.forwards, l), append(n.addrs, l.Addr())
			n.wg.Go(func() { n.accept(l.(*net.TCPListener), to) })
		}
	} else if c, err = net.FilePacketConn(sock); err == nil {
		n.forwards, n.addrs = append(n.forwards, c), append(n.addrs, c.LocalAddr())
		n.wg.Go(func() { n.udpIn(c.(*net.UDPConn), to) })
	}
	if err != nil {
		return fmt.Errorf("forward %v: %w", f, err)
	}
	return nil
}

func (n *Network) accept(l *net.TCPListener, to netip.AddrPort) {
	var served atomic.Bool // the guest has accepted one
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors left, or the like
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-n.ctx.Done():
				return
			}
		}
		if !n.beginConn() {
			resetHost(c)
			continue
		}
		go func() {
			defer n.endConn()
			n.tcpIn(c, to, &served)
		}()
	}
}

// tcpIn leads a connection from the host to the guest, as soon as it takes it.
func (n *Network) tcpIn(c *net.TCPConn, to netip.AddrPort, served *atomic.Bool) {
	patience := patienceFirst
	if served.Load() {
		patience = patienceLater
	}
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	// Reading shows whether the client is still there.
	in := &earlyReader{src: c, ready: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.read(cancel)
	}()
	g, err := n.dialGuest(ctx, to)
	if err != nil {
		resetHost(c)
	} else {
		served.Store(true)
		n.splice(g, c, in)
	}
	<-done
}

// earlyReader has the first bytes of src read before anybody asks for them.
type earlyReader struct {
	src   io.Reader
	ready chan struct{}
	buf   [2048]byte
	first []byte
	err   error
}

func (r *earlyReader) read(gone func()) {
	k, err := r.src.Read(r.buf[:])
	r.first, r.err = r.buf[:k], err
	if err != nil && !errors.Is(err, io.EOF) {
		gone()
	}
	close(r.ready)
}

func (r *earlyReader) Read(p []byte) (int, error) {
	<-r.ready
	if len(r.first) > 0 {
		k := copy(p, r.first)
		r.first = r.first[k:]
		return k, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	return r.src.Read(p)
}

// dialGuest connects to the guest, again and again until it accepts or ctx
// ends: it may be booting still.
func (n *Network) dialGuest(ctx context.Context, to netip.AddrPort) (guestConn, error) {
	select {
	case <-n.up:
	case <-ctx.Done():
		return guestConn{}, ctx.Err()
	}
	// Most guests announce their address when they have one. What comes before
	// that is lost, or waits in their queue and is a burden later.
	select {
	case <-n.alive:
	case <-time.After(announceTime):
	case <-ctx.Done():
		return guestConn{}, ctx.Err()
	}
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		g, err := n.tryGuest(ctx, to)
		if err == nil {
			return g, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return guestConn{}, err
		}
	}
}

// tryGuest makes one attempt.
func (n *Network) tryGuest(ctx context.Context, to netip.AddrPort) (guestConn, error) {
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return guestConn{}, errors.New(terr.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: address(n.host)}); terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: address(to.Addr()), Port: to.Port()})
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		timer := time.NewTimer(tryTime)
		defer timer.Stop()
		select {
		case <-ready:
			terr = ep.LastError()
		case <-timer.C:
			terr = &tcpip.ErrTimeout{}
		case <-ctx.Done():
			terr = &tcpip.ErrAborted{}
		}
	}
	if terr != nil {
		ep.Close()
		return guestConn{}, errors.New(terr.String())
	}
	return newGuestConn(&wq, ep), nil
}

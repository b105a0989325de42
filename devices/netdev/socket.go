package netdev

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	etherHeader = 14
	socketRoom  = 4 << 20 // bytes of buffer a socket asks for; the host may give fewer
	patience    = 200 * time.Millisecond
)

// Link is a [Backend] on a Unix socket of the type SOCK_SEQPACKET, both sides of
// which speak as a Backend does: a packet of the socket is a packet of the
// network, header first. One of a single byte says which [Offloads] that
// side takes from then on.
type Link struct {
	descriptor
	Peer func(o Offloads) error // told of the other side's offloads, unless nil
}

// NewLinks makes both ends of a link. The second is for another process; it is
// closed on exec.
func NewLinks(name string) (*Link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: socket pair: %w", name, err)
	}
	other := os.NewFile(uintptr(fds[1]), name)
	l, err := NewLink(fds[0], name)
	if err != nil {
		_ = other.Close()
		return nil, nil, err
	}
	l.patience = patience
	return l, other, nil
}

// NewLink takes over a socket that is one end of a link. Sending waits for the
// other side for as long as it takes.
func NewLink(fd int, name string) (*Link, error) {
	l := &Link{}
	err := unix.SetNonblock(fd, true)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketRoom)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: socket: %w", name, err)
	}
	return l, l.init(fd, name)
}

// Offloads implements [Backend].
func (l *Link) Offloads() Offloads { return Checksum | TSO4 }

// SetOffloads implements [Backend].
func (l *Link) SetOffloads(o Offloads) error { return l.send([]byte{byte(o)}) }

// Send implements [Backend].
func (l *Link) Send(pkt []byte) error { return l.send(pkt) }

// Receive implements [Backend].
func (l *Link) Receive(buf []byte) (int, error) {
	for {
		n, err := l.receive(buf)
		if n == 1 && l.Peer != nil {
			err = l.Peer(Offloads(buf[0]))
		}
		if err != nil || n == 0 || n >= HeaderSize+etherHeader {
			return n, err
		}
	}
}

// Passt is a [Backend] on the socket of passt, or of any program that takes
// QEMU's "-netdev stream": each frame has its length in front, 4 bytes,
// big-endian. There are no offloads.
type Passt struct {
	descriptor
	buf        []byte
	start, end int // of what is read and not received yet
}

// OpenPasst connects to the Unix socket at path.
func OpenPasst(path string) (*Passt, error) {
	name := "passt " + path
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: connect: %w; start it first: passt --socket %s", name, err, path)
	}
	p := &Passt{buf: make([]byte, 2*MaxPacket)}
	p.patience = patience
	return p, p.init(fd, name)
}

// Offloads implements [Backend].
func (p *Passt) Offloads() Offloads { return 0 }

// SetOffloads implements [Backend].
func (p *Passt) SetOffloads(Offloads) error { return nil }

// Send implements [Backend]. The length takes the place of the header's end.
func (p *Passt) Send(pkt []byte) error {
	b := pkt[HeaderSize-4:]
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return p.send(b)
}

// Receive implements [Backend].
func (p *Passt) Receive(buf []byte) (int, error) {
	for {
		if have := p.buf[p.start:p.end]; len(have) >= 4 {
			n := int(binary.BigEndian.Uint32(have))
			if n > MaxPacket-HeaderSize {
				_ = p.Close()
				return 0, p.closed(fmt.Errorf("a frame of %d bytes: it speaks another protocol", n))
			}
			if len(have) >= 4+n {
				p.start += 4 + n
				if n < etherHeader || HeaderSize+n > len(buf) {
					continue
				}
				clear(buf[:HeaderSize])
				return HeaderSize + copy(buf[HeaderSize:], have[4:4+n]), nil
			}
		}
		p.end = copy(p.buf, p.buf[p.start:p.end])
		p.start = 0
		n, err := p.receive(p.buf[p.end:])
		if n == 0 || err != nil {
			return 0, err
		}
		p.end += n
	}
}

package virtio

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// The socket device (virtio 1.3 5.10).
const (
	vsockRx, vsockTx = 0, 1

	vsockHostCID    = 2
	vsockHeader     = 44
	vsockStream     = 1
	vsockQueueSize  = 128
	vsockMaxConns   = 1024
	vsockMaxControl = 4096 // answers that wait for the guest to make room
	vsockMaxPacket  = 64 << 10

	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	shutdownReceive = 1
	shutdownSend    = 2

	// firstHostPort is where the ports of connections that come from the host begin.
	firstHostPort = 1 << 30

	vsockDialTime    = 10 * time.Second
	vsockCommandTime = 5 * time.Second // for "CONNECT PORT" to arrive
)

// vsockPacket is a packet's header (5.10.6).
type vsockPacket struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32
	kind, op         uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func parseVsock(b *[vsockHeader]byte) vsockPacket {
	le := binary.LittleEndian
	return vsockPacket{le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:]),
		le.Uint16(b[28:]), le.Uint16(b[30:]), le.Uint32(b[32:]), le.Uint32(b[36:]), le.Uint32(b[40:])}
}

func (p *vsockPacket) bytes() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 0, vsockHeader), p.srcCID)
	b = le.AppendUint64(b, p.dstCID)
	for _, v := range []uint32{p.srcPort, p.dstPort, p.length, uint32(p.kind) | uint32(p.op)<<16, p.flags, p.bufAlloc, p.fwdCnt} {
		b = le.AppendUint32(b, v)
	}
	return b
}

// vsockKey names a connection.
type vsockKey struct{ guest, host uint32 }

// Vsock is a virtio socket device whose other side is Unix sockets on the host,
// by Firecracker's convention: a program on the host connects to PATH, writes
// "CONNECT PORT\n" and reads "OK HOSTPORT\n" before its stream begins; a guest
// that connects to port N of the host reaches the socket PATH_N.
type Vsock struct {
	base   // config is the guest's cid
	path   string
	listen net.Listener
	tx, rx Chain

	// Guarded by mu, like the session.
	conns   map[vsockKey]*vsockConn
	order   []*vsockConn  // in which they may send
	control []vsockPacket // to the guest
	next    uint32        // host port
	closed  bool
}

// NewVsock makes a socket device for the guest's address cid, 3 or above, and
// listens at path. A socket there that nobody listens on is replaced.
func NewVsock(cid uint32, path string) (*Vsock, error) {
	if cid <= vsockHostCID || cid == 1<<32-1 {
		return nil, fmt.Errorf("cid %d: give 3 to 4294967294", cid)
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: another process listens there", path), c.Close())
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	v := &Vsock{base: base{name: "virtio-vsock", id: 19, queues: []uint16{vsockQueueSize, vsockQueueSize, vsockQueueSize},
		config: binary.LittleEndian.AppendUint64(nil, uint64(cid))}, path: path, listen: l, conns: map[vsockKey]*vsockConn{}, next: firstHostPort}
	go v.accept()
	return v, nil
}

// Close ends all connections and stops listening. The device's transport is
// closed before.
func (v *Vsock) Close() error {
	v.mu.Lock()
	v.closed = true
	v.dropAll()
	v.mu.Unlock()
	err := v.listen.Close()
	return err
}

// Reset implements [Device].
func (v *Vsock) Reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.session, v.control = nil, nil
	v.dropAll()
}

func (v *Vsock) dropAll() {
	for _, c := range v.order {
		v.drop(c)
	}
}

// drop forgets a connection and closes its socket. v.mu is held.
func (v *Vsock) drop(c *vsockConn) {
	delete(v.conns, c.key)
	for i, o := range v.order {
		if o == c {
			v.order = append(v.order[:i:i], v.order[i+1:]...)
			break
		}
	}
	c.gone = true
	c.changed.Broadcast()
	if c.sock != nil {
		_ = c.sock.Close()
	}
}

// answer queues a packet without data. v.mu is held.
func (v *Vsock) answer(k vsockKey, op uint16, flags uint32) {
	if v.session == nil || len(v.control) == vsockMaxControl {
		return // a guest that does not take its answers loses them
	}
	p := vsockPacket{op: op, flags: flags}
	v.address(&p, k)
	v.control = append(v.control, p)
	v.session.Wake(vsockRx)
}

// address fills in from where to where a packet goes, and the credit (5.10.6.3).
func (v *Vsock) address(p *vsockPacket, k vsockKey) {
	p.srcCID, p.dstCID, p.kind = vsockHostCID, binary.LittleEndian.Uint64(v.config), vsockStream
	p.srcPort, p.dstPort = k.host, k.guest
	if c := v.conns[k]; c != nil {
		p.bufAlloc, p.fwdCnt = vsockBuffer, c.forwarded
		c.told = c.forwarded
	}
}

// Serve implements [Device].
func (v *Vsock) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	switch queue {
	case vsockTx:
		for q.Pop(&v.tx) {
			v.receive(&v.tx)
			q.Push(&v.tx, 0)
		}
	case vsockRx:
		v.mu.Lock()
		defer v.mu.Unlock()
		for v.pending() && q.Pop(&v.rx) {
			q.Push(&v.rx, v.send(v.rx.Writable))
		}
	}
}

// pending reports whether there is something for the guest.
func (v *Vsock) pending() bool {
	if len(v.control) > 0 {
		return true
	}
	for _, c := range v.order {
		if c.sendable() > 0 {
			return true
		}
	}
	return false
}

// send puts one packet into a buffer and returns its length.
func (v *Vsock) send(b Buffers) uint32 {
	room := b.Len()
	if room < vsockHeader {
		return 0
	}
	if len(v.control) > 0 {
		p := v.control[0]
		v.control = v.control[1:]
		return uint32(b.CopyFrom(p.bytes(), 0))
	}
	for i, c := range v.order {
		n := min(c.sendable(), room-vsockHeader)
		if n <= 0 {
			continue
		}
		p := vsockPacket{op: opData, length: uint32(n)}
		v.address(&p, c.key)
		b.CopyFrom(p.bytes(), 0)
		b.CopyFrom(c.input[:n], vsockHeader)
		c.input = append(c.input[:0], c.input[n:]...)
		c.sent += uint32(n)
		v.order = append(append(v.order[:i:i], v.order[i+1:]...), c) // the others first
		if c.ended && len(c.input) == 0 {
			v.answer(c.key, opShutdown, shutdownSend)
		}
		c.changed.Broadcast()
		return uint32(vsockHeader + n)
	}
	return 0
}

// receive takes a packet of the guest's.
func (v *Vsock) receive(ch *Chain) {
	var head [vsockHeader]byte
	if ch.Readable.CopyTo(head[:], 0) < vsockHeader {
		return
	}
	p := parseVsock(&head)
	k := vsockKey{p.srcPort, p.dstPort}
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.conns[k]
	switch {
	case p.srcCID != binary.LittleEndian.Uint64(v.config) || p.op == opReset && c == nil:
		return
	case p.dstCID != vsockHostCID || p.kind != vsockStream || c == nil && p.op != opRequest || c != nil && p.op == opRequest:
		v.refuse(k)
		return
	}
	if c != nil {
		c.peerAlloc, c.peerForwarded = p.bufAlloc, p.fwdCnt
		defer func() {
			if c.sendable() > 0 && v.session != nil {
				v.session.Wake(vsockRx)
			}
		}()
	}
	switch p.op {
	case opRequest:
		if v.closed || len(v.conns) >= vsockMaxConns {
			v.refuse(k)
			return
		}
		c = v.add(k, nil)
		c.peerAlloc, c.peerForwarded = p.bufAlloc, p.fwdCnt
		go v.dial(c)
	case opResponse:
		if !c.open && c.sock != nil {
			c.open = true
			c.output = append(c.output, fmt.Sprintf("OK %d\n", k.host)...)
			c.greeting = len(c.output)
			c.changed.Broadcast()
		}
	case opReset:
		v.drop(c)
	case opShutdown:
		c.shut |= p.flags & (shutdownSend | shutdownReceive)
		if c.shut&shutdownReceive != 0 {
			c.input = nil
		}
		c.changed.Broadcast()
	case opCreditRequest:
		v.answer(k, opCreditUpdate, 0)
	case opData:
		n := int(p.length)
		if !c.open || c.shut&shutdownSend != 0 || n > vsockMaxPacket || n > ch.Readable.Len()-vsockHeader || n > vsockBuffer-len(c.output) {
			v.refuse(k) // more than it had credit for, or out of order
			return
		}
		at := len(c.output)
		c.output = append(c.output, make([]byte, n)...)
		ch.Readable.CopyTo(c.output[at:], vsockHeader)
		c.changed.Broadcast()
	case opCreditUpdate:
	default:
		v.refuse(k)
	}
}

// refuse resets a connection, whether there is one or not.
func (v *Vsock) refuse(k vsockKey) {
	if c := v.conns[k]; c != nil {
		v.drop(c)
	}
	v.answer(k, opReset, 0)
}

// add makes a connection. v.mu is held.
func (v *Vsock) add(k vsockKey, sock net.Conn) *vsockConn {
	c := &vsockConn{key: k, sock: sock, dev: v}
	c.changed.L = &v.mu
	v.conns[k] = c
	v.order = append(v.order, c)
	return c
}

// dial connects the guest to PATH_PORT.
func (v *Vsock) dial(c *vsockConn) {
	sock, err := net.DialTimeout("unix", fmt.Sprintf("%s_%d", v.path, c.key.host), vsockDialTime)
	v.mu.Lock()
	if err != nil || c.gone {
		if !c.gone {
			v.refuse(c.key)
		} else if err == nil {
			_ = sock.Close()
		}
		v.mu.Unlock()
		return
	}
	c.sock, c.open = sock, true
	v.answer(c.key, opResponse, 0)
	v.mu.Unlock()
	c.pump(sock)
}

// accept takes connections of programs on the host.
func (v *Vsock) accept() {
	for {
		sock, err := v.listen.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: they come back
			continue
		}
		go v.connect(sock)
	}
}

// connect serves a program on the host: it says which port of the guest it wants.
func (v *Vsock) connect(sock net.Conn) {
	port, rest, err := readConnect(sock)
	v.mu.Lock()
	if err != nil || v.session == nil || v.closed || len(v.conns) >= vsockMaxConns {
		v.mu.Unlock()
		_ = sock.Close()
		return
	}
	for {
		v.next = max(v.next+1, firstHostPort)
		if _, used := v.conns[vsockKey{port, v.next}]; !used {
			break
		}
	}
	c := v.add(vsockKey{port, v.next}, sock)
	c.input = rest
	v.answer(c.key, opRequest, 0)
	v.mu.Unlock()
	c.pump(sock)
}

// readConnect reads "CONNECT PORT\n" and what came behind it.
func readConnect(sock net.Conn) (port uint32, rest []byte, err error) {
	if err := sock.SetReadDeadline(time.Now().Add(vsockCommandTime)); err != nil {
		return 0, nil, err
	}
	r := bufio.NewReaderSize(sock, 64)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "CONNECT ")
	n, err := strconv.ParseUint(text, 10, 32)
	if !ok || err != nil {
		return 0, nil, fmt.Errorf("%q: want CONNECT PORT", line)
	}
	rest = make([]byte, r.Buffered())
	_, err = io.ReadFull(r, rest)
	return uint32(n), rest, errors.Join(err, sock.SetReadDeadline(time.Time{}))
}

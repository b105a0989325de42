package virtio

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const guestCID = 5

// vsockGuest is a guest's side of a socket device.
type vsockGuest struct {
	t      *testing.T
	m      *fakeMachine
	d      *driver
	rx, tx *guestRing
	dev    *Vsock
	path   string
}

const (
	vsockBufSize = 4096
	vsockRxAt    = dataAt
	vsockTxAt    = dataAt + 0x10000
)

func newVsockGuest(t *testing.T) *vsockGuest {
	t.Helper()
	g := &vsockGuest{t: t, m: newFakeMachine(t), path: filepath.Join(t.TempDir(), "v.sock")}
	var err error
	if g.dev, err = NewVsock(guestCID, g.path); err != nil {
		t.Fatal(err)
	}
	g.d = newMMIODriver(t, g.m, g.dev, nil)
	t.Cleanup(func() { _ = g.dev.Close() })
	g.rx, g.tx = newGuestRing(t, g.m.mem, ringAt, 8), newGuestRing(t, g.m.mem, 2*ringAt, 64)
	g.d.probe(^uint64(0)&^FeatureAccessPlatform, g.rx, g.tx)
	for i := range uint64(8) {
		g.rx.add(guestBuffer{vsockRxAt + i*vsockBufSize, vsockBufSize, true})
	}
	g.d.kick(vsockRx)
	if cid := g.d.config(0, 8); cid != guestCID {
		t.Errorf("cid %d", cid)
	}
	return g
}

// send passes a packet to the device.
func (g *vsockGuest) send(op uint16, guestPort, hostPort uint32, flags uint32, data []byte) {
	g.t.Helper()
	p := vsockPacket{srcCID: guestCID, dstCID: vsockHostCID, srcPort: guestPort, dstPort: hostPort, length: uint32(len(data)),
		kind: vsockStream, op: op, flags: flags, bufAlloc: 64 << 10, fwdCnt: 0}
	g.sendRaw(append(p.bytes(), data...))
}

func (g *vsockGuest) sendRaw(b []byte) {
	g.t.Helper()
	g.tx.put(vsockTxAt, b)
	g.tx.add(guestBuffer{vsockTxAt, uint32(len(b)), false})
	g.d.kick(vsockTx)
	g.m.await(g.t, "packet taken", func() bool { g.d.ack(); _, _, ok := g.tx.take(); return ok })
}

// receive waits for the device's next packet.
func (g *vsockGuest) receive() (vsockPacket, []byte) {
	g.t.Helper()
	var p vsockPacket
	var data []byte
	g.m.await(g.t, "packet", func() bool {
		g.d.ack()
		id, n, ok := g.rx.take()
		if ok {
			at := vsockRxAt + uint64(id)*vsockBufSize
			b := g.rx.get(at, int(n))
			p = parseVsock((*[vsockHeader]byte)(b))
			data = b[vsockHeader:]
			g.rx.add(guestBuffer{at, vsockBufSize, true})
			g.d.kick(vsockRx)
		}
		return ok
	})
	if p.srcCID != vsockHostCID || p.dstCID != guestCID || p.kind != vsockStream || int(p.length) != len(data) {
		g.t.Errorf("packet %+v with %d bytes", p, len(data))
	}
	return p, data
}

func (g *vsockGuest) expect(op uint16) (vsockPacket, []byte) {
	g.t.Helper()
	for {
		p, data := g.receive()
		if p.op == opCreditUpdate && op != opCreditUpdate {
			continue
		}
		if p.op != op {
			g.t.Fatalf("packet %+v, want op %d", p, op)
		}
		return p, data
	}
}

func TestVsockFromHost(t *testing.T) {
	g := newVsockGuest(t)
	sock, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sock, "CONNECT 80\nearly"); err != nil {
		t.Fatal(err)
	}
	p, _ := g.expect(opRequest)
	if p.dstPort != 80 || p.srcPort < firstHostPort || p.bufAlloc == 0 {
		t.Errorf("request %+v", p)
	}
	g.send(opResponse, 80, p.srcPort, 0, nil)
	r := bufio.NewReader(sock)
	if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("OK %d\n", p.srcPort) {
		t.Error(line, err)
	}
	if _, data := g.expect(opData); string(data) != "early" {
		t.Errorf("data %q", data)
	}
	g.send(opData, 80, p.srcPort, 0, []byte("answer\n"))
	if line, err := r.ReadString('\n'); err != nil || line != "answer\n" {
		t.Error(line, err)
	}
	// The guest has ended its half, then the host does: it is over.
	g.send(opShutdown, 80, p.srcPort, shutdownSend, nil)
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Error(rest, err)
	}
	if err := sock.Close(); err != nil {
		t.Fatal(err)
	}
	if p, _ := g.receive(); p.op == opShutdown {
		g.expect(opReset)
	} else if p.op != opReset {
		t.Errorf("packet %+v", p)
	}
}

func TestVsockFromGuest(t *testing.T) {
	g := newVsockGuest(t)
	g.send(opRequest, 1000, 7, 0, nil) // nobody listens
	g.expect(opReset)
	l, err := net.Listen("unix", g.path+"_7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	g.send(opRequest, 1001, 7, 0, nil)
	sock, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	g.expect(opResponse)
	// A long stream both ways, within the credit.
	want := bytes.Repeat([]byte("0123456789abcdef"), 3000)
	go func() {
		_, _ = sock.Write(want)
		_ = sock.(*net.UnixConn).CloseWrite()
	}()
	var got []byte
	for len(got) < len(want) {
		_, data := g.expect(opData)
		got = append(got, data...)
	}
	if !bytes.Equal(got, want) {
		t.Error("stream to the guest differs")
	}
	if p, _ := g.expect(opShutdown); p.flags != shutdownSend {
		t.Errorf("shutdown %+v", p)
	}
	for at := 0; at < len(want); at += 4000 {
		g.send(opData, 1001, 7, 0, want[at:min(at+4000, len(want))])
	}
	g.send(opShutdown, 1001, 7, shutdownSend|shutdownReceive, nil)
	if got, err := io.ReadAll(sock); err != nil || !bytes.Equal(got, want) {
		t.Error("stream to the host differs", err)
	}
	g.expect(opReset)
}

// TestVsockCredit: the device sends no more than the guest has room for.
func TestVsockCredit(t *testing.T) {
	g := newVsockGuest(t)
	l, err := net.Listen("unix", g.path+"_7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := vsockPacket{srcCID: guestCID, dstCID: vsockHostCID, srcPort: 9, dstPort: 7, kind: vsockStream, op: opRequest, bufAlloc: 100}
	g.sendRaw(p.bytes())
	sock, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	g.expect(opResponse)
	go func() { _, _ = sock.Write(make([]byte, 1000)) }()
	n := 0
	for n < 100 {
		_, data := g.expect(opData)
		n += len(data)
	}
	if n != 100 {
		t.Errorf("%d bytes for a credit of 100", n)
	}
	p.op, p.fwdCnt = opCreditRequest, 50
	g.sendRaw(p.bytes())
	for op := uint16(0); op != opCreditUpdate; { // and 50 bytes more, in either order
		q, data := g.receive()
		n += len(data)
		op = q.op
	}
	for n < 150 {
		_, data := g.expect(opData)
		n += len(data)
	}
	if n != 150 {
		t.Errorf("%d bytes for a credit of 150", n)
	}
}

// TestVsockHostile: what a guest may not do ends in a reset of its own connection.
func TestVsockHostile(t *testing.T) {
	g := newVsockGuest(t)
	for name, p := range map[string]vsockPacket{
		"data without connection": {srcCID: guestCID, dstCID: vsockHostCID, srcPort: 1, dstPort: 2, kind: vsockStream, op: opData},
		"another kind":            {srcCID: guestCID, dstCID: vsockHostCID, srcPort: 1, dstPort: 2, kind: 2, op: opRequest},
		"another host":            {srcCID: guestCID, dstCID: 3, srcPort: 1, dstPort: 2, kind: vsockStream, op: opRequest},
		"unknown":                 {srcCID: guestCID, dstCID: vsockHostCID, srcPort: 1, dstPort: 2, kind: vsockStream, op: 99},
	} {
		g.sendRaw(p.bytes())
		if q, _ := g.receive(); q.op != opReset {
			t.Errorf("%s: %+v", name, q)
		}
	}
	g.sendRaw(make([]byte, 10)) // no packet at all
	p := vsockPacket{srcCID: 77, dstCID: vsockHostCID, srcPort: 1, dstPort: 2, kind: vsockStream, op: opRequest}
	g.sendRaw(p.bytes()) // not its own address: not answered
	l, err := net.Listen("unix", g.path+"_7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	g.send(opRequest, 1, 7, 0, nil)
	g.expect(opResponse)
	p = vsockPacket{srcCID: guestCID, dstCID: vsockHostCID, srcPort: 1, dstPort: 7, kind: vsockStream, op: opData, length: 5000}
	g.sendRaw(p.bytes()) // says 5000 bytes, has none
	g.expect(opReset)
	// What is left of all this goes with a reset of the device.
	g.send(opRequest, 1, 7, 0, nil)
	g.expect(opResponse)
	g.d.reset()
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	if len(g.dev.conns)+len(g.dev.order)+len(g.dev.control) != 0 {
		t.Error("connections outlive the reset")
	}
}

func TestVsockSockets(t *testing.T) {
	g := newVsockGuest(t)
	if _, err := NewVsock(guestCID, g.path); err == nil || !strings.Contains(err.Error(), "listens there") {
		t.Error(err)
	}
	if _, err := NewVsock(2, g.path+"x"); err == nil {
		t.Error("the host's own cid was taken")
	}
	for _, line := range []string{"GET / HTTP/1.0\n", "CONNECT\n", "CONNECT 4294967296\n", strings.Repeat("x", 100)} {
		sock, err := net.Dial("unix", g.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := sock.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(sock, line)
		if b, err := io.ReadAll(sock); len(b) > 0 || os.IsTimeout(err) {
			t.Errorf("%q answered %q, %v", line, b, err)
		}
		_ = sock.Close()
	}
	if err := g.dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(g.path); err == nil {
		t.Error("the socket stays behind")
	}
}

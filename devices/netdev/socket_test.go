package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// links returns two ends of a link in this process.
func links(t testing.TB) (a, b *Link) {
	t.Helper()
	a, other, err := NewLinks("test")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(other.Fd()))
	_ = other.Close()
	if err == nil {
		b, err = NewLink(fd, "peer")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func packet(seed byte, n int) []byte {
	p := make([]byte, HeaderSize+n)
	for i := range p[HeaderSize:] {
		p[HeaderSize+i] = seed + byte(i*7)
	}
	return p
}

func TestLink(t *testing.T) {
	a, b := links(t)
	var got Offloads
	b.Peer = func(o Offloads) error { got = o; return nil }
	buf := make([]byte, MaxPacket)
	if n, err := b.Receive(buf); n != 0 || err != nil {
		t.Errorf("nothing is there, and Receive returned %d, %v", n, err)
	}
	for _, p := range [][]byte{packet(1, 60), {3}, packet(2, 5), packet(3, MaxPacket-HeaderSize)} { // offloads, no whole frame
		if err := a.Send(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range [][]byte{packet(1, 60), packet(3, MaxPacket-HeaderSize)} {
		if err := b.Wait(); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Receive(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("%d bytes, %v; want %d", n, err, len(want))
		}
	}
	if got != 3 {
		t.Errorf("offloads %d", got)
	}
}

// The guest's buffers are looked at while another goroutine waits for packets.
func TestReceiveWhileWaiting(t *testing.T) {
	a, b := links(t)
	waited := make(chan error)
	go func() { waited <- b.Wait() }()
	for range 100 {
		if n, err := b.Receive(make([]byte, MaxPacket)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := a.Send(packet(1, 60)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestLinkEnds(t *testing.T) {
	for name, end := range map[string]func(a, b *Link) error{
		"peer": func(a, _ *Link) error { return a.Close() },
		"self": func(_, b *Link) error { return b.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := links(t)
			if err := end(a, b); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, MaxPacket)
			for range 2 { // a back end that is broken for good says so each time
				if err := b.Wait(); err == nil {
					if _, err := b.Receive(buf); !errors.Is(err, os.ErrClosed) {
						t.Errorf("Receive: %v", err)
					}
				}
			}
			if err := b.Wait(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Wait: %v", err)
			}
			if err := b.Send(packet(1, 60)); err == nil {
				t.Error("Send succeeds")
			}
		})
	}
}

// A peer that takes nothing costs packets, and time only once.
func TestLinkStuckPeer(t *testing.T) {
	a, b := links(t)
	p := packet(1, 60000)
	start, lost := time.Now(), 0
	for range 1000 {
		if a.Send(p) != nil {
			lost++
		}
	}
	if took := time.Since(start); lost < 500 || took > 10*patience {
		t.Errorf("%d packets lost in %v", lost, took)
	}
	buf := make([]byte, MaxPacket)
	for n := 1; n > 0; {
		n, _ = b.Receive(buf)
	}
	if err := a.Send(p); err != nil {
		t.Errorf("the peer is back: %v", err)
	}
}

func TestLinkAllocations(t *testing.T) {
	a, b := links(t)
	p, buf := packet(1, 60), make([]byte, MaxPacket)
	if k := testing.AllocsPerRun(100, func() {
		_ = a.Send(p)
		_ = b.Wait()
		_, _ = b.Receive(buf)
	}); k != 0 {
		t.Errorf("%v allocations for a packet", k)
	}
}

func passt(t *testing.T) (*Passt, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passt")
	if _, err := OpenPasst(path); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("without a socket: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	p, err := OpenPasst(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = p.Close(), c.Close() })
	return p, c
}

func TestPasst(t *testing.T) {
	p, c := passt(t)
	var stream []byte
	for i, n := range []int{60, 3, 0, 1514, 65000, 14} { // two of them no whole frame
		stream = binary.BigEndian.AppendUint32(stream, uint32(n))
		stream = append(stream, packet(byte(i), n)[HeaderSize:]...)
	}
	go func() {
		for k := 1; len(stream) > 0; k = k%1000 + 1 { // cut at places of its own
			k := min(k, len(stream))
			_, _ = c.Write(stream[:k])
			stream = stream[k:]
		}
	}()
	buf := make([]byte, MaxPacket)
	for _, want := range [][]byte{packet(0, 60), packet(3, 1514), packet(4, 65000), packet(5, 14)} {
		n, err := p.Receive(buf)
		for n == 0 && err == nil {
			if err = p.Wait(); err == nil {
				n, err = p.Receive(buf)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf[:n], want) {
			t.Errorf("%d bytes, want %d", n, len(want))
		}
	}
	go func() { _ = p.Send(packet(7, 1514)) }()
	got := make([]byte, 4+1514)
	if _, err := io.ReadFull(c, got); err != nil || binary.BigEndian.Uint32(got) != 1514 || !bytes.Equal(got[4:], packet(7, 1514)[HeaderSize:]) {
		t.Errorf("sent % x, %v", got[:8], err)
	}
}

func TestPasstOtherProtocol(t *testing.T) {
	p, c := passt(t)
	_, _ = c.Write([]byte("HTTP/1.1 400\r\n"))
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Receive(make([]byte, MaxPacket)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v", err)
	}
	if err := p.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHeader(t *testing.T) {
	h := Header{Flags: FlagNeedsChecksum, GSOType: GSOTCPv4, HeaderLen: 54, GSOSize: 1460, CsumStart: 34, CsumOffset: 16}
	b := bytes.Repeat([]byte{0xff}, HeaderSize)
	h.Put(b)
	// struct virtio_net_hdr_v1, little-endian (virtio 1.3 5.1.6).
	if want := []byte{1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0}; !bytes.Equal(b, want) {
		t.Errorf("header % x, want % x", b, want)
	}
	if ParseHeader(b) != h {
		t.Errorf("read back %+v", ParseHeader(b))
	}
}

func TestHeaderCheck(t *testing.T) {
	const all = Checksum | TSO4 | TSO6
	for _, c := range []struct {
		h    Header
		n    int
		o    Offloads
		want bool
	}{
		{Header{}, 14, 0, true},
		{Header{Flags: FlagDataValid}, 14, 0, true},
		{Header{Flags: 1, CsumStart: 34, CsumOffset: 16}, 52, all, true},
		{Header{Flags: 1, CsumStart: 34, CsumOffset: 16}, 51, all, false},
		{Header{Flags: 1, CsumStart: 34, CsumOffset: 16}, 52, 0, false},
		{Header{Flags: 1, CsumStart: 65535, CsumOffset: 65535}, 65535, all, false},
		{Header{Flags: 1, GSOType: GSOTCPv6, GSOSize: 1, CsumStart: 54, CsumOffset: 16}, 100, all, true},
		{Header{Flags: 1, GSOType: GSOTCPv6, GSOSize: 1, CsumStart: 54, CsumOffset: 16}, 100, Checksum | TSO4, false},
		{Header{GSOType: GSOECN}, 100, all, false},
	} {
		if got := c.h.Check(c.n, c.o); got != c.want {
			t.Errorf("%+v in %d bytes with %b: %v", c.h, c.n, c.o, got)
		}
	}
}

func openTestTap(t *testing.T) *Tap {
	t.Helper()
	tap, err := OpenTap("")
	if err != nil {
		if os.Geteuid() == 0 && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
		t.Skipf("TAP IS NOT TESTED on this machine: %v", err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

// setAddress gives the interface an address of the host's.
func setAddress(t *testing.T, name string, addr, mask net.IP) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(s) }()
	for _, set := range []struct {
		req uint
		ip  net.IP
	}{{unix.SIOCSIFADDR, addr}, {unix.SIOCSIFNETMASK, mask}} {
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			err = ifr.SetInet4Addr(set.ip.To4())
		}
		if err == nil {
			err = unix.IoctlIfreq(s, set.req, ifr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The host's kernel sends a datagram to an address behind the tap: we answer
// its ARP request and get the datagram, its checksum still to be completed once
// that was agreed.
func TestTap(t *testing.T) {
	tap := openTestTap(t)
	if tap.Name() == "" {
		t.Error("the interface has no name")
	}
	if err := tap.SetOffloads(Checksum | TSO4 | TSO6); err != nil {
		t.Fatal(err)
	}
	setAddress(t, tap.Name(), net.IPv4(198, 51, 100, 1), net.IPv4(255, 255, 255, 0))
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(198, 51, 100, 2), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	watchdog := time.AfterFunc(10*time.Second, func() { _ = tap.Close() })
	defer watchdog.Stop()
	if _, err := c.Write([]byte("to the guest")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxPacket)
	for {
		if err := tap.Wait(); err != nil {
			t.Fatalf("the datagram did not come: %v", err)
		}
		k, err := tap.Receive(buf)
		if err != nil {
			t.Fatal(err)
		}
		if k < HeaderSize+14 {
			continue
		}
		f := buf[HeaderSize:k]
		switch {
		case binary.BigEndian.Uint16(f[12:]) == 0x0806 && bytes.Equal(f[38:42], []byte{198, 51, 100, 2}):
			r := make([]byte, HeaderSize, 64)
			r = append(append(r, f[6:12]...), 2, 0, 0, 0, 0, 9)
			r = append(append(r, f[12:20]...), 0, 2, 2, 0, 0, 0, 0, 9)
			r = append(append(r, f[38:42]...), f[22:32]...)
			if err := tap.Send(r); err != nil {
				t.Fatal(err)
			}
		case bytes.HasSuffix(f, []byte("to the guest")):
			if h := ParseHeader(buf); h.Flags != FlagNeedsChecksum || h.CsumStart != 34 || h.CsumOffset != 6 {
				t.Errorf("header %+v", h)
			}
			return
		}
	}
}

func TestTapCloseEndsWait(t *testing.T) {
	tap := openTestTap(t)
	done := make(chan error)
	go func() {
		buf := make([]byte, MaxPacket)
		for {
			if err := tap.Wait(); err != nil {
				done <- err
				return
			}
			_, _ = tap.Receive(buf) // what the host's kernel sends by itself
		}
	}()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
}

func TestTapErrors(t *testing.T) {
	if _, err := OpenTap("a-name-that-is-much-too-long"); err == nil || !strings.Contains(err.Error(), "15 characters") {
		t.Errorf("long name: %v", err)
	}
	tap := openTestTap(t)
	if _, err := OpenTap(tap.Name()); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("interface in use: %v", err)
	}
	if _, err := OpenTap("lo"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("lo: %v", err)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func shutdown(s *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.Shutdown(ctx)
}

// ifreq runs one interface request of netdevice(7).
func ifreq(name string, request uint, set func(*unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = set(r)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, request, r)
	}
	return err
}

func linkUp(name string) error {
	err := ifreq(name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return nil
	})
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// DHCP options (RFC 2132).
const (
	optMask, optRouter, optDNS                       = 1, 3, 6
	optRequestedIP, optMessage, optServer, optParams = 50, 53, 54, 55
	optEnd                                           = 255

	discover, offer, request, ack = 1, 2, 3, 5
)

var cookie = []byte{99, 130, 83, 99}

// dhcp asks for an address on the interface and sets it.
func dhcp(name string) (string, error) {
	if err := linkUp(name); err != nil {
		return "", err
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return "", err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), name))
		})
		return errors.Join(e, err)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", ":68")
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()

	yours, o, err := ask(c, i.HardwareAddr, offer, []byte{optMessage, 1, discover, optParams, 3, optMask, optRouter, optDNS})
	if err != nil {
		return "", fmt.Errorf("DHCP discover: %w", err)
	}
	want := append([]byte{optMessage, 1, request, optRequestedIP, 4}, yours...)
	want = append(append(want, optServer, 4), o[optServer]...)
	if yours, o, err = ask(c, i.HardwareAddr, ack, want); err != nil {
		return "", fmt.Errorf("DHCP request: %w", err)
	}
	if err := ifreq(name, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(yours) }); err != nil {
		return "", err
	}
	if m := o[optMask]; len(m) == 4 {
		if err := ifreq(name, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(m) }); err != nil {
			return "", err
		}
	}
	if d := o[optDNS]; len(d) >= 4 {
		_ = os.MkdirAll("/etc", 0o755)
		if err := os.WriteFile("/etc/resolv.conf", fmt.Appendf(nil, "nameserver %v\n", net.IP(d[:4])), 0o644); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%v mask %v router %v dns %v", yours, net.IP(o[optMask]), net.IP(o[optRouter]), net.IP(o[optDNS])), nil
}

// ask broadcasts one message, up to five times, and returns the address and
// options of the answer of the given type (RFC 2131, 2).
func ask(c net.PacketConn, mac net.HardwareAddr, answer byte, options []byte) (net.IP, map[byte][]byte, error) {
	const xid = 0x67766d6d
	m := make([]byte, 236)
	copy(m, []byte{1, 1, 6})
	binary.BigEndian.PutUint32(m[4:], xid)
	m[10] = 0x80 // answer by broadcast: there is no address yet
	copy(m[28:44], mac)
	m = append(append(append(m, cookie...), options...), optEnd)
	m = append(m, make([]byte, 300-min(300, len(m)))...)
	var err error
	for range 5 {
		if _, err = c.WriteTo(m, &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			return nil, nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 1500)
		for {
			var n int
			if n, _, err = c.ReadFrom(buf); err != nil {
				break
			}
			b := buf[:n]
			if n < 240 || b[0] != 2 || binary.BigEndian.Uint32(b[4:]) != xid || !bytes.Equal(b[236:240], cookie) {
				continue
			}
			o := map[byte][]byte{}
			for p := b[240:]; len(p) > 1 && p[0] != optEnd; {
				if p[0] == 0 {
					p = p[1:]
					continue
				}
				l := int(p[1])
				if l > len(p)-2 {
					break
				}
				o[p[0]] = p[2 : 2+l]
				p = p[2+l:]
			}
			if t := o[optMessage]; len(t) == 1 && t[0] == answer {
				return net.IP(b[16:20]), o, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("no answer: %w", err)
}

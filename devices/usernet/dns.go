package usernet

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

const resolvConf = "/etc/resolv.conf"

// nameServer returns where the guest's queries go.
func (n *Network) nameServer() (netip.AddrPort, error) {
	if n.resolver.IsValid() {
		return n.resolver, nil
	}
	r, err := hostResolver()
	if err != nil && n.firstResolver.IsValid() {
		return n.firstResolver, nil
	}
	return r, err
}

// hostResolver returns the first name server of the host's.
func hostResolver() (netip.AddrPort, error) {
	f, err := os.Open(resolvConf)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(w[1])
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%s: %w", resolvConf, err)
		}
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.AddrPort{}, errors.New(resolvConf + " names no server")
}

// servfail turns a query into the answer that the server failed (RFC 1035
// 4.1.1), or returns nil if it is none.
func servfail(query []byte) []byte {
	if len(query) < 12 || query[2]&0x80 != 0 {
		return nil
	}
	a := append([]byte(nil), query...)
	a[2] |= 0x80         // an answer
	a[3] = a[3]&0x70 | 2 // SERVFAIL, no recursion
	return a
}

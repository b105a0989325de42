package netdev

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// Tap is a [Backend] on a tap interface of the host (Linux
// Documentation/networking/tuntap.rst).
type Tap struct{ descriptor }

// OpenTap attaches to the tap interface name, which is created when it does not
// exist; an empty name has the kernel choose one. The interface is brought up.
func OpenTap(name string) (*Tap, error) {
	fail := func(what string, err error) (*Tap, error) {
		hint := ""
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			hint = "; load the kernel's tun module (modprobe tun) or hand " + tunDevice + " into the container"
		case errors.Is(err, fs.ErrPermission):
			hint = fmt.Sprintf("; give gvmm CAP_NET_ADMIN, or have root create it for you: "+
				"ip tuntap add dev %s mode tap user $USER && ip link set %[1]s up; or use the user network (-n user)", orTap0(name))
		case errors.Is(err, unix.EBUSY):
			hint = "; another program has it open"
		case errors.Is(err, unix.EINVAL):
			hint = "; an interface of that name that is no single-queue tap is in the way, or the name is not a valid one"
		}
		return nil, fmt.Errorf("tap %s: %s: %w%s", name, what, err, hint)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: interface names have at most %d characters: %w", name, unix.IFNAMSIZ-1, err)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fail("open "+tunDevice, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return fail("attach (TUNSETIFF)", err)
	}
	name = ifr.Name()
	if err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderSize); err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fail("set the packet header", err)
	}
	if err = linkUp(name); err != nil {
		_ = unix.Close(fd)
		return fail("bring the interface up", err)
	}
	t := &Tap{} // the interface is attached: only now may the file be polled
	if err := t.init(fd, "tap "+name); err != nil {
		return nil, err
	}
	return t, nil
}

func orTap0(name string) string {
	if name == "" {
		return "tap0"
	}
	return name
}

func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	if ifr.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// Name returns the name of the interface.
func (t *Tap) Name() string { return strings.TrimPrefix(t.name, "tap ") }

// Offloads implements [Backend].
func (t *Tap) Offloads() Offloads { return Checksum | TSO4 | TSO6 }

// SetOffloads implements [Backend].
func (t *Tap) SetOffloads(o Offloads) error {
	arg := 0
	if o&Checksum != 0 { // without it the kernel takes no other
		arg = unix.TUN_F_CSUM
		if o&TSO4 != 0 {
			arg |= unix.TUN_F_TSO4
		}
		if o&TSO6 != 0 {
			arg |= unix.TUN_F_TSO6
		}
	}
	var err error
	if cerr := t.conn.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, arg) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("%s: set offloads %#x: %w", t.name, arg, err)
	}
	return nil
}

// Send implements [Backend].
func (t *Tap) Send(pkt []byte) error {
	_, err := t.file.Write(pkt)
	return err
}

// Receive implements [Backend].
func (t *Tap) Receive(buf []byte) (int, error) { return t.receive(buf) }

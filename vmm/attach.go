//go:build amd64 || arm64

package vmm

import (
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/devices/ninep"
	"github.com/gvmm/gvmm/devices/qcow2"
	"github.com/gvmm/gvmm/devices/virtio"
	"github.com/gvmm/gvmm/internal/sibling"
)

// attachDevices creates the virtio devices in the order in which a guest finds
// them: disks, networks, shares, console, sockets, balloon, random numbers.
func (m *VM) attachDevices() error {
	for _, d := range m.cfg.Disks {
		if err := m.attachDisk(d); err != nil {
			return fmt.Errorf("--disk: %w", err)
		}
	}
	for _, n := range m.cfg.Nets {
		if err := m.attachNet(n); err != nil {
			return fmt.Errorf("--net: %w", err)
		}
	}
	for _, s := range m.cfg.Shares {
		if err := m.attachShare(s); err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
	}
	if m.cfg.Console == VirtioConsole {
		c := virtio.NewConsole(m.watch)
		m.input = func(p []byte) bool {
			_, err := c.Write(p)
			return err == nil
		}
		m.closers = append(m.closers, c)
		if err := m.attach(c); err != nil {
			return fmt.Errorf("--console: %w", err)
		}
	}
	if v := m.cfg.Vsock; v != nil {
		dev, err := virtio.NewVsock(v.CID, v.Path)
		if err != nil {
			return fmt.Errorf("--vsock: %w", err)
		}
		m.closers = append(m.closers, dev)
		if err := m.attach(dev); err != nil {
			return fmt.Errorf("--vsock: %w", err)
		}
	}
	if m.cfg.Balloon {
		m.balloon = virtio.NewBalloon(m.cfg.Memory)
		if err := m.attach(m.balloon); err != nil {
			return fmt.Errorf("--balloon: %w", err)
		}
	}
	if m.cfg.RNG == On {
		if err := m.attach(virtio.NewRNG()); err != nil {
			return fmt.Errorf("--rng: %w", err)
		}
	}
	return nil
}

// attach puts a device behind the machine's transport, at the next place.
func (m *VM) attach(dev virtio.Device) error {
	report := func(err error) { m.log.Warn("device error", "device", dev.Name(), "err", err) }
	var d device
	var err error
	if mmio, pci := m.place(len(m.devs)); mmio != nil {
		d, err = virtio.NewMMIO(host{m: m}, &m.mmio, uint64(mmio.Base), mmio.IRQ, dev, report)
	} else {
		d, err = virtio.NewPCI(host{m, uint32(pci.Slot) << 3}, m.pci, pci.IRQ, dev, report)
	}
	if err != nil {
		return err
	}
	m.devs = append(m.devs, d)
	return nil
}

// autoQueues is the most queues that a disk gets without being asked.
const autoQueues = 4

func (m *VM) attachDisk(d Disk) error {
	format, err := d.format()
	if err != nil {
		return err
	}
	var disk virtio.Disk
	if format == "qcow2" {
		image, err := qcow2.Open(d.Path, d.ReadOnly, d.Direct)
		if err != nil {
			return err
		}
		m.closers = append(m.closers, image)
		disk = image
	} else {
		raw, err := virtio.OpenRaw(d.Path, d.ReadOnly, d.Direct)
		if err != nil {
			return err
		}
		m.closers = append(m.closers, raw)
		if note := raw.Note(); note != "" {
			m.log.Warn("disk", "path", d.Path, "note", note)
		}
		disk = raw
	}
	queues := d.Queues
	if queues == 0 {
		queues = min(m.cfg.CPUs, autoQueues)
	}
	blk, err := virtio.NewBlk(disk, d.Serial, queues)
	if err != nil {
		return err
	}
	return m.attach(blk)
}

// format says how the image is to be read. Contents alone are not believed: the
// guest of a raw disk writes what it likes, also a header that names one of the
// host's files as what lies below.
func (d Disk) format() (string, error) {
	if d.Format != "" {
		return d.Format, nil
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return "raw", nil // opening it properly will say why
	}
	defer f.Close()
	var magic [len(qcow2.Magic)]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil || string(magic[:]) != qcow2.Magic {
		return "raw", nil
	}
	if strings.HasSuffix(d.Path, ".qcow2") {
		return "qcow2", nil
	}
	return "", fmt.Errorf("disk %s: it looks like a qcow2 image and is not called one: say format=qcow2, or format=raw to use its bytes as they are", d.Path)
}

func (m *VM) attachNet(n Net) error {
	mac := netdev.RandomMAC()
	if n.MAC != "" {
		hw, err := net.ParseMAC(n.MAC)
		if err != nil || len(hw) != len(mac) || hw[0]&1 != 0 {
			return fmt.Errorf("mac=%s: not the Ethernet address of a station, such as 52:54:00:12:34:56", n.MAC)
		}
		copy(mac[:], hw)
	}
	backend, err := m.openNet(n, mac)
	if err != nil {
		return err
	}
	dev := virtio.NewNet(backend, mac)
	m.closers = append(m.closers, backend)
	return m.attach(dev)
}

func (m *VM) openNet(n Net, mac [6]byte) (netdev.Backend, error) {
	switch {
	case n.Backend != nil:
		return n.Backend, nil
	case n.Passt != "":
		return netdev.OpenPasst(n.Passt)
	case !n.User:
		return netdev.OpenTap(n.Tap)
	}
	program := m.cfg.NetProgram
	if program == nil {
		path, err := sibling.Find(netdev.UserProgram)
		if err != nil {
			return nil, err
		}
		program = []string{path}
	}
	return netdev.NewUser(program, netdev.UserConfig{MAC: mac, Forwards: n.Forwards, Guest: n.Guest, Gateway: n.Gateway},
		func(err error) { m.log.Error("network", "err", err) })
}

func (m *VM) attachShare(s Share) error {
	srv, err := ninep.NewServer(s.Dir, s.ReadOnly)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, srv)
	dev, err := virtio.NewNineP(s.Tag, srv)
	if err != nil {
		return err
	}
	return m.attach(dev)
}

// closeFunc is a Close that cannot fail.
type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

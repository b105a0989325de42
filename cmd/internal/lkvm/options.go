package lkvm

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/vmm"
)

// options are those of run and sandbox, of both architectures: an arm64 guest
// can be laid out on any host.
func (g *guest) options() []option {
	c := &g.cfg
	tap := ""
	network := call('n', "network", "network params", "Give the guest a network card: mode=user|tap, or none for none at all", g.addNet)
	network.fallback = &tap
	toPCI := func(string) error { c.ARM64.Transport = boot.TransportPCI; return nil }
	counters := number(0, "pmu-counters", "Realm: performance counters", &g.pmuCounters)
	counters.unset = nil
	setCounters := counters.set
	counters.set = func(s string) error { g.counters = true; return setCounters(s) }
	return []option{
		title("Basic options:"),
		text(0, "name", "guest name", "A name for the guest", &c.Name),
		number('c', "cpus", "Number of vCPUs (default: as many as the host has)", &g.cpus),
		call('m', "mem", "size[BKMGTP][@addr]", "Memory, in MiB unless there is a unit", g.setMemory),
		call('d', "disk", "image or rootfs_dir", "A disk image[,ro][,direct][,format=qcow2], or a directory for the root file system", g.addDisk),
		flag(0, "balloon", "Give the guest a virtio balloon", &c.Balloon),
		refused(0, "vnc", "", noScreen),
		refused(0, "gtk", "", noScreen),
		refused(0, "sdl", "", noScreen),
		flag(0, "rng", "Give the guest virtio random numbers", &g.rng),
		flag(0, "nodefaults", "No root file system, network or kernel parameters but those that are asked for", &g.nodefaults),
		call(0, "9p", "dir_to_share,tag_name", "Share a directory with the guest by 9p", g.add9P),
		text(0, "console", "serial, virtio or hv", "The guest's console", &g.console),
		number(0, "vsock", "Give the guest virtio sockets and this CID", &g.vsock),
		text(0, "dev", "device_file", "KVM's device, /dev/kvm", &g.dev),
		g.ignored("tty", "tty id", "further serial ports lead nowhere"),
		text(0, "sandbox", "script", "Run this script of the host's in a root file system of lkvm setup", &g.script),
		g.ignored("hugetlbfs", "path", "memory comes from ordinary pages"),
		call(0, "virtio-legacy", "", "Legacy virtio, which guests may always choose on PCI", toPCI),
		call(0, "virtio-transport", "[pci|pci-legacy|mmio|mmio-legacy]", "What virtio devices lie behind (mmio: arm64)", func(s string) error {
			if !slices.Contains([]string{"pci", "pci-legacy", "mmio", "mmio-legacy"}, s) {
				return misusef("virtio-transport: unknown type %q", s)
			}
			c.ARM64.Transport = boot.Transport(strings.TrimSuffix(s, "-legacy"))
			return nil
		}),
		call(0, "loglevel", "[error|warning|info|debug]", "How much to say", func(s string) error {
			i := slices.Index(levelNames, s)
			if i < 0 {
				return fatalf("Unknown loglevel: %s", s)
			}
			g.level = i
			return nil
		}),

		title("Kernel options:"),
		text('k', "kernel", "kernel", "The kernel to boot", &c.Image),
		text('i', "initrd", "initrd", "Initial RAM disk", &c.Initrd),
		text('p', "params", "params", "Kernel parameters", &c.Params),
		text('f', "firmware", "firmware", "Firmware to boot (x86: OVMF; arm64: EDK2 for kvmtool)", &c.Firmware),
		refused('F', "flash", "flash", "there is no flash memory here; OVMF keeps its variables elsewhere: leave it out"),

		title("Networking options:"),
		network,
		flag(0, "no-dhcp", "Have the kernel not ask for an address on a root file system of lkvm setup", &g.noDHCP),

		title("VFIO options:"),
		refused(0, "vfio-pci", "[domain:]bus:dev.fn", "devices of the host are not given to guests"),

		title("Debug options:"),
		call(0, "debug", "", "The same as --loglevel=debug", func(string) error { g.level = levelDebug; return nil }),
		g.ignored("debug-single-step", "", "see gvmm run --cet-audit"),
		g.ignored("debug-ioport", "", "accesses are not traced"),
		g.ignored("debug-mmio", "", "accesses are not traced"),
		g.ignored("debug-iodelay", "n", "I/O is not delayed"),

		title("Options of x86 guests:"),
		g.ignored("vidmode", "n", "there is no screen"),

		title("Options of arm64 guests:"),
		refused(0, "aarch32", "", "guests here start in AArch64 state"),
		refused(0, "nested", "", "guests here have no EL2"),
		refused(0, "e2h0", "", "guests here have no EL2"),
		flag(0, "pmu", "Give the vCPUs performance monitors", &c.ARM64.PMU),
		flag(0, "disable-mte", "No memory tagging; guests never have it", new(bool)),
		text(0, "vcpu-affinity", "cpulist", "The host's processors to run on", &g.affinity),
		number(0, "kaslr-seed", "Seed of the guest kernel's place", &c.ARM64.KASLRSeed),
		flag(0, "no-pvtime", "No stolen time", &c.ARM64.NoPVTime),
		flag(0, "disable-sve", "No SVE", &c.ARM64.NoSVE),
		number(0, "sve-max-vl", "Realm: SVE vector length in bits", &g.sveVL),
		number(0, "sve-vl", "The same", &g.sveVL),
		text(0, "dump-dtb", ".dtb file", "Write the guest's device tree to a file", &c.DumpDTB),
		text(0, "dtb", ".dtb file", "Give the guest this device tree", &g.dtb),
		refused(0, "override-bad-firmware-cntfrq", "n", "the host's firmware sets the timer's frequency"),
		call(0, "force-pci", "", "The same as --virtio-transport pci", toPCI),
		call(0, "irqchip", "[gicv2|gicv3|gicv3-its]", "Interrupt controller", func(s string) error {
			if s == "gicv2m" {
				return errors.New("--irqchip gicv2m: not offered: take gicv3-its for messages")
			}
			if c.ARM64.IRQChip = boot.IRQChip(s); !slices.Contains([]boot.IRQChip{boot.GICv2, boot.GICv3, boot.GICv3ITS}, c.ARM64.IRQChip) {
				return misusef("irqchip: unknown type %q", s)
			}
			return nil
		}),
		refused(0, "firmware-address", "n", "firmware lies at the start of RAM"),

		title("Options of confidential guests:"),
		flag(0, "realm", "Launch as an Arm CCA realm", &g.isRealm),
		text(0, "measurement-algo", "sha256, sha512", "Realm: measurement algorithm", &g.algorithm),
		text(0, "realm-pv", "text", "Realm: personalization value", &g.personal),
		counters,
		flag(0, "restricted_mem", "Private memory; a realm always has it", new(bool)),
		g.ignored("measurement-log", "", "see gvmm measure cca --explain"),
		refused(0, "pkvm", "", "protected VMs of pKVM are not offered; --realm is"),
	}
}

const noScreen = "there is no framebuffer here; use a serial console"

// refused is an option that a guest cannot be given.
func refused(short byte, long, arg, why string) option {
	return option{short: short, long: long, arg: arg, help: "Not offered: " + why, unset: func() {},
		set: func(string) error { return fmt.Errorf("--%s: not offered: %s", long, why) }}
}

// ignored is an option without which the guest runs as well.
func (g *guest) ignored(long, arg, why string) option {
	return option{long: long, arg: arg, help: "Without effect: " + why, unset: func() {}, set: func(string) error {
		g.say(levelWarning, "--%s has no effect: %s", long, why)
		return nil
	}}
}

// size reads a number of bytes, of MiB without a unit, off s.
func size(s string) (n uint64, rest string, err error) {
	i := strings.IndexFunc(s+" ", func(r rune) bool { return r < '0' || r > '9' })
	if i == 0 {
		return 0, s, fatalf("Invalid memory specifier: %s", s)
	}
	n, err = strconv.ParseUint(s[:i], 10, 64)
	rest, shift := s[i:], 20
	if rest != "" {
		if u := strings.IndexByte("BKMGTP", rest[0]&^0x20); u >= 0 {
			rest, shift = rest[1:], 10*u
		}
	}
	if err != nil || bits.Len64(n)+shift > 64 {
		return 0, s, fatalf("Memory too large: %s", s)
	}
	return n << shift, rest, nil
}

func (g *guest) setMemory(s string) error {
	n, rest, err := size(s)
	if err != nil {
		return err
	}
	if n == 0 {
		return fatalf("Invalid RAM size: %s", s)
	}
	if at, ok := strings.CutPrefix(rest, "@"); ok {
		const ram = 2 << 30 // kvmtool's on arm64
		var base uint64
		if base, rest, err = size(at); err != nil || rest == "" && base != ram {
			return errors.Join(err, fmt.Errorf("%s: RAM lies at 2G on arm64 and at 0 on x86: leave the address out", s))
		}
	}
	if rest != "" {
		return fatalf("Invalid memory specifier: %s", s)
	}
	g.cfg.Memory = n
	return nil
}

func (g *guest) addDisk(s string) error {
	for _, dir := range []string{s, filepath.Join(g.dir, s)} {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			continue
		}
		name := ""
		if dir != s {
			name = s
		}
		return g.useRoot(dir, name)
	}
	if strings.HasPrefix(s, "scsi:") {
		return fmt.Errorf("--disk %s: SCSI targets of the host (vhost-scsi) are not offered", s)
	}
	if len(g.cfg.Disks) == maxDisks {
		return fatalf("Currently only %d images are supported", maxDisks)
	}
	path, rest, _ := strings.Cut(s, ",")
	d := vmm.Disk{Path: path}
	for o := range strings.SplitSeq(rest, ",") {
		switch {
		case strings.HasPrefix(o, "ro"):
			d.ReadOnly = true
		case strings.HasPrefix(o, "direct"):
			d.Direct = true
		case o == "format=qcow2", o == "format=raw":
			d.Format = o[len("format="):]
		}
	}
	g.cfg.Disks = append(g.cfg.Disks, d)
	return nil
}

// useRoot has the guest's root file system be a directory. One that lkvm made
// has a name, and the host's files beside it.
func (g *guest) useRoot(dir, name string) error {
	if g.root != "" {
		return fatalf("Please use only one rootfs directory atmost")
	}
	dir, err := realPath(dir)
	if err != nil {
		return err
	}
	g.root, g.rootName = dir, name
	g.cfg.Shares = append(g.cfg.Shares, vmm.Share{Dir: dir, Tag: rootTag})
	if name != "" {
		g.cfg.Shares = append(g.cfg.Shares, vmm.Share{Dir: "/", Tag: hostTag, ReadOnly: true})
	}
	return nil
}

func (g *guest) add9P(s string) error {
	dir, tag, ok := strings.Cut(s, ",")
	if !ok {
		tag = anyTag
	}
	dir, err := realPath(dir)
	if err != nil {
		return fatalf("Failed resolving 9p path: %w", err)
	}
	g.cfg.Shares = append(g.cfg.Shares, vmm.Share{Dir: dir, Tag: tag})
	return nil
}

// addNet reads key=value pairs; without mode= the card is on a tap.
func (g *guest) addNet(s string) error {
	n := vmm.Net{MAC: fmt.Sprintf("02:15:15:15:15:%02x", (0x15+len(g.cfg.Nets))&0xff),
		Guest: netip.MustParseAddr(defaultGuest), Gateway: netip.MustParseAddr(defaultGateway)}
	script, down := "none", "none"
	words := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == '=' })
	for i := 0; i+1 < len(words); i += 2 {
		key, val := words[i], words[i+1]
		var err error
		switch key {
		case "mode":
			switch n.User = strings.HasPrefix(val, "user"); {
			case strings.HasPrefix(val, "none"):
				g.noNet = true
				return nil
			case n.User && slices.ContainsFunc(g.cfg.Nets, func(n vmm.Net) bool { return n.User }):
				err = fatalf("Only one usermode network device allowed at a time")
			case !n.User && !strings.HasPrefix(val, "tap"):
				err = fatalf("Unknown network mode %s, please use user, tap or none", val)
			}
		case "guest_mac":
			n.MAC = val
		case "guest_ip":
			n.Guest, err = netip.ParseAddr(val)
		case "host_ip":
			n.Gateway, err = netip.ParseAddr(val)
		case "tapif":
			n.Tap = val
		case "script":
			script = val
		case "downscript":
			down = val
		case "fd":
			err = errors.New("fd=: an open tap is not taken over: name it by tapif=")
		case "vhost", "mq", "trans":
			g.say(levelWarning, "network parameter %s=%s has no effect: one queue, served by the monitor, on the machine's transport", key, val)
		default:
			err = fatalf("Unknown network parameter %s", key)
		}
		if err != nil {
			return err
		}
	}
	if !n.User {
		g.taps = append(g.taps, tap{len(g.cfg.Nets), script, down, ""})
	}
	g.cfg.Nets = append(g.cfg.Nets, n)
	return nil
}

// tap is what is to be done about a network card's tap interface.
type tap struct {
	card     int
	up, down string // scripts, or "none"
	name     string // once it is open
}

// open opens the tap of a card, and gives it its address as kvmtool does.
func (t *tap) open(n *vmm.Net) error {
	dev, err := netdev.OpenTap(n.Tap)
	if err != nil {
		return err
	}
	n.Backend, t.name = dev, dev.Name()
	switch {
	case t.up != "none":
		if err = exec.Command(t.up, t.name).Run(); err != nil {
			err = fmt.Errorf("script %s %s: %w", t.up, t.name, err)
		}
	case n.Tap == "":
		err = setAddress(t.name, n.Gateway)
	}
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	return nil
}

func setAddress(name string, a netip.Addr) error {
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = ifr.SetInet4Addr(a.AsSlice())
	}
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	if err := unix.IoctlIfreq(s, unix.SIOCSIFADDR, ifr); err != nil {
		return fmt.Errorf("tap %s: set the address %v: %w", name, a, err)
	}
	return nil
}

// cpuList reads a list such as 0-3,5.
func cpuList(s string) (set unix.CPUSet, err error) {
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 10)
		b, errB := strconv.ParseUint(to, 10, 10)
		if errA != nil || errB != nil || a > b {
			return set, fmt.Errorf("%q is no list of processors such as 0-3,5", s)
		}
		for ; a <= b; a++ {
			set.Set(int(a))
		}
	}
	return set, nil
}

// onlineCPUs is the number of the host's processors.
func onlineCPUs() int {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return runtime.NumCPU()
	}
	set, err := cpuList(string(b))
	if err != nil {
		return runtime.NumCPU()
	}
	return set.Count()
}

// setAffinity binds all threads, and those to come, to processors.
func setAffinity(list string) error {
	set, err := cpuList(list)
	if err != nil {
		return fmt.Errorf("--vcpu-affinity: %w", err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(id, &set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("--vcpu-affinity %s: %w", list, err)
		}
	}
	return nil
}

package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm"
)

// machineFlags registers the flags that describe a machine and its image; run
// and inspect share them. finish builds the configuration after parsing.
func machineFlags(fs *pflag.FlagSet, cfg *vmm.Config) (finish func(args []string, dash int) error) {
	var publish []netdev.Forward
	var noRNG, rng bool
	var machine, console, policy string
	fs.VarP(parsed("SIZE", func(s string) (err error) { cfg.Memory, err = parseSize(s); return err }),
		"memory", "M", "guest RAM: 64M, 1G, or a plain number of MiB (default 64M for unikernels, 512M for Linux)")
	fs.IntVarP(&cfg.CPUs, "cpus", "c", 1, "number of `vCPUs`")
	fs.StringVarP(&cfg.Initrd, "initrd", "i", "", "initial RAM disk `FILE` (Linux initramfs, Unikraft initrd0)")
	fs.StringVarP(&cfg.Params, "append", "a", "", "kernel `PARAMETERS`, kept byte for byte")
	fs.VarP(parsed("FILE[,ro][,serial=S][,format=raw|qcow2][,direct][,queues=N]", func(s string) error {
		d, err := parseDisk(s)
		cfg.Disks = append(cfg.Disks, d)
		return err
	}), "disk", "d", "virtio-blk disk (repeatable)")
	fs.VarP(parsed("user[,hostfwd=..]|tap[,if=NAME]|passt,socket=PATH|none[,mac=MAC]", func(s string) error {
		n, some, err := parseNet(s)
		if some {
			cfg.Nets = append(cfg.Nets, n)
		}
		return err
	}), "net", "n", "virtio-net device (repeatable): user network, with hostfwd=tcp:ADDR:PORT-:PORT, a tap interface, or passt")
	fs.VarP(parsed("[ADDR:]HOSTPORT:GUESTPORT[/udp]", func(s string) error {
		f, err := parsePublish(s)
		publish = append(publish, f)
		return err
	}), "publish", "p", "forward a host port to the guest through a user network (repeatable; address 127.0.0.1 unless given)")
	fs.VarP(parsed("DIR[:TAG][,ro]", func(s string) error {
		v, err := parseShare(s, len(cfg.Shares))
		cfg.Shares = append(cfg.Shares, v)
		return err
	}), "volume", "v", "share a directory by 9p (repeatable; tags fs0, fs1, ...)")
	fs.Var(parsed("cid=N,path=SOCKET", func(s string) (err error) { cfg.Vsock, err = parseVsock(s); return err }), "vsock",
		"virtio-vsock; host side on Unix sockets: connect to SOCKET and say CONNECT PORT, the guest reaches SOCKET_PORT")
	fs.BoolVar(&cfg.Balloon, "balloon", false, "give the guest a virtio memory balloon (gvmm balloon sets its size)")
	fs.BoolVar(&rng, "rng", false, "give the guest a virtio-rng device (default: all but Unikraft, which mostly has no driver for it)")
	fs.BoolVar(&noRNG, "no-rng", false, "give it none")
	fs.StringVar(&console, "console", string(vmm.SerialConsole), "the guest's console: `serial|virtio`")
	fs.StringVar(&machine, "machine", string(boot.MachineAuto), "platform layout: `auto|pc|microvm|virt|lkvm` (arm64 has the last three)")
	fs.StringVar((*string)(&cfg.ARM64.IRQChip), "irqchip", "", "arm64: interrupt controller `gicv2|gicv3|gicv3-its` (default: the best that image and host have)")
	fs.StringVar((*string)(&cfg.ARM64.Transport), "virtio-transport", "", "arm64: devices behind `mmio|pci` (default: mmio, on lkvm pci)")
	fs.BoolVar(&cfg.ARM64.PMU, "pmu", false, "arm64: give the vCPUs performance monitors")
	fs.Uint64Var(&cfg.ARM64.KASLRSeed, "kaslr-seed", 0, "arm64: `SEED` of the guest kernel's place (default: random, none on lkvm and in realms)")
	fs.StringVar(&cfg.DumpDTB, "dump-dtb", "", "arm64: write the guest's device tree to `FILE`")
	fs.StringVar(&cfg.Firmware, "firmware", "", "boot firmware `FILE` (OVMF.fd) and hand it the kernel, initrd and parameters by fw_cfg; without a kernel it boots a disk")
	fs.StringVar(&policy, "cet", string(cet.Auto), "shadow stacks and IBT (Intel CET): `off|auto|require`; auto gives the guest what the host has")
	fs.StringVar((*string)(&cfg.CETPreset), "cet-preset", "", "start the guest with supervisor `ibt|shstk` on, for images that do not do it themselves (64-bit entry)")
	fs.StringVar((*string)(&cfg.CETAudit), "cet-audit", "", "single-step the guest, on any KVM, and end it at the first return or indirect branch that CET would not let pass: `all|shstk|ibt`")
	fs.Lookup("cet-audit").NoOptDefVal = string(cet.AuditAll)
	snpFlag(fs, cfg)
	realmFlag(fs, cfg)
	fs.StringVar(&cfg.Name, "name", "", "`NAME` of the VM for gvmm ps, stop and the others (default: the image's name and the process id)")
	fs.BoolVar(&cfg.NoAuto, "no-auto", false, "add no netdev.ip= or vfs.fstab= parameters for Unikraft images; on lkvm, no parameters at all (--nodefaults)")

	return func(args []string, dash int) error {
		if dash >= 0 {
			cfg.Args = args[dash:]
			args = args[:dash]
		}
		switch {
		case len(args) == 0 && cfg.Firmware == "":
			return usageError{errors.New("no IMAGE given: name the kernel or unikernel file to boot")}
		case len(args) > 1:
			return usageError{fmt.Errorf("more than one IMAGE: %q; arguments for the guest go after --", args)}
		case cfg.CPUs < 1: // the library takes 0 for the default
			return usageError{fmt.Errorf("--cpus %d: give at least 1", cfg.CPUs)}
		case rng && noRNG:
			return usageError{errors.New("--rng and --no-rng exclude each other")}
		case rng:
			cfg.RNG = vmm.On
		case noRNG:
			cfg.RNG = vmm.Off
		}
		if len(args) > 0 {
			cfg.Image = args[0]
		}
		cfg.CET = cet.Policy(policy)
		cfg.Machine, cfg.Console = boot.Machine(machine), vmm.Console(console)
		return addPublished(cfg, publish)
	}
}

// snpFlag registers --sev-snp, whose value names what differs from the defaults.
func snpFlag(fs *pflag.FlagSet, cfg *vmm.Config) {
	fs.Var(parsed("policy=HEX,features=HEX,host-data=HEX,id-block=FILE,id-auth=FILE,certs=FILE,cbit=N,vcek-disabled", func(s string) (err error) {
		cfg.SNP, err = parseSNP(s)
		return err
	}), "sev-snp", "launch as an AMD SEV-SNP guest; everything behind the = can be left out")
	fs.Lookup("sev-snp").NoOptDefVal = "on"
}

func parseSNP(s string) (*vmm.SNP, error) {
	c := new(vmm.SNP)
	for o := range strings.SplitSeq(s, ",") {
		key, val, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "on":
		case "policy":
			c.Policy, err = parseHex(val, 64)
		case "features":
			c.Features, err = parseHex(val, 64)
		case "host-data":
			var b []byte
			if b, err = parseBytes(val, len(c.HostData)); err == nil {
				c.HostData = [32]byte(b)
			}
		case "id-block":
			c.IDBlock, err = readIDFile(val, sev.IDBlockSize)
		case "id-auth":
			c.IDAuth, err = readIDFile(val, sev.IDAuthSize)
		case "certs":
			c.Certs = val
		case "cbit":
			if c.CBit, err = strconv.Atoi(val); err == nil && (c.CBit < 32 || c.CBit > 62) {
				err = errors.New("give 32 to 62")
			}
		case "vcek-disabled":
			c.VCEKDisabled = true
		default:
			err = errors.New("unknown: `--help` names the options")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
	}
	if c.IDBlock != nil {
		policy := binary.LittleEndian.Uint64(c.IDBlock[sev.IDBlockSize-8:])
		if c.Policy == 0 {
			c.Policy = policy
		}
		if c.Policy != policy {
			return nil, fmt.Errorf("policy=%x: the ID block is for policy %x: leave it out, or make a block for this one", c.Policy, policy)
		}
	}
	if (c.IDBlock == nil) != (c.IDAuth == nil) {
		return nil, errors.New("id-block and id-auth go together")
	}
	return c, nil
}

// readIDFile reads a file of n bytes, as they are or in base64.
func readIDFile(path string, n int) ([]byte, error) {
	b, err := readBounded(path, 4*int64(n))
	if err != nil || len(b) == n {
		return b, err
	}
	if d, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b))); err == nil && len(d) == n {
		return d, nil
	}
	return nil, fmt.Errorf("%s: %d bytes: want %d, or those in base64", path, len(b), n)
}

// parseHex reads a hexadecimal number of so many bits.
func parseHex(s string, bits int) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(s), "0x"), 16, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is no hexadecimal number of %d bits", s, bits)
	}
	return v, nil
}

// parseBytes reads n bytes in hexadecimal.
func parseBytes(s string, n int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("%q: want %d bytes in hexadecimal", s, n)
	}
	return b, nil
}

// addPublished gives the forwards of -p to the first user network, making one
// where there is none.
func addPublished(cfg *vmm.Config, publish []netdev.Forward) error {
	if len(publish) == 0 {
		return nil
	}
	for i := range cfg.Nets {
		if cfg.Nets[i].User {
			cfg.Nets[i].Forwards = append(cfg.Nets[i].Forwards, publish...)
			return nil
		}
	}
	cfg.Nets = append(cfg.Nets, vmm.Net{User: true, Forwards: publish})
	return nil
}

// value is a flag whose text a function parses.
type value struct {
	kind  string
	parse func(string) error
}

func parsed(kind string, parse func(string) error) *value { return &value{kind, parse} }

func (v *value) String() string     { return "" }
func (v *value) Set(s string) error { return v.parse(s) }
func (v *value) Type() string       { return v.kind }

// parseSize reads a memory size in bytes: a number with the unit K, M, G or T,
// optionally followed by B or iB; without a unit it counts MiB.
func parseSize(s string) (uint64, error) {
	t := strings.ToUpper(s)
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	shift := 20
	if n := len(t); n > 0 {
		if i := strings.IndexByte("KMGT", t[n-1]); i >= 0 {
			shift = 10 * (i + 1)
			t = t[:n-1]
		}
	}
	n, err := strconv.ParseUint(t, 10, 64)
	if err != nil || n == 0 || n > 1<<(62-shift) {
		return 0, fmt.Errorf("%q is no memory size: give 64M, 1G, or a number of MiB", s)
	}
	return n << shift, nil
}

// options splits "word,key=value,key" behind the first comma-separated word.
func options(s string) (first string, rest []string) {
	parts := strings.Split(s, ",")
	return parts[0], parts[1:]
}

func parseDisk(s string) (vmm.Disk, error) {
	path, opts := options(s)
	d := vmm.Disk{Path: path}
	if path == "" {
		return d, errors.New("no file given")
	}
	for _, o := range opts {
		key, val, _ := strings.Cut(o, "=")
		var err error
		switch {
		case o == "ro":
			d.ReadOnly = true
		case o == "direct":
			d.Direct = true
		case key == "serial":
			d.Serial = val
		case key == "queues":
			if d.Queues, err = strconv.Atoi(val); err != nil || d.Queues < 1 {
				err = errors.New("give a number from 1 on")
			}
		case key == "format" && (val == "raw" || val == "qcow2"):
			d.Format = val
		case key == "format":
			return d, fmt.Errorf("format=%s: raw and qcow2 are known (`qemu-img convert` makes them)", val)
		default:
			return d, fmt.Errorf("unknown option %q: give ro, direct, serial=S, format=raw|qcow2 or queues=N", o)
		}
		if err != nil {
			return d, fmt.Errorf("%s: %w", o, err)
		}
	}
	return d, nil
}

func parseVsock(s string) (*vmm.Vsock, error) {
	v := &vmm.Vsock{}
	for _, o := range strings.Split(s, ",") {
		switch key, val, _ := strings.Cut(o, "="); key {
		case "cid":
			n, err := strconv.ParseUint(val, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("cid=%s: give a number from 3 on", val)
			}
			v.CID = uint32(n)
		case "path":
			v.Path = val
		default:
			return nil, fmt.Errorf("unknown option %q: the form is cid=N,path=SOCKET", o)
		}
	}
	if v.CID == 0 || v.Path == "" {
		return nil, errors.New("the form is cid=N,path=SOCKET")
	}
	return v, nil
}

func parseNet(s string) (n vmm.Net, some bool, err error) {
	kind, opts := options(s)
	switch kind {
	case "user":
		n.User = true
	case "tap", "passt", "none":
	default:
		return n, false, fmt.Errorf("unknown network %q: give user, tap, passt or none", kind)
	}
	for _, o := range opts {
		key, val, _ := strings.Cut(o, "=")
		switch {
		case key == "mac" && kind != "none":
			n.MAC = val
		case key == "if" && kind == "tap":
			n.Tap = val
		case key == "socket" && kind == "passt":
			n.Passt = val
		case key == "hostfwd" && kind == "user":
			f, err := parseHostForward(val)
			if err != nil {
				return n, false, err
			}
			n.Forwards = append(n.Forwards, f)
		default:
			return n, false, fmt.Errorf("unknown option %q for network %q", o, kind)
		}
	}
	if kind == "passt" && n.Passt == "" {
		return n, false, errors.New("passt: no socket: the form is passt,socket=PATH")
	}
	return n, kind != "none", nil
}

// parseHostForward reads QEMU's form: tcp|udp:[ADDR]:PORT-[GUESTADDR]:PORT.
func parseHostForward(s string) (netdev.Forward, error) {
	bad := func(why string) (netdev.Forward, error) {
		return netdev.Forward{}, fmt.Errorf("hostfwd=%s: %s; the form is tcp:ADDR:PORT-:PORT", s, why)
	}
	proto, rest, ok := strings.Cut(s, ":")
	if !ok || proto != "tcp" && proto != "udp" && proto != "" {
		return bad("the protocol is tcp or udp")
	}
	if proto == "" {
		proto = "tcp"
	}
	host, guest, ok := strings.Cut(rest, "-")
	if !ok {
		return bad("no - between host and guest")
	}
	addr, port, err := splitAddrPort(host)
	if err != nil {
		return bad(err.Error())
	}
	f := netdev.Forward{Proto: proto, HostAddr: addr, HostPort: port}
	guestAddr, guestPort, ok := cutLast(guest)
	if !ok {
		return bad("the guest's part is [ADDR]:PORT")
	}
	if guestAddr != "" {
		if f.GuestAddr, err = netip.ParseAddr(guestAddr); err != nil {
			return bad(err.Error())
		}
	}
	if f.GuestPort, err = parsePort(guestPort); err != nil {
		return bad(err.Error())
	}
	return f, nil
}

// parsePublish reads docker's form [ADDR:]HOSTPORT:GUESTPORT[/PROTO].
func parsePublish(s string) (netdev.Forward, error) {
	f := netdev.Forward{Proto: "tcp"}
	rest, proto, ok := strings.Cut(s, "/")
	if ok {
		f.Proto = proto
	}
	if f.Proto != "tcp" && f.Proto != "udp" {
		return f, fmt.Errorf("protocol %q: give tcp or udp", proto)
	}
	host, guest, ok := cutLast(rest)
	if !ok {
		return f, fmt.Errorf("%q: the form is [ADDR:]HOSTPORT:GUESTPORT[/udp]", s)
	}
	var err error
	if f.HostAddr, f.HostPort, err = splitAddrPort(host); err != nil {
		return f, err
	}
	f.GuestPort, err = parsePort(guest)
	return f, err
}

// splitAddrPort reads PORT, ADDR:PORT or [IPv6]:PORT; the address is 127.0.0.1
// unless given.
func splitAddrPort(s string) (netip.Addr, uint16, error) {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	a, p, ok := cutLast(s)
	if !ok {
		p = s
	} else if a != "" {
		var err error
		if addr, err = netip.ParseAddr(strings.Trim(a, "[]")); err != nil {
			return addr, 0, fmt.Errorf("%q is no IP address", a)
		}
	}
	port, err := parsePort(p)
	return addr, port, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port: give 1 to 65535", s)
	}
	return uint16(n), nil
}

// cutLast cuts s around its last colon.
func cutLast(s string) (before, after string, ok bool) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

func parseShare(s string, index int) (vmm.Share, error) {
	path, opts := options(s)
	dir, tag, ok := cutLast(path)
	v := vmm.Share{Dir: dir, Tag: tag}
	if !ok {
		v.Tag = fmt.Sprintf("fs%d", index)
	}
	if v.Dir == "" || v.Tag == "" {
		return v, fmt.Errorf("%q: the form is DIR[:TAG][,ro]", s)
	}
	for _, o := range opts {
		if o != "ro" {
			return v, fmt.Errorf("unknown option %q: give ro", o)
		}
		v.ReadOnly = true
	}
	return v, nil
}

package lkvm

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/internal/sibling"
	"github.com/gvmm/gvmm/vmm"
)

const (
	defaultGuest   = "192.168.33.15"
	defaultGateway = "192.168.33.1"
	defaultRoot    = "default" // root file system

	rootTag = "/dev/root"
	hostTag = "hostfs"
	anyTag  = "kvm_9p"

	maxDisks = 4
)

// guest is what a command line of run or sandbox says.
type guest struct {
	*tool
	sandbox bool // the command is sandbox
	cfg     vmm.Config
	realm   cca.Config // counts with isRealm

	root     string   // directory of the 9p root file system; "": none
	rootName string   // of one that lkvm made; "": not such a one
	script   string   // what the sandbox runs
	command  []string // or this
	taps     []tap

	console, dev, affinity, dtb, algorithm, personal string

	cpus, pmuCounters int
	vsock, sveVL      uint64

	nodefaults, noDHCP, noNet, isRealm, rng, counters, named bool
}

func runOptions(sandbox bool) func(*tool) ([]option, func([]string) (int, error)) {
	return func(t *tool) ([]option, func([]string) (int, error)) {
		g := &guest{tool: t, sandbox: sandbox}
		table := g.options()
		return table, func(args []string) (int, error) { return g.run(table, args) }
	}
}

// run is `lkvm run` and `lkvm sandbox`.
func (g *guest) run(table []option, args []string) (int, error) {
	if err := g.parse(table, args); err != nil {
		return 0, err
	}
	if err := g.check(); err != nil {
		return 0, err
	}
	if err := g.defaults(); err != nil {
		return 0, err
	}
	what := "-k " + g.cfg.Image
	if g.cfg.Firmware != "" {
		what = "--firmware " + g.cfg.Firmware
	}
	g.say(levelInfo, "# lkvm run %s -m %d -c %d --name %s", what, g.cfg.Memory>>20, g.cfg.CPUs, g.cfg.Name)
	if err := g.finish(); err != nil {
		return 0, err
	}
	return g.carry()
}

// parse reads options and the words between them.
func (g *guest) parse(table []option, args []string) error {
	for len(args) > 0 {
		rest, err := parse(table, args)
		if err != nil || len(rest) == 0 {
			return err
		}
		switch {
		case rest[0] == "--" && g.sandbox && len(rest) > 1:
			g.command = rest[1:]
			return nil
		case rest[0] == "--", g.sandbox && g.script != "", !g.sandbox && g.cfg.Image != "":
			return misusef("Cannot handle parameter: %s", rest[0])
		case g.sandbox:
			g.command = rest
			return nil
		}
		g.cfg.Image, args = rest[0], rest[1:]
	}
	return nil
}

// check refuses what cannot be had, and says what is left out.
func (g *guest) check() error {
	switch c := &g.cfg; {
	case c.Image != "" && c.Firmware != "":
		return fatalf("Only one of --kernel or --firmware can be specified")
	case g.dev != "" && g.dev != "/dev/kvm":
		return fmt.Errorf("--dev %s: KVM is taken from /dev/kvm", g.dev)
	case !g.isRealm && (g.algorithm != "" || g.personal != "" || g.counters):
		return errors.New("--measurement-algo, --realm-pv and --pmu-counters are valid only with --realm")
	}
	if g.sveVL != 0 && !g.isRealm {
		g.say(levelWarning, "--sve-vl, --sve-max-vl: outside realms guests have the host's vector lengths")
	}
	if g.cfg.Firmware != "" && g.cfg.Initrd != "" {
		g.say(levelWarning, "Ignoring initrd file when loading a firmware image")
		g.cfg.Initrd = ""
	}
	if g.script != "" && g.root != "" && g.rootName == "" {
		g.say(levelWarning, "--sandbox: only a root file system of lkvm setup has a sandbox")
	}
	return nil
}

// defaults fills in what was not said.
func (g *guest) defaults() error {
	c := &g.cfg
	if c.Image == "" && c.Firmware == "" {
		if err := g.findKernel(); err != nil {
			return err
		}
	}
	c.CPUs = cmp.Or(g.cpus, onlineCPUs())
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	ram := info.Totalram * uint64(info.Unit)
	const page = 4096
	if c.Memory == 0 {
		c.Memory = min(64<<20*uint64(c.CPUs+3), ram/10*8) &^ (page - 1)
	} else if c.Memory > ram {
		g.say(levelWarning, "Guest memory size %dMB exceeds host physical RAM size %dMB", c.Memory>>20, ram>>20)
	}
	if g.named = c.Name != ""; !g.named {
		c.Name = cmp.Or(g.rootName, fmt.Sprintf("guest-%d", os.Getpid()))
	}
	if !g.nodefaults && g.root == "" && len(c.Disks) == 0 && c.Initrd == "" {
		if err := g.makeRoot(defaultRoot); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := g.useRoot(filepath.Join(g.dir, defaultRoot), defaultRoot); err != nil {
			return err
		}
	}
	if g.rootName != "" {
		if err := prepareRoot(g.root, g.script, g.command); err != nil {
			return err
		}
	}
	if len(c.Nets) > 0 || g.noNet || g.nodefaults {
		return nil
	}
	if _, err := sibling.Find(netdev.UserProgram); err != nil && cli.NetProgram() == nil {
		g.say(levelWarning, "no network: %v", err) // nobody asked for one
		return nil
	}
	return g.addNet("mode=user")
}

// findKernel looks for a kernel where kvmtool does.
func (g *guest) findKernel() error {
	arch := map[string]string{"amd64": "x86"}[runtime.GOARCH]
	places := []string{"./bzImage", "arch/" + cmp.Or(arch, runtime.GOARCH) + "/boot/bzImage", "../../arch/" + cmp.Or(arch, runtime.GOARCH) + "/boot/bzImage"}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		release := unix.ByteSliceToString(u.Release[:])
		places = append(places, "/boot/vmlinuz-"+release, "/boot/bzImage-"+release)
	}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			g.cfg.Image = p
			return nil
		}
	}
	return fatalf("Could not find default kernel image in: %s (see 'lkvm run --help')", strings.Join(places, " "))
}

// finish makes the rest of the configuration, for which the image is looked at.
func (g *guest) finish() error {
	c := &g.cfg
	if c.CPUs > vmm.MaxCPUs {
		g.say(levelWarning, "Limiting the number of CPUs to %d", vmm.MaxCPUs)
		c.CPUs = vmm.MaxCPUs
	}
	arm := runtime.GOARCH == "arm64"
	if c.Image != "" {
		head := make([]byte, 60)
		f, err := os.Open(c.Image)
		if err != nil {
			return fatalf("Unable to open kernel %s: %w", c.Image, err)
		}
		n, _ := f.ReadAt(head, 0) // a short file is no arm64 Image
		_ = f.Close()
		arm = n == len(head) && string(head[56:]) == "ARM\x64" || arm
	}
	c.Machine = boot.MachinePC
	if arm {
		c.Machine = boot.MachineLKVM
		if c.Firmware != "" {
			c.ARM64.Transport = cmp.Or(c.ARM64.Transport, boot.TransportPCI)
		}
	} else if c.ARM64.Transport == boot.TransportPCI {
		c.ARM64.Transport = "" // there is no other
	}
	switch {
	case strings.HasPrefix(g.console, "virtio"), strings.HasPrefix(g.console, "hv"):
		c.Console = vmm.VirtioConsole
	case g.console != "" && !strings.HasPrefix(g.console, "serial"):
		g.say(levelWarning, "No console!")
	}
	c.Raw, c.NoAuto, c.RNG, c.Kernel, c.Stdout = true, true, vmm.Off, g.kernel, g.stdout
	if g.rng {
		c.RNG = vmm.On
	}
	if !g.nodefaults && (arm || c.Image != "") {
		c.Params = g.params(arm)
	}
	if g.vsock != 0 {
		c.Vsock = &vmm.Vsock{CID: uint32(g.vsock), Path: filepath.Join(g.dir, c.Name+".vsock")}
		if g.vsock != uint64(c.Vsock.CID) {
			return fmt.Errorf("--vsock %d: a CID has 32 bits", g.vsock)
		}
		g.say(levelInfo, "vsock: connect to %s and say CONNECT PORT; the guest reaches %[1]s_PORT", c.Vsock.Path)
	}
	if g.dtb != "" {
		b, err := os.ReadFile(g.dtb)
		if err != nil {
			return fmt.Errorf("--dtb: %w", err)
		}
		c.ARM64.DTB = strings.NewReader(string(b))
	}
	if g.isRealm {
		if err := g.makeRealm(); err != nil {
			return err
		}
	}
	if g.affinity != "" {
		return setAffinity(g.affinity)
	}
	return nil
}

func (g *guest) makeRealm() (err error) {
	r := &g.realm
	if r.Hash, err = cca.ParseHash(cmp.Or(g.algorithm, "sha256")); err != nil {
		return fmt.Errorf("--measurement-algo: %w", err)
	}
	if g.sveVL%128 != 0 || g.sveVL > 2048 || g.sveVL != 0 && g.cfg.ARM64.NoSVE {
		return fmt.Errorf("--sve-vl %d: want a multiple of 128 bits up to 2048, and no --disable-sve", g.sveVL)
	}
	r.SVE, r.RPV = uint16(g.sveVL), []byte(g.personal)
	if r.PMU = g.cfg.ARM64.PMU; g.counters {
		if g.pmuCounters > 31 {
			return fmt.Errorf("--pmu-counters %d: there are at most 31", g.pmuCounters)
		}
		r.PMU, r.PMUCounters = true, uint8(g.pmuCounters)
	}
	g.cfg.Realm = r
	return nil
}

// params puts the kernel's command line together as kvmtool does.
func (g *guest) params(arm bool) string {
	user := g.cfg.Params
	line := "noapic noacpi pci=conf1 reboot=k panic=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 earlyprintk=serial i8042.noaux=1"
	if arm {
		line = ""
	}
	if g.cfg.Console == vmm.VirtioConsole {
		line += " console=hvc0"
	} else {
		line += " console=ttyS0"
	}
	switch {
	case g.root != "":
		line += " rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p"
		if g.rootName != "" {
			line += " init=/virt/init"
			if !g.noDHCP {
				line += "  ip=dhcp"
			}
		}
	case !strings.Contains(user, "root="):
		line += " root=/dev/vda rw "
	}
	if user != "" {
		line += " " + user
	}
	return line
}

// carry runs the machine.
func (g *guest) carry() (int, error) {
	levels := []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelWarn, slog.LevelDebug}
	g.cfg.Log = slog.New(slog.NewTextHandler(g.stderr, &slog.HandlerOptions{Level: levels[g.level]}))
	defer func() {
		for _, t := range g.taps {
			if t.name != "" && t.down != "none" {
				_ = exec.Command(t.down, t.name).Run() // the guest is gone; nobody waits for the answer
			}
		}
	}()
	for i := range g.taps {
		if err := g.taps[i].open(&g.cfg.Nets[g.taps[i].card]); err != nil {
			return 0, fmt.Errorf("--network: %w", err)
		}
	}
	outcome, signalled, err := cli.Carry(&g.cfg, 0, func(m *vmm.VM) error {
		g.reap(g.cfg.Name)
		err := m.Serve(g.dir)
		if err != nil && !g.named {
			g.say(levelWarning, "lkvm list does not see this machine: %v", err)
			return nil
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if outcome.Status == vmm.StatusCrashed {
		fmt.Fprint(g.stderr, outcome.Dump)
		g.say(levelError, "%s", outcome.Why)
	}
	if signalled || os.Getenv("GVMM_LKVM_STRICT") == "1" {
		return outcome.Status, nil
	}
	g.say(levelInfo, "KVM session ended normally.")
	return 0, nil
}

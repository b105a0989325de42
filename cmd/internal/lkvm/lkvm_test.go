package lkvm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

func newTool(t *testing.T) *tool {
	t.Helper()
	return &tool{stdout: io.Discard, stderr: io.Discard, dir: t.TempDir(), level: levelInfo}
}

// TestParse holds the parser to what kvmtool b48735e does with the same words.
func TestParse(t *testing.T) {
	type values struct {
		cpus    int
		name    string
		rng     bool
		noDHCP  bool
		network string
		restr   bool
	}
	for _, c := range []struct {
		args string
		want values
		rest string
		fail string
	}{
		{"-c2", values{cpus: 2}, "", ""},
		{"-c 2", values{cpus: 2}, "", ""},
		{"--cpus=2", values{cpus: 2}, "", ""},
		{"--cpus 0x10", values{cpus: 16}, "", ""},
		{"--cpus 010", values{cpus: 8}, "", ""},
		{"--cp 3", values{cpus: 3}, "", ""},
		{"-rc2", values{rng: true, cpus: 2}, "", ""},
		{"-rr", values{rng: true}, "", ""},
		{"--rng --no-rng", values{}, "", ""},
		{"--name=a=b", values{name: "a=b"}, "", ""},
		{"--name= -r", values{rng: true}, "", ""},
		{"--name --rng", values{name: "--rng"}, "", ""},
		{"--name a --no-name", values{}, "", ""},
		{"--no-dhcp", values{noDHCP: true}, "", ""},
		{"--no-no-dhcp", values{}, "", ""},
		{"-n mode=user", values{network: "mode=user"}, "", ""},
		{"-n", values{network: "default"}, "", ""},
		{"-n -r", values{network: "default", rng: true}, "", ""},
		{"--network=x", values{network: "x"}, "", ""},
		{"--restricted-mem", values{restr: true}, "", ""},
		{"--restricted_mem", values{restr: true}, "", ""},
		{"-r kernel -c2", values{rng: true}, "kernel -c2", ""},
		{"- -r", values{}, "- -r", ""},
		{"-r -- -c2", values{rng: true}, "-- -c2", ""},

		{"-c", values{}, "", "switch `c' requires a value"},
		{"--cpus", values{}, "", "option `cpus' requires a value"},
		{"-cx", values{}, "", `"x" is no number`},
		{"-c -1", values{}, "", `"-1" is no number`},
		{"--rng=1", values{}, "", "option `rng' takes no value"},
		{"--no-cpus=1", values{}, "", "option `no-cpus' takes no value"},
		{"--no-network", values{}, "", "option `no-network' isn't available"},
		{"--bogus", values{}, "", "unknown option `bogus'"},
		{"-z", values{}, "", "unknown switch `z'"},
		{"-rz", values{}, "", "unknown switch `z'"},
		{"--n 1", values{}, "", "Ambiguous option: n"},
		{"--r", values{}, "", "Ambiguous option: r (could be --rng or --restricted_mem)"},
		{"--help", values{}, "", "usage"},
		{"-h", values{}, "", "usage"},
		{"-rh", values{}, "", "usage"},
	} {
		var v values
		fallback := "default"
		network := call('n', "network", "params", "", func(s string) error { v.network = s; return nil })
		network.fallback = &fallback
		table := []option{title("All:"), number('c', "cpus", "", &v.cpus), text(0, "name", "n", "", &v.name), flag('r', "rng", "", &v.rng),
			flag(0, "no-dhcp", "", &v.noDHCP), network, flag(0, "restricted_mem", "", &v.restr)}
		rest, err := parse(table, strings.Fields(c.args))
		if c.fail != "" {
			wrong := misuse{}
			if !errors.As(err, &wrong) || wrong.error == nil != (c.fail == "usage") || wrong.error != nil && !strings.Contains(err.Error(), c.fail) {
				t.Errorf("%s: %v, want %q", c.args, wrong.error, c.fail)
			}
			continue
		}
		if err != nil || v != c.want || strings.Join(rest, " ") != c.rest {
			t.Errorf("%s: %+v, rest %q, %v; want %+v, rest %q", c.args, v, rest, err, c.want, c.rest)
		}
	}
}

// TestUsage: help names every option of kvmtool's, of its realm branches' too.
func TestUsage(t *testing.T) {
	for cmd, names := range map[string]string{
		"run": `--name -c,--cpus -m,--mem -d,--disk --balloon --vnc --gtk --sdl --rng --nodefaults --9p --console --vsock --dev --tty --sandbox
			--hugetlbfs --virtio-legacy --virtio-transport --loglevel -k,--kernel -i,--initrd -p,--params -f,--firmware -F,--flash -n,--network
			--no-dhcp --vfio-pci --debug --debug-single-step --debug-ioport --debug-mmio --debug-iodelay --vidmode --aarch32 --pmu --disable-mte
			--vcpu-affinity --kaslr-seed --no-pvtime --sve-max-vl --dump-dtb --override-bad-firmware-cntfrq --force-pci --irqchip
			--firmware-address --nested --e2h0 --pmu-counters --realm --measurement-algo --realm-pv --restricted_mem --disable-sve --sve-vl
			--measurement-log --dtb --pkvm`,
		"list": "-i,--run -r,--rootfs", "stop": "-a,--all -n,--name", "pause": "-a,--all -n,--name", "resume": "-a,--all -n,--name",
		"stat": "-m,--memory -a,--all -n,--name", "balloon": "-n,--name -i,--inflate -d,--deflate",
		"debug": "-a,--all -n,--name -d,--dump -m,--nmi -s,--sysrq", "setup": "", "sandbox": "--sandbox",
	} {
		t.Setenv("HOME", t.TempDir())
		for _, args := range [][]string{{cmd, "--help"}, {"help", cmd}} {
			var out, errs bytes.Buffer
			if status := Main(args, &out, &errs, kvm.Host{}); status != statusUsage || !strings.HasPrefix(errs.String(), "\n usage: lkvm "+cmd) {
				t.Errorf("%q: status %d, %q", args, status, errs.String())
			}
			for _, n := range strings.Fields(names) {
				if !strings.Contains(errs.String(), " "+strings.ReplaceAll(n, ",", ", ")+" ") && !strings.Contains(errs.String(), " "+n+"\n") {
					t.Errorf("%q does not name %s", args, n)
				}
			}
			for line := range strings.Lines(errs.String()) {
				if strings.HasPrefix(line, "    ") && !strings.HasPrefix(line, "    -") && !strings.HasPrefix(line, "        --") && !strings.HasPrefix(line, strings.Repeat(" ", 26)) {
					t.Errorf("%q: line %q", args, line)
				}
			}
		}
	}
}

// configure takes a command line as far as a VM's configuration.
func configure(t *testing.T, tl *tool, sandbox bool, args ...string) (*guest, error) {
	t.Helper()
	g := &guest{tool: tl, sandbox: sandbox}
	for _, step := range []func() error{func() error { return g.parse(g.options(), args) }, g.check, g.defaults, g.finish} {
		if err := step(); err != nil {
			return g, err
		}
	}
	return g, nil
}

func file(t *testing.T, name string, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	b := make([]byte, size)
	if name == "Image" {
		binary.LittleEndian.PutUint64(b[16:], 0x10000)
		copy(b[56:], "ARM\x64")
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDeviceTree takes kvmtool's command lines for arm64 to a device tree; boot's
// tests say where the sums are from.
func TestDeviceTree(t *testing.T) {
	image, disk, initrd := file(t, "Image", 128), file(t, "disk", 512), file(t, "initrd", 5000)
	for args, want := range map[string]string{
		"-c1 -m128 --nodefaults --network mode=none":                  "41818a4f4de49913032905e1a9bf330f4570a2cf168ddbb62a049767e3b5a05c",
		"-c1 -m512 -d DISK --network mode=none -p earlycon":           "28b1a466df5c0e5857348c93317685639215decd6519678e434a257bf73aa9d3",
		"-c20 -m300 --nodefaults --network mode=none --rng -p a_b":    "ea1e71241db9722a91f7ba5efa9bb3a358dce6746bde87abf7ae352689f3ff53",
		"-c1 -m256 --network mode=none -i INITRD":                     "d9f8a8429d5037e2a484a96f0c71b38712648adf52eede56a69bb290045b21bd",
		"-c1 -m128 --irqchip gicv2 -d DISK --network mode=none":       "0ce7911d0a7d7c65dcf54a6382f0eab1c8c628ab47f5a0f6f8d18a3cd2b733d8",
		"-c3 -m256 --irqchip gicv2 -d DISK --network mode=none --pmu": "519f94ecce67fb47d238fec3ffae007400fe5b1caefe466c282f64d7e1685f6e",
		"-c2 -m256M@2G --irqchip gicv3-its -d DISK,ro --network mode=none --pmu --no-pvtime --kaslr-seed 0x1122334455667788 -p console=ttyS0_x":                       "e40dffeb3e81b7365f45d65c4e406ec2f1faf4bbb5be2ef86d538f3097f23306",
		"-c3 -m1024 -d DISK -d DISK --9p DIR,fs0 --network mode=user --console virtio --rng --irqchip gicv3 -p root=/dev/vda_quiet --virtio-transport mmio -i INITRD": "3d19c5aec4f09ab8eeeb0f4e3ccfcb7050dd4d7aa30fe20ab40cbd150a845a55",
		"-c3 -m1024 -d DISK -d DISK --9p DIR,fs0 -n mode=user --console hv --rng --irqchip gicv3 --virtio-transport=pci -p root=/dev/vda_quiet -i INITRD":             "986e761d6785469f2af0089bddedb6ecb922d14b93fc757983f24c003c5ed9b3",
	} {
		tree := filepath.Join(t.TempDir(), "dtb")
		words := strings.Fields(strings.NewReplacer("DISK", disk, "INITRD", initrd, "DIR", t.TempDir()).Replace(args))
		for i := range words {
			if i > 0 && words[i-1] == "-p" {
				words[i] = strings.ReplaceAll(words[i], "_", " ")
			}
		}
		g, err := configure(t, newTool(t), false, append(words, "--dump-dtb", tree, image)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		in, err := vmm.Inspect(g.cfg)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		in.Close()
		b, err := os.ReadFile(tree)
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); err != nil || got != want {
			t.Errorf("lkvm run %s: another device tree than kvmtool's (parameters %q), %v", args, in.Plan.Cmdline, err)
		}
	}
}

// TestRealm takes the realm command lines of Arm's guides and of islet.
func TestRealm(t *testing.T) {
	image := file(t, "Image", 128)
	for _, args := range []string{
		"--realm --restricted_mem -c 2 -m 256 -k IMAGE -p earlycon",
		"--realm --disable-sve --irqchip=gicv3-its --no-pvtime --force-pci --measurement-algo=sha256 --restricted_mem -c 1 -m 512 -k IMAGE",
		"--debug --realm --measurement-algo=sha256 --disable-sve --console serial --irqchip=gicv3 --realm-pv=gateway --vcpu-affinity 0 --network mode=none --9p /,FMR -m 256M -c 1 -k IMAGE",
		"--console virtio -n mode=none --realm --sve-max-vl=512 -k IMAGE -c 2 -m 512 --virtio-transport pci --irqchip=gicv3-its --debug --measurement-log --restricted-mem --pmu",
		"--realm --measurement-algo=sha512 --pmu-counters 4 --sve-vl 256 -k IMAGE",
	} {
		tl := newTool(t)
		g, err := configure(t, tl, false, strings.Fields(strings.ReplaceAll(args, "IMAGE", image))...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		r := g.cfg.Realm
		if r == nil || strings.Contains(args, "sha512") != (r.Hash == 1) || strings.Contains(args, "gateway") != (string(r.RPV) == "gateway") ||
			strings.Contains(args, "--pmu") != r.PMU || strings.Contains(args, "vl=512") != (r.SVE == 512) || strings.Contains(args, "counters 4") != (r.PMUCounters == 4) {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

func TestDefaults(t *testing.T) {
	image := file(t, "kernel", 128)
	helper := file(t, "gvmm-net", 1) // without it there would be no network
	if err := os.Chmod(helper, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(helper))
	tl := newTool(t)
	g, err := configure(t, tl, false, image)
	if err != nil {
		t.Fatal(err)
	}
	c := &g.cfg
	if want := min(64<<20*uint64(onlineCPUs()+3), c.Memory); c.CPUs != min(onlineCPUs(), vmm.MaxCPUs) || c.Memory != want || c.Name != fmt.Sprintf("guest-%d", os.Getpid()) || c.RNG != vmm.Off {
		t.Errorf("%d vCPUs, %d bytes, %q", c.CPUs, c.Memory, c.Name)
	}
	root := filepath.Join(tl.dir, "default")
	if want := []vmm.Share{{Dir: root, Tag: "/dev/root"}, {Dir: "/", Tag: "hostfs", ReadOnly: true}}; !slices.Equal(c.Shares, want) {
		t.Errorf("shares %+v", c.Shares)
	}
	if len(c.Nets) != 1 || !c.Nets[0].User || c.Nets[0].Guest != netip.MustParseAddr("192.168.33.15") || c.Nets[0].MAC != "02:15:15:15:15:15" {
		t.Errorf("networks %+v", c.Nets)
	}
	const x86 = "noapic noacpi pci=conf1 reboot=k panic=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 earlyprintk=serial i8042.noaux=1"
	for args, want := range map[string]string{
		"":                         x86 + " console=ttyS0 rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p init=/virt/init  ip=dhcp",
		"--no-dhcp --console hv":   x86 + " console=hvc0 rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p init=/virt/init",
		"-d KERNEL -p quiet":       x86 + " console=ttyS0 root=/dev/vda rw  quiet",
		"-d KERNEL -p root=/dev/b": x86 + " console=ttyS0 root=/dev/b",
		"-d DIR -p x":              x86 + " console=ttyS0 rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p x",
		"--nodefaults -p x":        "x",
		"--nodefaults":             "",
	} {
		words := strings.Fields(strings.NewReplacer("KERNEL", image, "DIR", t.TempDir()).Replace(args))
		if g, err := configure(t, newTool(t), false, append(words, image)...); err != nil || g.cfg.Params != want {
			t.Errorf("%s: %v\n%q, want\n%q", args, err, g.cfg.Params, want)
		}
	}
	for args, want := range map[string]string{ // what there is: disks, networks, shares
		"":                               "0 1 2",
		"--nodefaults":                   "0 0 0",
		"-n mode=none":                   "0 0 2",
		"-d KERNEL":                      "1 1 0",
		"-i KERNEL":                      "0 1 0",
		"-i KERNEL -n mode=user":         "0 1 0",
		"-n tapif=a -n tapif=b --9p /,x": "0 2 3",
		"--network virtio":               "0 1 2",
	} {
		g, err := configure(t, newTool(t), false, append(strings.Fields(strings.ReplaceAll(args, "KERNEL", image)), "-k", image)...)
		if got := fmt.Sprint(len(g.cfg.Disks), " ", len(g.cfg.Nets), " ", len(g.cfg.Shares)); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", args, got, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	image := file(t, "kernel", 128)
	for args, want := range map[string]string{
		"-m 0": "Invalid RAM size: 0", "-m 5X": "Invalid memory specifier: 5X", "-m 1GB": "Invalid memory specifier: 1GB", "-m 99999999P": "Memory too large",
		"-m 1G@1G": "RAM lies at", "-m 1G@": "Invalid memory specifier", "--9p /nonexistent,x": "Failed resolving 9p path",
		"-n mode=x": "Unknown network mode x", "-n color=red": "Unknown network parameter color", "-n mode=user -n mode=user": "Only one usermode", "-n fd=3": "tapif=",
		"-d a -d b -d c -d d -d e": "only 4 images", "-d scsi:naa.5": "SCSI", "-d / -d /tmp": "only one rootfs", "--loglevel loud": "Unknown loglevel",
		"--irqchip gicv2m": "gicv3-its", "--irqchip x": "unknown type", "--virtio-transport x": "unknown type", "--vfio-pci 1:2.3": "--vfio-pci", "--sdl": "framebuffer",
		"-F a": "--flash", "--aarch32": "AArch64", "--nested": "EL2", "--pkvm": "--realm", "--measurement-algo sha256": "only with --realm", "--pmu-counters 0": "only with --realm",
		"--realm --measurement-algo md5": "--measurement-algo", "--realm --sve-vl 100": "128 bits", "--realm --sve-vl 256 --disable-sve": "--disable-sve",
		"--realm --pmu-counters 32": "at most 31", "--vcpu-affinity 3-1": "no list of processors", "--dev /dev/x": "/dev/kvm", "--vsock 5000000000": "32 bits", "--firmware a": "Only one of",
	} {
		if _, err := configure(t, newTool(t), false, append(strings.Fields(args), "--nodefaults", "-k", image)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestSandbox takes syzkaller's calls and those of ALT Linux' package.
func TestSandbox(t *testing.T) {
	image, script := file(t, "kernel", 128), file(t, "script.sh", 1)
	tl := newTool(t)
	if err := tl.makeRoot("syz"); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(tl.dir, "syz/virt/sandbox.sh")
	if _, err := configure(t, tl, true, "--disk", "syz", "--kernel", image, "--params", "a b", "--mem", "512", "--cpus", "1", "--network", "mode=user", "--sandbox", script); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(at); err != nil || got != "/host"+script {
		t.Error(got, err)
	}
	for _, args := range [][]string{{"-m", "1024", "-i", image, "-d", "syz", "-n", "mode=none", "-k", image, "--", "bash", "-xc", "a 'b' -c"}, {"-d", "syz", "-k", image, "bash", "-xc", "a 'b' -c"}} {
		g, err := configure(t, tl, true, args...)
		if err != nil || g.cfg.Name != "syz" {
			t.Error(g.cfg.Name, err)
		}
		if b, err := os.ReadFile(at); err != nil || string(b) != "#!/bin/sh\n'bash' '-xc' 'a '\"'\"'b'\"'\"' -c'\n" {
			t.Errorf("%q, %v", b, err)
		}
	}
	if got := shellScript([]string{script, ""}); got != "#!/bin/sh\n'/host"+script+"' ''\n" {
		t.Errorf("%q", got)
	}
	if _, err := configure(t, tl, false, "-d", "syz", "-k", image); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(at); !os.IsNotExist(err) {
		t.Error("a run without a sandbox would run the last one: ", err)
	}
	if _, err := configure(t, tl, true, "--sandbox", script, "more"); err == nil {
		t.Error("a script and a command")
	}
	for _, name := range []string{"..", "a/b", ".", "", "/x"} {
		if err := tl.makeRoot(name); err == nil {
			t.Errorf("root file system %q was made", name)
		}
	}
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/gvmm/gvmm/integration/lab/wire"
)

// The CET lab: Bochs emulates a processor with CET and VMX, and a Debian kernel
// whose KVM gives CET to guests (6.18 and later) runs on it. Only Bochs 3.0 will
// do: 2.7 and 3.1 do not boot such a kernel.
const (
	cetSuite       = "trixie"           // has Bochs 3.0
	cetKernelSuite = "trixie-backports" // has the kernel
	cetMiB         = 1024

	// One TSC tick an instruction, and the kernel told so: calibration would
	// double the instructions of a boot.
	bochsKHz = 50_000
)

var cetModules = []string{"kvm_intel"}

// cetParams are the lab's kernel's. Bochs 3.0 restores CET state from the wrong
// place when the kernel saves protection keys too (nopku), and wants posted
// interrupts page-aligned (no APICv).
var cetParams = fmt.Sprintf("console=ttyS0 quiet nokaslr mitigations=off panic=-1 nopku tsc=reliable tsc_early_khz=%d "+
	"8250.nr_uarts=2 cryptomgr.notests random.trust_cpu=on kvm_intel.enable_apicv=0 lab.agent=/dev/ttyS1", bochsKHz)

// bochsConfig is filled with the share folder, the lab's folder and the two terminals.
const bochsConfig = `display_library: term
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, gameport=0
cpu: model=tigerlake, count=1, ips=%[1]d, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=%[2]d, host=%[2]d, block_size=%[3]d
romimage: file=%[4]s/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=%[4]s/vgabios/vgabios.bin
optromimage1: file=%[5]s/rom, address=%#[6]x
optramimage1: file=%[5]s/rom, address=0
optramimage2: file=%[5]s/rom, address=%#[7]x
optramimage3: file=%[5]s/boot, address=%#[8]x
com1: enabled=1, mode=term, dev=%[9]s
com2: enabled=1, mode=term, dev=%[10]s
log: %[5]s/log
panic: action=fatal
error: action=ignore
info: action=ignore
clock: sync=none
pci: enabled=1, chipset=i440fx
`

// unpack unpacks every package of a folder into another.
func unpack(ctx context.Context, from, to string) error {
	found, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("%w: apt-get left no packages in %s", ErrUnavailable, from)
	}
	for _, f := range found {
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", f, to).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg -x %s: %w: %s", f, err, tail(out))
		}
	}
	return nil
}

// cetParts fetches Bochs and the kernel, or takes them from the cache. It
// returns Bochs's root folder.
func cetParts(ctx context.Context) (bochs string, k *Kernel, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", nil, err
	}
	unlock, err := lock(cache)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	dir := filepath.Join(cache, "cet-lab")
	bochs = filepath.Join(dir, "bochs")
	k = &Kernel{Image: filepath.Join(dir, "linux", "vmlinuz"), modules: filepath.Join(dir, "linux", "kernel"), arch: "amd64"}
	if _, err := os.Stat(dir); err == nil {
		return bochs, k, nil
	}
	tmp, err := os.MkdirTemp(cache, ".fetch")
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	d, err := newDebs(ctx, tmp, "amd64", cetSuite, cetKernelSuite)
	if err != nil {
		return "", nil, err
	}
	if err := d.fetchBochs(ctx, tmp); err != nil {
		return "", nil, fmt.Errorf("fetch Bochs: %w", err)
	}
	if err := d.fetchKernel(ctx, tmp); err != nil {
		return "", nil, fmt.Errorf("fetch the CET lab's kernel: %w", err)
	}
	return bochs, k, os.Rename(filepath.Join(tmp, "ready"), dir)
}

// fetchBochs unpacks Bochs with all the libraries it wants into tmp/ready/bochs.
func (d *debs) fetchBochs(ctx context.Context, tmp string) error {
	err := d.apt(ctx, "", "install", "--download-only", "--no-install-recommends", "-y", "-t", cetSuite,
		"bochs-term", "bochs", "bochsbios", "vgabios")
	if err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	if err := unpack(ctx, filepath.Join(tmp, "cache", "archives"), root); err != nil {
		return err
	}
	for _, sub := range []string{"usr/bin", "usr/lib", "usr/lib64", "usr/share/bochs", "usr/share/vgabios"} {
		to := filepath.Join(tmp, "ready", "bochs", sub)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(root, sub), to); err != nil {
			return err
		}
	}
	return nil
}

// fetchKernel unpacks the newest kernel's image and modules into tmp/ready/linux.
func (d *debs) fetchKernel(ctx context.Context, tmp string) error {
	cmd := exec.CommandContext(ctx, "apt-cache", append(d.options, "-o", "APT::Default-Release="+cetKernelSuite, "depends", CloudKernel)...)
	out, err := cmd.Output()
	m := imagePackage.FindSubmatch(out)
	if m == nil {
		return errors.Join(fmt.Errorf("%w: %s has no %s", ErrUnavailable, cetKernelSuite, CloudKernel), err)
	}
	dir, root := filepath.Join(tmp, "kernel"), filepath.Join(tmp, "kernel", "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, kind := range []string{"linux-binary", "linux-modules"} {
		if err := d.apt(ctx, dir, "download", strings.Replace(string(m[1]), "linux-image", kind, 1)); err != nil {
			return err
		}
	}
	if err := unpack(ctx, dir, root); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%w: %s holds %d kernels", ErrUnavailable, m[1], len(found))
	}
	if out, err := exec.CommandContext(ctx, "find", found[0], "-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+").CombinedOutput(); err != nil {
		return fmt.Errorf("unpack modules (xz is needed): %w: %s", err, tail(out))
	}
	return os.Rename(found[0], filepath.Join(tmp, "ready", "linux"))
}

// CETKernel returns the kernel of the CET lab.
func CETKernel(ctx context.Context) (*Kernel, error) {
	_, k, err := cetParts(ctx)
	return k, err
}

// StartCET boots the CET lab with the given files of this machine in it: they
// are there from the start, while every other file goes over a slow line. It
// fails with [ErrUnavailable] where the lab's parts cannot be had.
func StartCET(ctx context.Context, files ...string) (_ *Machine, err error) {
	bochs, kernel, err := cetParts(ctx)
	if err != nil {
		return nil, err
	}
	l, err := newMachine()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	extra := map[string]string{}
	for i, f := range files {
		abs, err := filepath.Abs(f)
		if err != nil {
			return nil, err
		}
		l.put[abs] = fmt.Sprintf("/files/%d/%s", i, filepath.Base(abs))
		extra[l.put[abs]] = abs
	}
	initrd := filepath.Join(l.dir, "host.cpio")
	if err := kernel.Initramfs(ctx, initrd, extra, cetModules...); err != nil {
		return nil, err
	}
	if err := bootFiles(l.dir, kernel.Image, initrd, cetParams); err != nil {
		return nil, err
	}
	var lines [2]*os.File // the host's ends of COM1 and COM2
	var names [2]string
	for i := range lines {
		ptmx, pts, err := openTerminal()
		if err != nil {
			return nil, err
		}
		l.close = append(l.close, pts, ptmx) // an open pts keeps the line up
		if _, err := term.MakeRaw(int(pts.Fd())); err != nil {
			return nil, err
		}
		lines[i], names[i] = ptmx, pts.Name()
	}
	rc := filepath.Join(l.dir, "bochsrc")
	config := fmt.Sprintf(bochsConfig, bochsKHz*1000, cetMiB, blockMiB<<10,
		filepath.Join(bochs, "usr/share"), l.dir, romAt, topAt, bootAt, names[0], names[1])
	if err := os.WriteFile(rc, []byte(config), 0o644); err != nil {
		return nil, err
	}
	lib := filepath.Join(bochs, "usr/lib/x86_64-linux-gnu")
	l.emulator, err = New(Local{}, []string{filepath.Join(bochs, "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", lib,
		filepath.Join(bochs, "usr/bin/bochs-bin"), "-q", "-f", rc},
		WithTerminal(), WithEnv("LTDL_LIBRARY_PATH="+filepath.Join(lib, "bochs/plugins"), "TERM=linux", "HOME="+l.dir))
	if err != nil {
		return nil, err
	}
	go func() { // the lines end with Bochs
		<-l.emulator.done
		for _, c := range l.close {
			_ = c.Close()
		}
	}()
	// Bochs shows its screen on a terminal it opens itself, and stands still
	// when nobody takes what it writes there.
	m, err := l.emulator.Console().ExpectMatch(regexp.MustCompile(`connected to screen "([^"]+)"`), time.Minute)
	if err != nil {
		return nil, fmt.Errorf("CET lab: Bochs does not start: %w", err)
	}
	screen, err := os.OpenFile(m[1], os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if _, err := term.MakeRaw(int(screen.Fd())); err != nil {
		return nil, errors.Join(err, screen.Close())
	}
	go func() {
		_, _ = io.Copy(io.Discard, screen) // ends with Bochs
		_ = screen.Close()
	}()
	l.console = &Console{}
	go func() {
		_, _ = io.Copy(l.console, lines[0])
		_ = l.console.Close()
	}()
	l.conn = wire.NewConn(lines[1])
	return l, l.await(ctx, 10*time.Minute)
}

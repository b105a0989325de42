package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// loaded is a launch plan with the files its regions are read from.
type loaded struct {
	plan  *boot.Plan
	image *boot.Image
	files []*os.File
}

func (l *loaded) Close() error {
	for _, f := range l.files {
		_ = f.Close() // opened for reading
	}
	return nil
}

// symbols returns what names the image's ELF file has for addresses, nil if none.
func (l *loaded) symbols() *cet.ELF {
	st, err := l.files[0].Stat()
	if err != nil {
		return nil
	}
	e, err := cet.OpenELF(l.files[0], st.Size())
	if err != nil {
		return nil
	}
	return e
}

// open opens a regular file for reading and returns its size. It does not wait
// for a FIFO's other end.
func (l *loaded) open(path string) (*os.File, int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("open %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	l.files = append(l.files, f)
	return f, st.Size(), nil
}

// Inspection is what `gvmm inspect` tells: the image, and the plan with which
// it would start.
type Inspection struct {
	Image *boot.Image
	Plan  *boot.Plan
	CET   *cet.Report // what of CET the image can bear
	l     *loaded
}

// Close releases the files behind the plan.
func (i *Inspection) Close() { _ = i.l.Close() }

// Inspect makes the launch plan of a configuration without touching KVM.
func Inspect(cfg Config) (*Inspection, error) {
	if err := cfg.prepare(); err != nil {
		return nil, err
	}
	l, err := loadPlan(&cfg)
	if err != nil {
		return nil, err
	}
	return &Inspection{Image: l.image, Plan: l.plan, CET: l.lint(), l: l}, nil
}

// lint judges the image file as it is: a compressed one is opaque.
func (l *loaded) lint() *cet.Report {
	st, err := l.files[0].Stat()
	if err != nil {
		return cet.Lint(l.files[0], 0)
	}
	return cet.Lint(l.files[0], st.Size())
}

// loadPlan opens the configuration's image and makes the launch plan. What the
// image decides (memory, machine, random numbers) is settled in cfg.
func loadPlan(cfg *Config) (*loaded, error) {
	l := &loaded{}
	if err := l.load(cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *loaded) load(cfg *Config) error {
	opts := boot.Options{
		CPUs: cfg.CPUs, Machine: cfg.Machine, Params: cfg.Params, Args: cfg.Args, Raw: cfg.Raw,
		Name: filepath.Base(cfg.Image), Unnamed: cfg.Unnamed,
	}
	if err := l.openImage(cfg, &opts); err != nil {
		return err
	}
	if cfg.Initrd != "" {
		f, size, err := l.open(cfg.Initrd)
		if err != nil {
			return fmt.Errorf("--initrd: %w", err)
		}
		opts.Initrd = io.NewSectionReader(f, 0, size)
	}
	if cfg.Memory == 0 {
		cfg.Memory = l.image.DefaultMemory()
	}
	opts.Memory = cfg.Memory
	if cfg.Machine == "" || cfg.Machine == boot.MachineAuto {
		cfg.Machine = l.image.Machine
	}
	if cfg.RNG == Auto {
		cfg.RNG = On
		if l.image.Unikraft || cfg.Machine == boot.MachineLKVM {
			cfg.RNG = Off // Unikraft reads RDRAND, and complains of devices it has no driver for; kvmtool gives none unasked
		}
	}
	if a := cfg.ARM64; l.image.Arch != boot.ARM64 && (a.IRQChip != "" || a.Transport != "" || a.PMU) {
		return fmt.Errorf("%s: --irqchip, --virtio-transport and --pmu are for arm64 guests, this is an %s one", cfg.Image, l.image.Arch)
	}
	opts.ARM64 = cfg.ARM64
	opts.ARM64.Devices = cfg.deviceCount()
	opts.ARM64.HVC, opts.ARM64.Bare = cfg.Console == VirtioConsole, cfg.NoAuto
	for i := range cfg.deviceCount() {
		if l.image.Arch == boot.ARM64 {
			break // its machines place devices themselves
		}
		var ok bool
		if cfg.Machine == boot.MachineMicroVM {
			var d boot.MMIODevice
			d, ok = boot.MMIOSlot(i)
			opts.MMIO = append(opts.MMIO, d)
		} else {
			var d boot.PCIDevice
			d, ok = cfg.pciSlot(i)
			opts.PCI = append(opts.PCI, d)
		}
		if !ok {
			return fmt.Errorf("%d devices: more than the machine %s has room for", cfg.deviceCount(), cfg.Machine)
		}
	}
	if l.image.Unikraft && !cfg.NoAuto {
		opts.Auto = autoParams(cfg)
	}
	if cfg.SNP != nil {
		opts.SNP = &boot.SNP{CBit: cmp.Or(cfg.SNP.CBit, defaultCBit)}
	}
	var err error
	if l.plan, err = l.image.Plan(opts); err != nil {
		return fmt.Errorf("%s: %w", cmp.Or(cfg.Image, cfg.Firmware), err)
	}
	if cfg.DumpDTB != "" {
		if err := dumpDTB(l.plan, cfg.DumpDTB); err != nil {
			return fmt.Errorf("--dump-dtb: %w", err)
		}
	}
	if l.plan.Firmware != nil {
		hash := sev.PlanHashes
		if cfg.SNP != nil {
			hash = sev.PlanFirmware
		}
		if err := hash(l.plan); err != nil {
			return fmt.Errorf("--firmware %s: %w", cfg.Firmware, err)
		}
	}
	if cfg.CETPreset != "" {
		if err := l.presetCET(cfg); err != nil {
			return fmt.Errorf("--cet-preset %s: %s: %w", cfg.CETPreset, cfg.Image, err)
		}
	}
	return nil
}

// defaultCBit is the C-bit of every EPYC processor from Naples to Turin with SNP.
const defaultCBit = 51

// openImage opens the image, or the firmware and what it is to boot.
func (l *loaded) openImage(cfg *Config, opts *boot.Options) error {
	f, size, err := l.open(cmp.Or(cfg.Firmware, cfg.Image))
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if cfg.Firmware == "" {
		if l.image, err = boot.OpenLimit(f, size, max(cfg.Memory, boot.DefaultMemoryLinux)); err != nil {
			return fmt.Errorf("%s: %w", cfg.Image, err)
		}
		return nil
	}
	open := boot.OpenFirmware
	if cfg.Machine == boot.MachineLKVM {
		open = boot.OpenFirmwareARM64
	}
	if l.image, err = open(f, size); err != nil {
		return fmt.Errorf("--firmware %s: %w", cfg.Firmware, err)
	}
	if cfg.Image != "" && cfg.Machine == boot.MachineLKVM {
		return errors.New("--firmware: on lkvm it boots a disk: leave the kernel out")
	}
	if cfg.Image != "" {
		if f, size, err = l.open(cfg.Image); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		opts.Kernel = io.NewSectionReader(f, 0, size)
	}
	return nil
}

// pciSlot is the place of the i-th PCI device. Firmware has its chipset in slot 1.
func (c *Config) pciSlot(i int) (boot.PCIDevice, bool) {
	if c.Firmware != "" {
		i++
	}
	return boot.PCISlot(i)
}

// presetCET changes the plan so that the guest starts with CET on, unless the
// image cannot bear it.
func (l *loaded) presetCET(cfg *Config) error {
	set := l.plan.SetIBT
	if cfg.CETPreset == cet.PresetShadowStack {
		set = l.plan.SetShadowStack
	}
	if err := set(); err != nil {
		return err
	}
	warnings, err := l.lint().Bears(cfg.CETPreset)
	for _, w := range warnings {
		cfg.Log.Warn("--cet-preset "+string(cfg.CETPreset), "image", cfg.Image, "lint", w)
	}
	return err
}

// dumpDTB writes the plan's device tree to a file.
func dumpDTB(p *boot.Plan, path string) error {
	tree := p.DeviceTree()
	if tree == nil {
		return fmt.Errorf("an %s guest gets no device tree", p.Arch)
	}
	b, err := io.ReadAll(io.NewSectionReader(tree, 0, tree.Size()))
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o666)
}

// deviceCount is the number of virtio devices of the configuration.
func (c *Config) deviceCount() int {
	n := len(c.Disks) + len(c.Nets) + len(c.Shares)
	if c.Console == VirtioConsole {
		n++
	}
	for _, there := range []bool{c.RNG == On, c.Balloon, c.Vsock != nil} {
		if there {
			n++
		}
	}
	return n
}

// userNetIP is the guest's address on the user network as Unikraft wants it:
// address, gateway, name server (package usernet's default plan).
const userNetIP = "10.0.2.15/24:10.0.2.2:10.0.2.3"

// autoParams are the library parameters that spare a Unikraft user the most
// common -a: the address of the first network, and what to mount. The initrd,
// or else the first share, is the root; the other shares lie at /TAG.
func autoParams(cfg *Config) []string {
	var params []string
	if len(cfg.Nets) > 0 && cfg.Nets[0].User {
		params = append(params, "netdev.ip="+userNetIP)
	}
	var mounts []string
	if cfg.Initrd != "" {
		mounts = append(mounts, `"initrd0:/:extract::ramfs=2:"`)
	}
	for _, s := range cfg.Shares {
		at := "/"
		if len(mounts) > 0 {
			at = "/" + s.Tag
		}
		flags := ""
		if s.ReadOnly {
			flags = "0x1" // MS_RDONLY
		}
		mounts = append(mounts, fmt.Sprintf(`"%s:%s:9pfs:%s::mkmp"`, s.Tag, at, flags))
	}
	if len(mounts) > 0 {
		params = append(params, "vfs.fstab=[ "+strings.Join(mounts, " ")+" ]")
	}
	return params
}

// prepare fills in defaults and checks the configuration.
func (c *Config) prepare() error {
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Console == "" {
		c.Console = SerialConsole
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Kernel == nil {
		c.Kernel = kvm.Host{}
	}
	image := cmp.Or(c.Image, c.Firmware)
	if image == "" {
		return errors.New("no image given")
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("%s-%d", filepath.Base(image), os.Getpid())
	}
	return c.check()
}

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/vmm"
)

const measureCCAUsage = `usage: gvmm measure cca [flags] IMAGE
       gvmm measure cca --machine lkvm --dtb FILE [flags] IMAGE

Prints the Realm Initial Measurement (RIM), in hex, of the Arm CCA realm that
"gvmm run --realm" with the same flags launches from IMAGE, an arm64 Image: the
flags of run are taken, and those that decide nothing make no difference. With
--dtb it is the realm that "lkvm run --realm" of kvmtool launches, and FILE the
device tree that "lkvm run ... --dump-dtb FILE" writes; command line, vCPUs and
devices are in it. Nothing is started and no KVM is needed. With --explain the
RIM is followed by every RMI call that extends it.

  gvmm measure cca -M 512M -c 2 -d disk.img -i root.cpio Image
  gvmm measure cca --machine lkvm -M 256M -i root.cpio --dtb realm.dtb Image

What the host's RMM decides is given as it is there: --bps and --wps (most Arm
cores have 6 and 4, so 5 and 3), --lpa2, --rmm. --realm=abi=NAME measures in the
order of that interface of the kernel, under the RMM that goes with it.

`

// measureCCA is `gvmm measure cca`.
func measureCCA(args []string, stdout io.Writer) error {
	var cfg vmm.Config
	var given cca.Params // by flags of their own
	var hash, dtb, ripas string
	var explain, asJSON bool
	var rmm int
	fs := newFlags("measure cca", measureCCAUsage, stdout)
	finish := machineFlags(fs, &cfg)
	fs.StringVar(&dtb, "dtb", "", "device tree `FILE` as kvmtool wrote it")
	fs.StringVar(&hash, "hash", "sha256", "measurement algorithm: `sha256|sha512`")
	fs.Uint8Var(&given.IPABits, "ipa-bits", 0, "`WIDTH` of the realm's address space (default: what RAM needs, 33 or more)")
	fs.BoolVar(&given.LPA2, "lpa2", false, "the realm has LPA2")
	fs.Uint8Var(&given.Breakpoints, "bps", 5, "breakpoints as in ID_AA64DFR0_EL1, the `COUNT` minus one")
	fs.Uint8Var(&given.Watchpoints, "wps", 3, "watchpoints, likewise: the `COUNT` minus one")
	fs.Uint16Var(&given.SVE, "sve-vl", 0, "SVE vector length in `BITS` (default: no SVE)")
	fs.Uint8Var(&given.PMUCounters, "pmu-counters", 0, "the realm has a PMU with this `NUMBER` of event counters")
	fs.IntVar(&rmm, "rmm", 0, "`MAJOR` version of the RMM specification: 1 or 2 (default: 1, or what goes with --realm=abi=)")
	fs.StringVar(&ripas, "ripas", "all", "with --dtb: what is RAM from the start, `all|bss` (bss: only the kernel's BSS, as kvmtool's cca/v2 has it)")
	fs.BoolVar(&explain, "explain", false, "print every step of the measurement")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	help, err := parse(fs, args, func(args []string, dash int) (err error) {
		if err := finish(args, dash); err != nil {
			return err
		}
		if cfg.Realm == nil {
			cfg.Realm = new(cca.Config)
		}
		p := &cfg.Realm.Params
		p.LPA2, p.Breakpoints, p.Watchpoints = given.LPA2, given.Breakpoints, given.Watchpoints
		if fs.Changed("ipa-bits") {
			p.IPABits = given.IPABits
		}
		if fs.Changed("sve-vl") {
			p.SVE = given.SVE
		}
		if fs.Changed("pmu-counters") {
			p.PMU, p.PMUCounters = true, given.PMUCounters
		}
		if fs.Changed("hash") {
			if p.Hash, err = cca.ParseHash(hash); err != nil {
				return usageError{fmt.Errorf("--hash: %w", err)}
			}
		}
		if err := cfg.Realm.Check(); err != nil {
			return usageError{fmt.Errorf("--realm: %w", err)}
		}
		rmm = cmp.Or(rmm, int(cfg.Realm.Version()), int(cca.RMM1))
		switch {
		case cfg.ARM64.PMU && !p.PMU:
			return usageError{errors.New("--pmu: it is measured with how many counters it has: give --pmu-counters")}
		case dtb != "" && cfg.Machine != boot.MachineLKVM:
			return usageError{fmt.Errorf("--dtb goes with --machine lkvm: the device tree of machine %s is gvmm's own", cfg.Machine)}
		case ripas != "all" && (ripas != "bss" || dtb == ""):
			return usageError{fmt.Errorf("--ripas %q: give all or bss, and bss only with --dtb", ripas)}
		}
		return nil
	})
	if help || err != nil {
		return err
	}
	launch, closeFiles, err := realmLaunch(&cfg, dtb, ripas == "bss")
	if err == nil {
		defer closeFiles()
		err = printRIM(stdout, launch, cca.Version(rmm), explain, asJSON)
	}
	if err != nil {
		return fmt.Errorf("measure cca: %w", err)
	}
	return nil
}

// realmLaunch returns the launch of gvmm's own plan, or where dtb is given of
// kvmtool's. The files behind it stay open until they are closed.
func realmLaunch(cfg *vmm.Config, dtb string, bssOnly bool) (*cca.Launch, func(), error) {
	if dtb == "" {
		i, err := vmm.Inspect(*cfg)
		if err != nil {
			return nil, nil, err
		}
		l, err := cca.PlanLaunch(i.Plan, cfg.Realm)
		if err != nil {
			i.Close()
		}
		return l, i.Close, err
	}
	l := cca.LKVM{Params: cfg.Realm.Params, RAM: cfg.Memory, BSSOnly: bssOnly}
	var files []*os.File
	closeFiles := func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, f := range []struct {
		what, path string
		blob       *boot.Blob
	}{{"kernel", cfg.Image, &l.Kernel}, {"initrd", cfg.Initrd, &l.Initrd}, {"device tree", dtb, &l.DTB}} {
		if f.path == "" {
			continue
		}
		file, blob, err := openBlob(f.path)
		if err != nil {
			closeFiles()
			return nil, nil, fmt.Errorf("%s: %w", f.what, err)
		}
		files, *f.blob = append(files, file), blob
	}
	launch, err := l.Launch()
	if err != nil {
		closeFiles()
		return nil, nil, err
	}
	launch.Order(cfg.Realm.ABI)
	return launch, closeFiles, nil
}

// openBlob opens a regular file. The caller closes it.
func openBlob(path string) (*os.File, boot.Blob, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // waits for no FIFO's other end
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, io.NewSectionReader(f, 0, fi.Size()), nil
}

// printRIM measures a realm and prints the RIM first.
func printRIM(w io.Writer, launch *cca.Launch, v cca.Version, explain, asJSON bool) error {
	var steps []string
	var trace func(string, cca.Step)
	if explain {
		trace = func(name string, s cca.Step) { steps = append(steps, fmt.Sprintf("%v (%s)", s, name)) }
	}
	rim, err := launch.Measure(v, trace)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(w, struct {
			RIM     string   `json:"rim"`
			IPABits uint8    `json:"ipa_bits"`
			Steps   []string `json:"steps,omitempty"`
		}{fmt.Sprintf("%x", rim), launch.Params.IPABits, steps})
	}
	_, err = fmt.Fprintf(w, "%x\n%s", rim, strings.Join(append(steps, ""), "\n"))
	return err
}

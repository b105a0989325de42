package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/vmm"
)

const measureCCAUsage = `usage: gvmm measure cca --machine lkvm --dtb FILE [flags] IMAGE

Prints the Realm Initial Measurement (RIM), in hex, of the Arm CCA realm that
"lkvm run --realm" of kvmtool launches from IMAGE, an uncompressed arm64 Image.
Nothing is started and no KVM is needed. Memory, initrd and the device tree
decide it; command line, vCPUs and devices are in the device tree, which
"lkvm run ... --dump-dtb FILE" writes. With --explain the RIM is followed by
every RMI call that extends it.

  gvmm measure cca --machine lkvm -M 256M -i root.cpio --dtb realm.dtb Image
  gvmm measure cca --machine lkvm --dtb realm.dtb --hash sha512 --bps 5 --wps 3 Image

What the host's RMM decides is given as it is there: --bps and --wps (most Arm
cores have 6 and 4, so 5 and 3), --sve-vl and --pmu-counters where the realm has
SVE or a PMU, --rmm.

`

// measureCCA is `gvmm measure cca`.
func measureCCA(args []string, stdout io.Writer) error {
	var cfg vmm.Config
	var hash, dtb, ripas string
	var explain, asJSON bool
	var rmm int
	l := cca.LKVM{}
	p := &l.Params
	fs := newFlags("measure cca", measureCCAUsage, stdout)
	finish := machineFlags(fs, &cfg)
	fs.StringVar(&dtb, "dtb", "", "device tree `FILE` as kvmtool wrote it")
	fs.StringVar(&hash, "hash", "sha256", "measurement algorithm: `sha256|sha512`")
	fs.Uint8Var(&p.IPABits, "ipa-bits", 0, "`WIDTH` of the realm's address space (default: what kvmtool asks for, 33 or more)")
	fs.BoolVar(&p.LPA2, "lpa2", false, "the realm has LPA2")
	fs.Uint8Var(&p.Breakpoints, "bps", 5, "breakpoints as in ID_AA64DFR0_EL1, the `COUNT` minus one")
	fs.Uint8Var(&p.Watchpoints, "wps", 3, "watchpoints, likewise: the `COUNT` minus one")
	fs.Uint16Var(&p.SVE, "sve-vl", 0, "SVE vector length in `BITS` (default: no SVE)")
	fs.Uint8Var(&p.PMUCounters, "pmu-counters", 0, "the realm has a PMU with this `NUMBER` of event counters")
	fs.IntVar(&rmm, "rmm", 1, "`MAJOR` version of the RMM specification: 1 or 2")
	fs.StringVar(&ripas, "ripas", "all", "what is RAM from the start: `all|bss` (bss: only the kernel's BSS, as kvmtool's cca/v2 has it)")
	fs.BoolVar(&explain, "explain", false, "print every step of the measurement")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	help, err := parse(fs, args, func(args []string, dash int) (err error) {
		if err := finish(args, dash); err != nil {
			return err
		}
		p.PMU = fs.Changed("pmu-counters")
		switch p.Hash, err = cca.ParseHash(hash); {
		case err != nil:
			return usageError{fmt.Errorf("--hash: %w", err)}
		case cfg.Machine != "lkvm":
			return usageError{fmt.Errorf("--machine %s: only kvmtool's realms can be measured yet: give --machine lkvm", cfg.Machine)}
		case ripas != "all" && ripas != "bss":
			return usageError{fmt.Errorf("--ripas %q: give all or bss", ripas)}
		case dtb == "":
			return usageError{errors.New("no --dtb: the device tree is part of the measurement; `lkvm run ... --dump-dtb FILE` writes it")}
		}
		return nil
	})
	if help || err != nil {
		return err
	}
	l.RAM, l.BSSOnly = cfg.Memory, ripas == "bss"
	for _, f := range []struct {
		what, path string
		blob       *boot.Blob
	}{{"kernel", cfg.Image, &l.Kernel}, {"initrd", cfg.Initrd, &l.Initrd}, {"device tree", dtb, &l.DTB}} {
		if f.path == "" {
			continue
		}
		file, blob, err := openBlob(f.path)
		if err != nil {
			return fmt.Errorf("measure cca: %s: %w", f.what, err)
		}
		defer file.Close()
		*f.blob = blob
	}
	return printRIM(stdout, &l, cca.Version(rmm), explain, asJSON)
}

// openBlob opens a regular file. The caller closes it.
func openBlob(path string) (*os.File, boot.Blob, error) {
	f, err := os.Open(path)
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
func printRIM(w io.Writer, l *cca.LKVM, v cca.Version, explain, asJSON bool) error {
	launch, err := l.Launch()
	if err != nil {
		return fmt.Errorf("measure cca: %w", err)
	}
	var steps []string
	var trace func(string, cca.Step)
	if explain {
		trace = func(name string, s cca.Step) { steps = append(steps, fmt.Sprintf("%v (%s)", s, name)) }
	}
	rim, err := launch.Measure(v, trace)
	if err != nil {
		return fmt.Errorf("measure cca: %w", err)
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

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

const inspectUsage = `usage: gvmm inspect [flags] IMAGE [-- ARG...]

Says what IMAGE is and how gvmm would boot it: format, boot protocol, machine,
entry point, segments, what of CET it can bear. With --plan it prints the launch plan: every region of
guest memory that is not zero, the first registers and the command line. The
flags of "gvmm run" that shape the machine shape the plan. Nothing is started.

  gvmm inspect nginx.elf
  gvmm inspect --plan -M 64M -i root.cpio nginx.elf

`

// inspect is `gvmm inspect`.
func inspect(args []string, stdout io.Writer) error {
	var cfg vmm.Config
	var plan, asJSON bool
	fs := newFlags("inspect", inspectUsage, stdout)
	finish := machineFlags(fs, &cfg)
	fs.BoolVar(&plan, "plan", false, "print the launch plan")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	if help, err := parse(fs, args, finish); help || err != nil {
		return err
	}
	if plan {
		return printPlan(&cfg, stdout, asJSON)
	}
	in, err := vmm.Inspect(cfg)
	if err != nil {
		return err
	}
	defer in.Close()
	if asJSON {
		return writeJSON(stdout, struct {
			*boot.Image
			CET *cet.Report `json:"cet"`
		}{in.Image, in.CET})
	}
	if _, err = in.Image.WriteTo(stdout); err != nil {
		return err
	}
	_, err = in.CET.WriteTo(stdout)
	return err
}

// printPlan is --dry-run of run, and --plan of inspect.
func printPlan(cfg *vmm.Config, w io.Writer, asJSON bool) error {
	in, err := vmm.Inspect(*cfg)
	if err != nil {
		return err
	}
	defer in.Close()
	if asJSON {
		return writeJSON(w, in.Plan)
	}
	_, err = in.Plan.WriteTo(w)
	return err
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

const probeUsage = `usage: gvmm probe [--json]

Says what this host can do for virtual machines and, for each thing it cannot,
the missing link and how to get it. Exit status 126 when there is no KVM.

  gvmm probe

`

// probe is `gvmm probe`.
func probe(args []string, stdout io.Writer, kernel kvm.Kernel) (int, error) {
	var asJSON bool
	fs := newFlags("probe", probeUsage, stdout)
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	help, err := parse(fs, args, func(args []string, _ int) error {
		if len(args) > 0 {
			return usageError{errors.New("takes no arguments")}
		}
		return nil
	})
	if help || err != nil {
		return vmm.StatusOK, err
	}
	found := vmm.Probe(kernel)
	status := vmm.StatusOK
	if !found[0].OK {
		status = vmm.StatusLacking
	}
	if asJSON {
		return status, writeJSON(stdout, found)
	}
	for _, f := range found {
		mark := "yes"
		if !f.OK {
			mark = "no "
		}
		fmt.Fprintf(stdout, "%s  %-18s %s\n", mark, f.Name, f.Detail)
		if f.Remedy != "" {
			fmt.Fprintf(stdout, "     %-18s needs: %s\n", "", f.Remedy)
		}
	}
	return status, nil
}

// Command softpsp is gvmm on a software host with AMD SEV-SNP (package sev/psp):
// everything behind its own flags is a command line of gvmm's. The guest's code
// does not run; a script plays the guest, and what the host's secure processor
// proves about it is signed by keys that are made up for the occasion.
package main

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm"
)

const usage = `usage: softpsp [flags] run --sev-snp [flags of gvmm run] IMAGE
       softpsp -sample FILE

Runs a command of gvmm on a software host with AMD SEV-SNP, for tests and to try
things out: launches are measured and reports issued as a secure processor does
it, but the guest's code does not run. A script plays the guest.

  softpsp -sample hello.elf
  softpsp -report report.bin -certs certs run --sev-snp hello.elf
  gvmm verify snp --report report.bin --certs certs --roots certs/ark.der

`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// play is what a script does, and where its report goes.
type play struct {
	data    [64]byte
	key     psp.Key
	version uint
	report  string
}

func run(args []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "softpsp: %v\n", err)
		return vmm.StatusCannotStart
	}
	var p play
	var o psp.Options
	fs := flag.NewFlagSet("softpsp", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	certs := fs.String("certs", "", "write the certificates behind the report to `DIR`; ark.der is their root")
	sample := fs.String("sample", "", "write an image to try things out with to `FILE`, an SNP-aware ELF64, and do nothing else")
	guest := fs.String("guest", "attest", "what plays the guest: `attest|terminate|crash|halt`")
	product := fs.String("product", "milan", "the host's processor: `milan|genoa|turin`")
	key := fs.String("key", "vcek", "the key that signs the report: `vcek|vlek`")
	fs.StringVar(&p.report, "report", "", "write the report that the guest asks for to `FILE`")
	fs.UintVar(&p.version, "report-version", 3, "its version: `2|3|5`")
	fs.Func("report-data", "what the guest puts into it, `HEX`, filled up with zeros to 64 bytes", func(s string) error {
		b, err := hex.DecodeString(s)
		if err == nil && len(b) > len(p.data) {
			err = errors.New("more than 64 bytes")
		}
		copy(p.data[:], b)
		return err
	})
	fs.Func("fault", "what goes wrong: `eagain=N`, partial=N, cpuid or fail=COMMAND:ERROR, with commas", func(s string) error { return parseFaults(s, &o) })
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return vmm.StatusOK
	case err != nil:
		return vmm.StatusCannotStart
	}
	if *sample != "" {
		if err := os.WriteFile(*sample, sampleELF(), 0o644); err != nil {
			return fail(err)
		}
		return vmm.StatusOK
	}
	scripts := map[string]psp.Script{"attest": p.attest, "terminate": func(g *psp.Guest) { g.Terminate(0, 0) }, "crash": (*psp.Guest).Shutdown, "halt": nil}
	var ok [3]bool
	o.Script, ok[0] = scripts[*guest]
	o.Product, ok[1] = map[string]psp.Product{"milan": psp.Milan, "genoa": psp.Genoa, "turin": psp.Turin}[strings.ToLower(*product)]
	p.key, ok[2] = map[string]psp.Key{"vcek": psp.VCEK, "vlek": psp.VLEK}[strings.ToLower(*key)]
	for i, name := range []string{"guest", "product", "key"} {
		if !ok[i] {
			return fail(fmt.Errorf("-%s %s is unknown", name, fs.Lookup(name).Value))
		}
	}
	if p.version != 2 && p.version != 3 && p.version != 5 {
		return fail(fmt.Errorf("-report-version %d: give 2, 3 or 5", p.version))
	}
	kernel := psp.New(o)
	if *certs != "" {
		c, err := kernel.Certificates()
		if err == nil {
			err = c.Write(*certs)
		}
		if err != nil {
			return fail(err)
		}
	}
	status := cli.Main(fs.Args(), stdout, stderr, kernel)
	for _, m := range kernel.Machines() {
		if l, ok := m.Launched(); ok {
			fmt.Fprintf(stderr, "softpsp: measured %x: %d pages, %d of them vCPUs\n", l.Digest, len(l.Pages), len(l.VMSAs))
		}
	}
	return status
}

// attest is a guest that says hello, shares a page and takes it back, asks for
// certificates and a report, and powers off.
func (p *play) attest(g *psp.Guest) {
	g.Print("softpsp: hello from where the guest would run\n")
	page := g.RAM() - 4096
	text := []byte("shared with the host")
	err := g.Memory(page, text, false, true)
	if err == nil {
		g.Print("softpsp: a page at %#x is shared\n", page)
		errno, pages := g.Certificates(page, 1)
		g.Print("softpsp: certificates for the report: answer %d, %d pages\n", errno, pages)
		var answer uint64
		if answer, err = g.Convert(page, 1, true); err == nil && answer != 0 {
			err = fmt.Errorf("page state change: answer %d", answer)
		}
	}
	var report []byte
	if err == nil {
		g.Print("softpsp: it is private again\n")
		report, err = g.Report(psp.ReportRequest{Data: p.data, Key: p.key, Version: uint32(p.version)})
	}
	if err == nil && p.report != "" {
		err = os.WriteFile(p.report, report, 0o644)
	}
	if err != nil {
		g.Print("softpsp: %v\n", err)
		g.Terminate(0, 0)
	}
	g.Print("softpsp: a report of version %d, %d bytes\n", p.version, len(report))
	const pm1Control, sleepEnable = 0x604, 1 << 13
	g.Out(pm1Control, 2, sleepEnable)
}

// parseFaults reads -fault.
func parseFaults(s string, o *psp.Options) error {
	o.Fail = map[uint32]uint32{}
	for f := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(f, "=")
		var err error
		switch name {
		case "eagain":
			o.EAGAIN, err = strconv.Atoi(value)
		case "partial":
			o.PartialPages, err = strconv.Atoi(value)
		case "cpuid":
			o.RewriteCPUID = true
		case "fail":
			var command, code uint32
			if _, err = fmt.Sscanf(value, "%d:%v", &command, &code); err == nil {
				o.Fail[command] = code
			}
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return nil
}

// Command softrmm is gvmm on a software host for Arm CCA realms (package
// cca/rmm): everything behind its own flags is a command line of gvmm's. It is
// for arm64, or for an arm64 program under qemu-user: the realm's code does not
// run, a script plays it, so that no processor with RME is needed.
package main

import (
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/gvmm/gvmm/cca/rmm"
	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/vmm"
)

const usage = `usage: softrmm [flags] run --realm [flags of gvmm run] IMAGE

Runs a command of gvmm on a software host for Arm CCA realms, for tests and to
try things out: launches are measured and tokens issued as an RMM does it, but
the realm's code does not run. A script plays it: it prints a line, shares
memory and takes it back, asks for a token and powers off.

  softrmm -abi v12 -token token.cbor -key cpak.pem run --realm=abi=v12 Image
  gvmm verify cca --token token.cbor --platform-key cpak.pem \
      --rim "$(gvmm measure cca --realm=abi=v12 Image)"

`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "softrmm: %v\n", err)
		return vmm.StatusCannotStart
	}
	var o rmm.Options
	fs := flag.NewFlagSet("softrmm", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	fs.StringVar(&o.ABI, "abi", "v5", "the kernel: `v5|v7|v8|v9|v10|v12|v13|v14|v15`, none for a mainline one, no-rmm")
	token := fs.String("token", "", "write the realm's token to `FILE`")
	key := fs.String("key", "", "write the platform's public key to `FILE`")
	nonce := fs.String("nonce", "", "challenge of the token in `HEX`")
	fs.Uint64Var(&o.Console, "console", 0, "`ADDRESS` of the register that the realm prints to")
	fs.BoolVar(&o.Alias, "alias", false, "the realm's exits name that register by its shared alias")
	fs.IntVar(&o.Progress, "progress", 0, "populate at most this `NUMBER` of pages in one call")
	bps := fs.Uint("bps", 5, "breakpoints, the `COUNT` minus one")
	wps := fs.Uint("wps", 3, "watchpoints, likewise: the `COUNT` minus one")
	if err := fs.Parse(args); err != nil {
		return vmm.StatusCannotStart
	}
	o.Breakpoints, o.Watchpoints = uint8(*bps), uint8(*wps)
	b, err := hex.DecodeString(*nonce)
	if err != nil {
		return fail(fmt.Errorf("-nonce: %w", err))
	}
	copy(o.Nonce[:], b)
	if *token != "" {
		o.Token = func(b []byte) { err = os.WriteFile(*token, b, 0o644) }
	}
	k, e := rmm.New(o)
	if e != nil {
		return fail(e)
	}
	if *key != "" {
		pem, err := k.PlatformKey()
		if err != nil {
			return fail(err)
		}
		if err := os.WriteFile(*key, pem, 0o644); err != nil {
			return fail(err)
		}
	}
	status := cli.Main(fs.Args(), stdout, stderr, k)
	if err != nil {
		return fail(err)
	}
	for _, err := range k.State().Faults {
		status = fail(err)
	}
	return status
}

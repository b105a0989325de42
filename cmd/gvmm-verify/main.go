// Command gvmm-verify checks what confidential guests prove about themselves:
// attestation reports and tokens. It needs no KVM; `gvmm verify` runs it.
package main

import (
	"fmt"
	"io"
	"os"
)

const usage = `usage: gvmm verify snp|cca [flags]

Checks an attestation report or token of a confidential guest. Exit status 0 only if
everything that was asked for held, 1 if something did not, 125 if it could not
be checked. "gvmm verify snp --help" and "gvmm verify cca --help" explain.
`

// statusCannotCheck is the exit status for usage, files and keys that are wrong.
const statusCannotCheck = 125

func main() {
	os.Exit(dispatch(os.Args[1:], os.Stdout, os.Stderr))
}

// dispatch runs one verification and returns the exit status.
func dispatch(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return statusCannotCheck
	}
	var status int
	var err error
	switch what, rest := args[0], args[1:]; what {
	case "snp":
		status, err = verifySNP(rest, stdout)
	case "cca":
		status, err = verifyCCA(rest, stdout)
	case "sign-id-block":
		err = signIDBlock(rest, stdout)
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
	default:
		err = fmt.Errorf("verify: %q is unknown: `gvmm verify --help` lists what can be checked", what)
	}
	if err != nil {
		fmt.Fprintf(stderr, "gvmm: %v\n", err)
		return statusCannotCheck
	}
	return status
}

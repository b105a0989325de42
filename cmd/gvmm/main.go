// Command gvmm runs unikernels and Linux in small KVM virtual machines.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/gvmm/gvmm/vmm"
)

const usage = `gvmm runs unikernels and Linux in small KVM virtual machines.

  gvmm run IMAGE         boot a Unikraft or Linux image and wait for its end
  gvmm inspect IMAGE     say what an image is and how it would be booted
  gvmm probe             say what this host can do, and what is missing
  gvmm measure snp       predict the launch measurement of an SEV-SNP guest
  gvmm measure cca       predict the initial measurement (RIM) of an Arm CCA realm
  gvmm verify snp        check an attestation report of an SEV-SNP guest
  gvmm verify cca        check an attestation token of a realm
  gvmm version           print the version

"gvmm COMMAND --help" explains a command and its flags.

  gvmm run hello.elf                                    a unikernel
  gvmm run -p 8080:80 -i root.cpio nginx.elf            answers on 127.0.0.1:8080
  gvmm run -M 512M -i initramfs.cpio.gz -d disk.img vmlinuz
`

// A usageError is the caller's mistake on the command line.
type usageError struct{ error }

func main() {
	os.Exit(dispatch(os.Args[1:], os.Stdout, os.Stderr))
}

// dispatch runs one command and returns the exit status.
func dispatch(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return vmm.StatusCannotStart
	}
	var err error
	status := vmm.StatusOK
	switch cmd, rest := args[0], args[1:]; cmd {
	case "run":
		status, err = run(rest, stdout, stderr)
	case "inspect":
		err = inspect(rest, stdout)
	case "probe":
		status, err = probe(rest, stdout)
	case "measure":
		err = measure(rest, stdout)
	case "verify":
		err = verify(rest)
	case "version", "--version":
		fmt.Fprintln(stdout, "gvmm", version())
	case "help", "-h", "--help":
		if len(rest) > 0 && rest[0] != "help" {
			return dispatch([]string{rest[0], "--help"}, stdout, stderr)
		}
		fmt.Fprint(stdout, usage)
	default:
		err = usageError{fmt.Errorf("unknown command %q: `gvmm help` lists the commands", cmd)}
	}
	if err == nil {
		return status
	}
	fmt.Fprintf(stderr, "gvmm: %v\n", err)
	if lacking := new(vmm.LackingError); errors.As(err, &lacking) {
		return vmm.StatusLacking
	}
	return vmm.StatusCannotStart
}

// version is the module's version as the Go tool recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

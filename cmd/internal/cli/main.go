// Package cli is gvmm's command line: one file a subcommand. It is a package of
// its own so that a program which puts something else in the place of the
// host's KVM has the same commands.
package cli

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/vmm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

const usage = `gvmm runs unikernels and Linux in small KVM virtual machines.

  gvmm run IMAGE         boot a Unikraft or Linux image and wait for its end
  gvmm inspect IMAGE     say what an image is and how it would be booted
  gvmm ps                list the running VMs
  gvmm stop|pause|resume|stats|console|balloon NAME
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

// Main runs one command and returns the exit status. args are without the
// program's name; kernel is whose KVM they use.
func Main(args []string, stdout, stderr io.Writer, kernel kvm.Kernel) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return vmm.StatusCannotStart
	}
	var err error
	status := vmm.StatusOK
	switch cmd, rest := args[0], args[1:]; cmd {
	case "run":
		status, err = run(rest, stdout, stderr, kernel)
	case "inspect":
		err = inspect(rest, stdout)
	case "probe":
		status, err = probe(rest, stdout, kernel)
	case "measure":
		err = measure(rest, stdout)
	case "verify":
		err = verify(rest)
	case netdev.UserProgram: // started by gvmm itself
		if netProcess != nil {
			return netProcess(rest)
		}
		err = usageError{fmt.Errorf("unknown command %q", cmd)}
	case "ps":
		err = list(rest, stdout, stderr)
	case "stop", "pause", "resume", "stats", "console", "balloon":
		err = tell(cmd, rest, stdout)
	case "version", "--version":
		fmt.Fprintln(stdout, "gvmm", version())
	case "help", "-h", "--help":
		if len(rest) > 0 && rest[0] != "help" {
			return Main([]string{rest[0], "--help"}, stdout, stderr, kernel)
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

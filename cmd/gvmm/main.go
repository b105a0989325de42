// Command gvmm runs unikernels and Linux in small KVM virtual machines.
package main

import (
	"os"

	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/vmm/kvm"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr, kvm.Host{}))
}

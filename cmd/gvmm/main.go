// Command gvmm runs unikernels and Linux in small KVM virtual machines. By the
// names lkvm, vm and lkvm-static it has kvmtool's command line.
package main

import (
	"os"
	"path/filepath"

	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/cmd/internal/lkvm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

func main() {
	name, args := "", []string{}
	if len(os.Args) > 0 {
		name, args = filepath.Base(os.Args[0]), os.Args[1:]
	}
	if !lkvm.Is(name) && len(args) > 0 && args[0] == "lkvm" {
		name, args = args[0], args[1:]
	}
	program := cli.Main
	if lkvm.Is(name) {
		program = lkvm.Main
	}
	os.Exit(program(args, os.Stdout, os.Stderr, kvm.Host{}))
}

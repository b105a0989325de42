// X86lab runs one program in the x86 lab, or with -cet in the CET lab, and ends
// with its status:
//
//	go run ./integration/lab/x86lab @bin/gvmm run @unikernel.elf
//	go run ./integration/lab/x86lab -cet @bin/gvmm run --cet require @unikernel.elf
//
// An argument @FILE is a file of this machine: it is copied into the lab and
// the program gets its path there. "@FILE,rest" keeps the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/gvmm/gvmm/integration/lab"
)

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "x86lab:", err)
		status = 125
	}
	os.Exit(status)
}

func run(argv []string) (int, error) {
	start := func(ctx context.Context, _ []string) (*lab.Machine, error) { return lab.StartX86(ctx, 4096) }
	if len(argv) > 0 && argv[0] == "-cet" {
		argv = argv[1:]
		start = func(ctx context.Context, files []string) (*lab.Machine, error) { return lab.StartCET(ctx, files...) }
	}
	if len(argv) == 0 {
		return 0, errors.New("usage: x86lab [-cet] PROGRAM [ARG...]; @FILE is a file to copy into the lab")
	}
	return lab.RunOne(argv, start)
}

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
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

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
	cet := len(argv) > 0 && argv[0] == "-cet"
	if cet {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return 0, fmt.Errorf("usage: x86lab [-cet] PROGRAM [ARG...]; @FILE is a file to copy into the lab")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := start(ctx, cet, argv)
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	for i, a := range argv {
		if file, ok := strings.CutPrefix(a, "@"); ok {
			file, rest, more := strings.Cut(file, ",")
			if argv[i], err = l.Put(file); err != nil {
				return 0, err
			}
			if more {
				argv[i] += "," + rest
			}
		}
	}
	vm, err := lab.New(l, argv)
	if err != nil {
		return 0, err
	}
	vm.Console().Tee(os.Stdout)
	vm.Stderr().Tee(os.Stderr)
	go func() { _, _ = io.Copy(vm, os.Stdin) }()
	go func() {
		<-ctx.Done()
		_ = vm.Signal(syscall.SIGTERM)
	}()
	s, err := vm.Wait(24 * time.Hour)
	if s.Signal != 0 {
		return 128 + int(s.Signal), err
	}
	return s.Code, err
}

func start(ctx context.Context, cet bool, argv []string) (*lab.X86, error) {
	if !cet {
		return lab.StartX86(ctx, 4096)
	}
	var files []string
	for _, a := range argv {
		if file, ok := strings.CutPrefix(a, "@"); ok {
			file, _, _ = strings.Cut(file, ",")
			files = append(files, file)
		}
	}
	return lab.StartCET(ctx, files...)
}

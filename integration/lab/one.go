package lab

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// RunOne runs one program in a lab of its own, on this program's standard files,
// and returns its exit status. An argument @FILE is a file of this machine: it is
// copied into the lab and the program gets its path there. "@FILE,rest" keeps
// the rest. A gvmm takes the gvmm-net beside it along. start gets the files too.
func RunOne(argv []string, start func(ctx context.Context, files []string) (*Machine, error)) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var files []string
	for _, a := range argv {
		if file, ok := strings.CutPrefix(a, "@"); ok {
			file, _, _ = strings.Cut(file, ",")
			files = append(files, file)
		}
	}
	l, err := start(ctx, files)
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
			if _, err := os.Stat(file + "-net"); err == nil { // gvmm's user network, beside it
				if _, err := l.Put(file + "-net"); err != nil {
					return 0, err
				}
			}
		}
	}
	vm, err := New(l, argv)
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

// Arm64lab runs one program in the arm64 lab and ends with its status:
//
//	GOARCH=arm64 CGO_ENABLED=0 go build -o bin/arm64/ ./cmd/gvmm ./cmd/gvmm-net
//	go run ./integration/lab/arm64lab @bin/arm64/gvmm run @unikernel
//	go run ./integration/lab/arm64lab -gic 2 @bin/arm64/gvmm probe
//
// An argument @FILE is a file of this machine: it is copied into the lab and
// the program gets its path there. "@FILE,rest" keeps the rest. The lab has a
// GICv3 unless -gic 2 is given first.
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
		fmt.Fprintln(os.Stderr, "arm64lab:", err)
		status = 125
	}
	os.Exit(status)
}

func run(argv []string) (int, error) {
	gic := lab.GICv3
	if len(argv) > 1 && argv[0] == "-gic" {
		gic, argv = lab.GIC(argv[1]), argv[2:]
	}
	if len(argv) == 0 {
		return 0, errors.New("usage: arm64lab [-gic 2|3] PROGRAM [ARG...]; @FILE is a file to copy into the lab")
	}
	return lab.RunOne(argv, func(ctx context.Context, _ []string) (*lab.Machine, error) {
		return lab.StartARM64(ctx, gic, 2048)
	})
}

// Command gvmm-net is the user network of one VM, which gvmm starts.
package main

import (
	"os"

	"github.com/gvmm/gvmm/cmd/internal/netproc"
)

func main() { os.Exit(netproc.Main(os.Args[1:])) }

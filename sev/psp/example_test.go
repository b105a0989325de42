//go:build amd64

package psp_test

import (
	"context"
	"fmt"
	"os"

	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm"
)

// A monitor whose kernel is a software host launches a guest, which a script
// plays; behind that the host tells what was launched.
func Example() {
	host := psp.New(psp.Options{
		Product: psp.Genoa, EAGAIN: 3, // every third LAUNCH_UPDATE is to be repeated
		Script: func(g *psp.Guest) {
			g.Print("hello\n")
			if answer, err := g.Convert(0x200000, 1, false); answer != 0 || err != nil {
				g.Terminate(0, 0)
			}
			g.Out(0x604, 2, 1<<13) // ACPI power-off
		},
	})
	vm, err := vmm.New(vmm.Config{Image: "vmlinuz", SNP: &vmm.SNP{}, Kernel: host, Stdout: os.Stdout})
	if err != nil {
		fmt.Println(err)
		return
	}
	outcome, err := vm.Run(context.Background())
	fmt.Println(outcome, err, vm.Close())
	m := host.Machines()[0]
	launch, _ := m.Launched()
	report, err := m.Report(psp.ReportRequest{Data: [64]byte{1, 2, 3}})
	fmt.Printf("%x, %d pages still private, a report of %d bytes, %v\n", launch.Digest, len(m.Owned()), len(report), err)
}

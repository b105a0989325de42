package vmm

import "testing"

// What the counters are made of is there on this kernel.
func TestProcessCounters(t *testing.T) {
	if n := resident(); n < 1<<20 || n > 1<<40 {
		t.Errorf("%d bytes resident", n)
	}
	if cpuTime() <= 0 {
		t.Error("no processor time used")
	}
}

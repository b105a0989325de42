package vmm

import (
	"strings"
	"testing"

	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// A realm's registers cannot be read: its dump says so instead of empty lines.
func TestDumpOfRealm(t *testing.T) {
	c := vcpu{VCPU: &kvm.VCPU{ID: 3}, vm: &VM{archVM: archVM{realm: new(cca.Realm)}}}
	if d := c.dump(); !strings.HasPrefix(d, "vCPU 3: a realm's") || strings.Contains(d, "\n\n") {
		t.Errorf("dump %q", d)
	}
}

package vmm

import (
	"testing"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/vmm/kvm"
)

func leaf(t *testing.T, table []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	t.Helper()
	var found []kvm.CPUIDEntry
	for _, e := range table {
		if e.Function == function && e.Index == index {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("leaf %#x.%d: %d entries", function, index, len(found))
	}
	return found[0]
}

func TestCPUID(t *testing.T) {
	supported := []kvm.CPUIDEntry{
		{Function: 0, EAX: 0xd},
		{Function: leafFeatures, EBX: 0xaa<<24 | 0xbb<<16 | 0x0800, ECX: 1, EDX: 1},
		{Function: leafCaches, EAX: 0x21 | 0x3ff<<14 | 0x3f<<26},           // level 1 data
		{Function: leafCaches, Index: 1, EAX: 0x63 | 0x3ff<<14 | 0x3f<<26}, // level 3
		{Function: leafTopology, EDX: 77},
		{Function: leafHypervisor, EAX: 0x40000001, EBX: 0x4b4d564b, ECX: 0x564b4d56, EDX: 0x4d},
		{Function: leafAMDCores, EAX: 0x3030, ECX: 0xffff},
		{Function: leafAMDTopology, EAX: 99},
	}
	const cpus, khz = 3, 2_400_000
	for id := range cpus {
		c := cpuidFor(supported, id, cpus, khz, true)
		if e := leaf(t, c, 0, 0); e.EAX < leafTSC {
			t.Errorf("highest leaf %#x hides the TSC leaf", e.EAX)
		}
		if e := leaf(t, c, leafFeatures, 0); e.EBX != uint32(id)<<24|cpus<<16|0x0800 ||
			e.ECX != 1|ecxHypervisor|ecxTSCDeadline || e.EDX != 1|edxHTT {
			t.Errorf("vCPU %d: leaf 1: ebx %#x ecx %#x edx %#x", id, e.EBX, e.ECX, e.EDX)
		}
		if l1, l3 := leaf(t, c, leafCaches, 0), leaf(t, c, leafCaches, 1); l1.EAX>>14&0xfff != 0 || l3.EAX>>14&0xfff != 3 || l1.EAX>>26 != 3 {
			t.Errorf("caches: %#x %#x", l1.EAX, l3.EAX)
		}
		smt, core := leaf(t, c, leafTopology, 0), leaf(t, c, leafTopology, 1)
		if smt.EBX != 1 || smt.EAX != 0 || core.EBX != cpus || core.EAX != 2 || smt.EDX != uint32(id) || core.ECX != 2<<8|1 {
			t.Errorf("topology: %+v %+v", smt, core)
		}
		if e := leaf(t, c, leafHypervisor, 0); e.EAX != leafHyperTiming || e.EBX != 0x4b4d564b {
			t.Errorf("hypervisor leaf: %+v", e)
		}
		if e := leaf(t, c, leafHyperTiming, 0); e.EAX != khz {
			t.Errorf("timing leaf: %+v", e)
		}
		if e := leaf(t, c, leafTSC, 0); uint64(e.ECX)*uint64(e.EBX)/uint64(e.EAX) != khz*1000 {
			t.Errorf("TSC leaf: %+v", e)
		}
		if e := leaf(t, c, leafAMDCores, 0); e.ECX != 2<<12|cpus-1|0x0f00 {
			t.Errorf("AMD cores: %#x", e.ECX)
		}
		if e := leaf(t, c, leafAMDTopology, 0); e.EAX != uint32(id) {
			t.Errorf("AMD topology: %#x", e.EAX)
		}
	}
	one := cpuidFor(supported, 0, 1, 0, false)
	if e := leaf(t, one, leafFeatures, 0); e.EDX&edxHTT != 0 || e.ECX&ecxTSCDeadline != 0 {
		t.Errorf("one vCPU: ecx %#x edx %#x", e.ECX, e.EDX)
	}
	for _, e := range one {
		if e.Function == leafTSC || e.Function == leafHyperTiming {
			t.Errorf("leaf %#x without a known frequency", e.Function)
		}
	}
}

// What the plan tells the guest and what the devices answer to are two lists of
// numbers in two packages that must not know each other.
func TestPlanAndDevicesAgree(t *testing.T) {
	for name, c := range map[string]struct{ plan, device uint64 }{
		"PM1a event":     {uint64(boot.PM1aEvent), devices.PortPM1Event},
		"PM1a control":   {uint64(boot.PM1aControl), devices.PortPM1Control},
		"reset port":     {uint64(boot.ResetPort), devices.PortI8042Command},
		"pvpanic":        {uint64(boot.PvpanicPort), devices.PortPanic},
		"COM1":           {uint64(boot.COM1Port), portCOM1},
		"COM1 interrupt": {uint64(boot.COM1IRQ), gsiCOM1},
		"clock":          {uint64(boot.RTCPort), portCMOS},
		"TSS":            {uint64(boot.KVMTSS), tssAddr},
	} {
		if c.plan != c.device {
			t.Errorf("%s: the plan says %#x, the device %#x", name, c.plan, c.device)
		}
	}
	within := func(name string, base, size, windowBase, windowSize uint64) {
		if base < windowBase || base+size > windowBase+windowSize {
			t.Errorf("%s at %#x+%#x is outside the window %#x+%#x that ACPI names", name, base, size, windowBase, windowSize)
		}
	}
	within("PCI memory", devices.PCIMemoryBase, devices.PCIMemorySize, uint64(boot.PCIMemBase), boot.PCIMemSize)
	within("PCI ports", devices.PCIPortBase, devices.PCIPortSize, uint64(boot.PCIIOBase), boot.PCIIOSize)
}

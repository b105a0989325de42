//go:build amd64 || arm64

package vmm

import (
	"cmp"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/sev/driver"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// vcpu is one virtual CPU and what its thread keeps for a post-mortem.
type vcpu struct {
	*kvm.VCPU
	vm *VM

	trail [8]exitRecord // the last exits, a ring
	exits atomic.Uint64 // how many there were; only the vCPU's thread counts

	before func() *Outcome // called before each entry, unless nil; it says how the VM ends

	arch archVCPU
}

// exitRecord is one exit in the trail of a vCPU.
type exitRecord struct {
	reason uint32
	addr   uint64 // port or guest physical address, where the reason has one
	write  bool
}

var exitNames = [...]string{
	kvm.ExitUnknown: "unknown", kvm.ExitIO: "io", kvm.ExitDebug: "debug", kvm.ExitHLT: "hlt", kvm.ExitMMIO: "mmio",
	kvm.ExitShutdown: "shutdown", kvm.ExitFailEntry: "fail-entry", kvm.ExitIntr: "intr",
	kvm.ExitInternalError: "internal-error", kvm.ExitSystemEvent: "system-event", kvm.ExitMemoryFault: "memory-fault",
}

func (e exitRecord) String() string {
	name := fmt.Sprint(e.reason)
	if e.reason < uint32(len(exitNames)) {
		name = cmp.Or(exitNames[e.reason], name)
	}
	if e.reason != kvm.ExitIO && e.reason != kvm.ExitMMIO {
		return name
	}
	dir := "read"
	if e.write {
		dir = "write"
	}
	return fmt.Sprintf("%s-%s:%#x", name, dir, e.addr)
}

// dumpTrail writes the last exits, the latest first.
func (c *vcpu) dumpTrail(b *strings.Builder) {
	b.WriteString("  last exits:")
	n := c.exits.Load()
	for i := range min(n, uint64(len(c.trail))) {
		fmt.Fprintf(b, " %v", c.trail[(n-1-i)%uint64(len(c.trail))])
	}
	b.WriteByte('\n')
}

// The states of a VM.
const (
	running int32 = iota
	paused
	stopping
)

// loop runs the vCPU on its own thread until the VM stops.
func (c *vcpu) loop() {
	runtime.LockOSThread()
	c.Bind()
	m := c.vm
	for {
		if c.before != nil {
			if o := c.before(); o != nil {
				m.finish(*o)
				return
			}
		}
		if m.state.Load() != running && !m.hold() {
			return
		}
		ok, err := c.Run()
		if !ok {
			if err != nil {
				m.finish(c.crash(err.Error()))
				return
			}
			c.Unkick() // before the state is looked at, so that no kick is lost
			continue
		}
		if o := c.handle(); o != nil {
			m.finish(*o)
			return
		}
	}
}

// handle serves one exit. It returns how the VM ends, if it does.
func (c *vcpu) handle() *Outcome {
	n := c.exits.Load()
	rec := &c.trail[n%uint64(len(c.trail))]
	c.exits.Store(n + 1)
	*rec = exitRecord{reason: c.ExitReason()}
	switch rec.reason {
	case kvm.ExitMMIO:
		addr, data, write := c.MMIO()
		addr = uint64(c.vm.mem.Strip(memory.GPA(addr)))
		rec.addr, rec.write = addr, write
		if write {
			c.vm.mmio.Write(addr, data)
		} else {
			c.vm.mmio.Read(addr, data)
		}
	case kvm.ExitIntr:
	case kvm.ExitSystemEvent:
		return c.systemEvent()
	case kvm.ExitMemoryFault:
		return c.memoryFault(rec)
	default:
		return c.handleArch(rec)
	}
	return nil
}

// System events (KVM_SYSTEM_EVENT_*).
const (
	eventShutdown = 1
	eventReset    = 2
	eventCrash    = 3
	eventSEVTerm  = 6
)

func (c *vcpu) systemEvent() *Outcome {
	switch kind, data := c.SystemEvent(); kind {
	case eventShutdown:
		o := endOutcome(devices.End{Kind: devices.EndPowerOff, Why: "PSCI"}, c.vm.watch.crashed())
		return &o
	case eventReset:
		o := endOutcome(devices.End{Kind: devices.EndReset, Why: "PSCI"}, c.vm.watch.crashed())
		return &o
	case eventCrash:
		o := c.crash("guest reported a crash")
		return &o
	case eventSEVTerm:
		o := c.crash("SEV-SNP guest asked for its own end: " + driver.TerminationReason(data))
		return &o
	default:
		o := c.crash(fmt.Sprintf("KVM system event %d, data %#x", kind, data))
		return &o
	}
}

// crash is the outcome of a vCPU that cannot run on.
func (c *vcpu) crash(why string) Outcome {
	return Outcome{Status: StatusCrashed, Why: fmt.Sprintf("guest crashed: vCPU %d: %s", c.ID, why), Dump: c.dump()}
}

// runState is the state of the VM that vCPU threads look at before each entry.
type runState struct{ atomic.Int32 }

package vmm

import (
	"fmt"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/sev/driver"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// handleArch serves the exits that only x86 has.
func (c *vcpu) handleArch(rec *exitRecord) *Outcome {
	switch rec.reason {
	case kvm.ExitIO:
		c.portIO(rec)
		return nil
	case kvm.ExitDebug: // single step
		return nil
	case kvm.ExitHypercall, kvm.ExitSNPReqCerts:
		if c.vm.launch != nil {
			return c.handleSNP(rec)
		}
		o := c.crash("a hypercall that gvmm has not asked KVM for")
		return &o
	case kvm.ExitShutdown:
		o := c.crash("triple fault")
		return &o
	case kvm.ExitInternalError:
		return c.internalError()
	case kvm.ExitFailEntry:
		o := c.crash(fmt.Sprintf("the processor refused to enter the guest, reason %#x", c.FailEntry()))
		return &o
	case kvm.ExitUnknown:
		o := c.crash(fmt.Sprintf("unknown hardware exit, reason %#x", c.FailEntry()))
		return &o
	default:
		o := c.crash(fmt.Sprintf("KVM exit %d, which gvmm does not know", rec.reason))
		return &o
	}
}

// portIO serves a run of port accesses.
func (c *vcpu) portIO(rec *exitRecord) {
	port, size, data, write := c.IO()
	rec.addr, rec.write = uint64(port), write
	if write && port == portCOM1 && size == 1 && len(data) > 1 {
		c.vm.serial.WriteString(data)
		return
	}
	for ; len(data) >= size && size > 0; data = data[size:] {
		if write {
			c.vm.pio.Write(uint64(port), data[:size])
		} else {
			c.vm.pio.Read(uint64(port), data[:size])
		}
	}
}

// Sub-errors of KVM_EXIT_INTERNAL_ERROR.
const subErrorEmulation = 1

func (c *vcpu) internalError() *Outcome {
	sub, data := c.InternalError()
	if sub == subErrorEmulation && c.vm.launch == nil {
		return c.completeInstruction()
	}
	o := c.crash(fmt.Sprintf("KVM internal error, sub-error %d, data %#x", sub, data))
	return &o
}

// archVM is what only the x86 machine has.
type archVM struct {
	pio    devices.Bus
	serial *devices.Serial
	pci    *devices.PCI
	cet    cet.Features   // what the guest can see of CET
	launch *driver.Launch // of an SEV-SNP guest, whose state is encrypted; nil for others
}

package vmm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/driver"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

const leafEncryption = 0x8000001f // AMD APM vol. 3, E.4.17; the C-bit is EBX 5:0

// createSNP creates the VM of an SEV-SNP guest and starts its launch. What fails
// here the host lacks.
func (m *VM) createSNP(sys *kvm.System) (*kvm.VM, error) {
	if sys.Check(kvm.CapVMTypes)>>kvm.VMTypeSNP&1 == 0 {
		var missing []string
		for _, f := range probeSNP(sys, thisHost())[1:] {
			if !f.OK {
				missing = append(missing, fmt.Sprintf("%s (needs %s)", f.Detail, f.Remedy))
			}
		}
		return nil, fmt.Errorf("--sev-snp: this host launches no such guests: %s", strings.Join(missing, "; "))
	}
	c := m.cfg.SNP
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	if want, have := cmp.Or(c.CBit, defaultCBit), cbit(supported); m.cfg.Firmware == "" && want != have {
		return nil, fmt.Errorf("--sev-snp: the page tables are made for C-bit %d, this processor's is %d: give cbit=%d", want, have, have)
	}
	vm, err := sys.CreateVM(kvm.VMTypeSNP)
	if err != nil {
		return nil, err
	}
	m.launch, err = driver.Begin(sys, vm, driver.Config{
		Policy: cmp.Or(c.Policy, sev.DefaultPolicy), Features: c.Features, Certs: c.Certs != "", Log: m.log,
		End: kvm.LaunchEnd{
			IDBlock: c.IDBlock, IDAuth: c.IDAuth, HostData: c.HostData, VCEKDisabled: c.VCEKDisabled,
			AuthorKey: len(c.IDAuth) >= 8 && binary.LittleEndian.Uint32(c.IDAuth[4:]) != 0,
		},
	})
	if err != nil {
		return vm, fmt.Errorf("--sev-snp: %w", err)
	}
	m.closers = append(m.closers, m.launch)
	return vm, nil
}

func cbit(leaves []kvm.CPUIDEntry) int {
	for _, e := range leaves {
		if e.Function == leafEncryption {
			return int(e.EBX & 0x3f)
		}
	}
	return 0
}

// finishLaunch sets every register that a VMSA holds, as the digest was predicted
// from them, and launches memory and vCPUs. From here on their state is encrypted
// and KVM refuses to read or write it.
func (m *VM) finishLaunch(leaves []kvm.CPUIDEntry) error {
	for id, c := range m.cpus {
		x := m.plan.X86
		if id > 0 {
			x = m.plan.X86APs
		}
		if err := c.setLaunchState(x); err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
	}
	if path := m.cfg.SNP.Certs; path != "" {
		f, _, err := lockCerts(path)
		if err != nil {
			return fmt.Errorf("--sev-snp certs=%s: %w", path, err)
		}
		defer f.Close()
	}
	ranges, err := sev.PlanRanges(m.plan, m.cfg.CPUs, m.cfg.SNP.Features)
	if err != nil {
		return err
	}
	var entries []sev.CPUIDEntry
	for _, e := range leaves {
		entries = append(entries, sev.CPUIDEntry{Function: e.Function, Index: e.Index, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX})
	}
	page, err := sev.CPUIDPage(entries, cbit(leaves))
	if err != nil {
		return err
	}
	if err := m.launch.Finish(ranges, page); err != nil {
		return fmt.Errorf("--sev-snp: %w", err)
	}
	return nil
}

// setLaunchState sets what [setRegisters] leaves as KVM makes it.
func (c *vcpu) setLaunchState(x *boot.X86State) error {
	r := sev.FromX86(x, 0)
	area := make([]byte, c.vm.kvm.XSaveSize()) // in the standard format of XSAVE
	for _, f := range []struct {
		at int
		v  uint16
	}{{0, r.FCW}, {2, r.FSW}, {4, r.FTW}, {6, r.FOP}, {24, uint16(r.MXCSR)}} {
		binary.LittleEndian.PutUint16(area[f.at:], f.v)
	}
	area[512] = 3 // XSTATE_BV: x87 and SSE are here, the rest is as behind a reset
	msrs := []kvm.MSR{
		{Index: 0x277, Data: r.PAT},
		{Index: 0xc0000081, Data: r.STAR}, {Index: 0xc0000082, Data: r.LSTAR}, {Index: 0xc0000083, Data: r.CSTAR},
		{Index: 0xc0000084, Data: r.SFMASK}, {Index: 0xc0000102, Data: r.KernelGSBase},
		{Index: 0x174, Data: r.SysenterCS}, {Index: 0x175, Data: r.SysenterESP}, {Index: 0x176, Data: r.SysenterEIP},
	}
	if n, err := c.SetMSRs(msrs); err != nil || n != len(msrs) {
		return errors.Join(err, fmt.Errorf("KVM took %d of %d model-specific registers", n, len(msrs)))
	}
	return errors.Join(c.SetXCR0(r.XCR0), c.SetDebugRegs(r.DR6, r.DR7), c.SetXSave(area), setRegisters(c.VCPU, &r))
}

// handleSNP serves the exits that only SEV-SNP guests have.
func (c *vcpu) handleSNP(rec *exitRecord) *Outcome {
	if rec.reason == kvm.ExitSNPReqCerts {
		return c.requestCerts()
	}
	nr, args := c.Hypercall()
	rec.addr = args[0]
	answer := uint64(unix.EINVAL) // KVM takes 0, EINVAL and EAGAIN here
	pages := min(args[1], c.vm.mem.Size()/4096+1)
	if nr == kvm.HypercallMapGPA {
		r := memory.Range{Base: memory.GPA(args[0]), Size: pages * 4096}
		if err := c.vm.convert(r, args[2]&kvm.MapGPAEncrypted != 0); err == nil {
			answer = 0
		} else {
			c.vm.log.Debug("page state change refused", "vcpu", c.ID, "err", err)
		}
	}
	c.SetHypercallResult(answer)
	return nil
}

// maxCerts bounds the certificates' file.
const maxCerts = 1 << 20

// lockCerts opens the file of certificates, against whose exchange it stays locked
// while it is open, and reads it.
func lockCerts(path string) (*os.File, []byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	data, err := []byte(nil), unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, maxCerts+1))
	}
	if err == nil && len(data) > maxCerts {
		err = fmt.Errorf("more than %d bytes", maxCerts)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, data, nil
}

// requestCerts hands the guest the certificates that belong to the report it asks
// for (KVM_EXIT_SNP_REQ_CERTS). The file stays locked until the secure processor
// has signed the report: the host's owner may be about to exchange both.
func (c *vcpu) requestCerts() *Outcome {
	gpa, pages := c.SNPReqCerts()
	f, data, err := lockCerts(c.vm.cfg.SNP.Certs)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		c.SetSNPReqCerts(uint64(unix.EAGAIN), pages) // the guest asks again
		return nil
	}
	need := (uint64(len(data)) + 4095) / 4096
	if err == nil {
		defer f.Close()
		if pages < need {
			c.SetSNPReqCerts(uint64(unix.ENOSPC), need)
			return nil
		}
		err = c.vm.mem.Write(memory.GPA(gpa), append(data, make([]byte, need*4096-uint64(len(data)))...))
	}
	if err != nil {
		c.vm.log.Warn("no certificates for the guest's report", "vcpu", c.ID, "err", err)
		c.SetSNPReqCerts(uint64(unix.EIO), pages)
		return nil
	}
	c.SetSNPReqCerts(0, pages)
	ok, err := c.Settle()
	switch {
	case err != nil:
		o := c.crash(err.Error())
		return &o
	case ok:
		return c.handle()
	default:
		return nil
	}
}

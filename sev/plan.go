package sev

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/vmm/memory"
)

// kinds are the plan's kinds of region by page type.
var kinds = [...]boot.Kind{PageNormal: boot.Normal, PageZero: boot.Zero, PageUnmeasured: boot.Unmeasured, PageSecrets: boot.Secrets, PageCPUID: boot.CPUID}

// PlanRanges returns what gvmm's own launch of an SNP plan measures, in order:
// the regions, then the VMSA of every vCPU as KVM builds it. features are the
// SEV_FEATURES besides [FeatureSNP].
func PlanRanges(p *boot.Plan, vcpus int, features uint64) ([]Range, error) {
	if p.X86 == nil || p.X86APs == nil {
		return nil, errors.New("sev: not the plan of an SEV-SNP launch")
	}
	if vcpus < 1 || vcpus > maxVCPUs {
		return nil, fmt.Errorf("%d vCPUs: want 1 to %d", vcpus, maxVCPUs)
	}
	var ranges []Range
	for _, r := range p.Regions {
		t := PageType(max(0, slices.Index(kinds[:], r.Kind)))
		ranges = append(ranges, Range{t, uint64(r.Base), r.Size, r.Name, r.Data})
	}
	if err := checkOverlap(ranges); err != nil {
		return nil, err
	}
	for i := range vcpus {
		x := p.X86
		if i > 0 {
			x = p.X86APs
		}
		regs, err := FromX86(x, features).KVM()
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, Range{PageVMSA, VMSAGPA, PageSize, fmt.Sprintf("vcpu %d", i), blob(regs.Page())})
	}
	return ranges, nil
}

// FromX86 returns the registers of a vCPU on which gvmm has set x: what x does
// not name has its value behind a reset, which the launch sets explicitly. Pass
// the result through [Registers.KVM].
func FromX86(x *boot.X86State, features uint64) Registers {
	seg := func(s boot.X86Segment) Segment {
		return Segment{s.Selector, Attrib(s.Type, s.S, s.DPL, s.Present, s.AVL, s.L, s.DB, s.G), s.Limit, s.Base}
	}
	r := ResetRegisters(QEMU, resetVector, x.RDX, features) // LDTR, PAT, XCR0, DR6, DR7, FPU
	r.CS, r.DS, r.ES, r.FS, r.GS, r.SS, r.TR = seg(x.CS), seg(x.DS), seg(x.ES), seg(x.FS), seg(x.GS), seg(x.SS), seg(x.TR)
	r.GDTR = Segment{Limit: uint32(x.GDT.Limit), Base: x.GDT.Base}
	r.IDTR = Segment{Limit: uint32(x.IDT.Limit), Base: x.IDT.Base}
	r.RAX, r.RBX, r.RCX, r.RSI, r.RDI, r.RSP, r.RBP = x.RAX, x.RBX, x.RCX, x.RSI, x.RDI, x.RSP, x.RBP
	r.RIP, r.RFLAGS = x.RIP, x.RFLAGS|2
	r.CR0, r.CR3, r.CR4, r.EFER = x.CR0, x.CR3, x.CR4, x.EFER
	r.SCET, r.SSP = x.SCET, x.SSP
	return r
}

// PlanFirmware makes the plan of a guest that firmware boots the plan of its SNP
// launch, with the firmware's own metadata, as QEMU does it: the firmware, then
// its sections in their order, with the hashes of the kernel that is handed over.
func PlanFirmware(p *boot.Plan) error {
	if p.Firmware == nil || len(p.Regions) != 1 || p.X86 == nil {
		return errors.New("sev: not the plan of a guest that firmware boots")
	}
	f, err := ParseFirmware(p.Regions[0].Data)
	if err != nil {
		return fmt.Errorf("firmware: %w", err)
	}
	l := FirmwareLaunch{VMM: QEMU, Firmware: f}
	if p.Firmware.Kernel != nil {
		if l.Kernel, err = HashKernel(p.Firmware.Kernel, p.Firmware.Initrd, p.Cmdline); err != nil {
			return err
		}
	}
	sections, err := l.sections(f)
	if err != nil {
		return err
	}
	for _, s := range sections {
		if s.Data == nil {
			s.Data = blob(nil)
		}
		if !p.RAM[0].Contains(memory.GPA(s.GPA), s.Size) {
			return fmt.Errorf("%s at %#x, %d bytes, is outside the guest's memory: give it more with -M", s.Name, s.GPA, s.Size)
		}
		at := memory.Range{Base: memory.GPA(s.GPA), Size: s.Size}
		p.Regions = append(p.Regions, boot.Region{Range: at, Name: s.Name, Kind: kinds[s.Type], Data: s.Data})
	}
	aps := *p.X86
	if eip, err := f.ResetEIP(); err == nil {
		aps.CS.Base, aps.RIP = uint64(eip&^0xffff), uint64(eip&0xffff)
	}
	p.X86APs = &aps
	return nil
}

// PlanHashes adds the hashes of kernel, initrd and command line to the plan of a
// plain guest, if its firmware is one that asks for them: OVMF's AmdSev build
// boots no kernel without, under SEV or not.
func PlanHashes(p *boot.Plan) error {
	f, err := ParseFirmware(p.Regions[0].Data)
	if err != nil || p.Firmware.Kernel == nil {
		return nil // not OVMF, or nothing to hash
	}
	table, err := f.HashTable()
	if err != nil {
		return nil // a build that does not ask
	}
	hashes, err := HashKernel(p.Firmware.Kernel, p.Firmware.Initrd, p.Cmdline)
	if err != nil {
		return err
	}
	page, err := hashes.Page(table)
	at := memory.Range{Base: memory.GPA(table &^ (PageSize - 1)), Size: PageSize}
	if err == nil && !p.RAM[0].Contains(at.Base, at.Size) {
		err = fmt.Errorf("kernel hash table at %#x is outside the guest's memory: give it more with -M", table)
	}
	p.Regions = slices.Insert(p.Regions, 0, boot.Region{Range: at, Name: "kernel hashes", Kind: boot.Normal, Data: blob(page)})
	return err
}

package sev

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// FirmwareLaunch is a launch of firmware by another monitor, or by gvmm as QEMU
// does it: all that its digest depends on.
type FirmwareLaunch struct {
	VMM      VMM
	Firmware *Firmware
	Kernel   *Hashes // nil: none handed over
	VCPUs    int
	Sig      uint32  // CPUID signature of the vCPUs
	RDX      *uint64 // instead of [VMM.RDX]
	Features uint64  // SEV_FEATURES: guest features
	SVSM     *SVSM   // under COCONUT-SVSM; QEMU only

	// FirmwareDigest, where not nil, is the digest after the firmware's own pages,
	// which then are not measured: Firmware may hold its last page only.
	FirmwareDigest *Digest
}

// SVSM is a COCONUT-SVSM image, which lies below the firmware and its variables.
type SVSM struct {
	Image    *Firmware
	VarsSize uint64 // bytes of OVMF_VARS between the two
}

const (
	fourGiB  = 1 << 32
	maxVCPUs = 4096 // KVM's limit
)

// Ranges returns what the launch measures, in order.
func (l *FirmwareLaunch) Ranges() ([]Range, error) {
	if l.VCPUs < 1 || l.VCPUs > maxVCPUs {
		return nil, fmt.Errorf("%d vCPUs: want 1 to %d", l.VCPUs, maxVCPUs)
	}
	size := uint64(l.Firmware.Image.Size())
	gpa := fourGiB - size
	var ranges []Range
	if l.FirmwareDigest == nil {
		ranges = append(ranges, Range{PageNormal, gpa, size, "firmware", l.Firmware.Image})
	}
	described := l.Firmware
	if l.SVSM != nil {
		described = l.SVSM.Image
		size := uint64(described.Image.Size())
		if l.VMM != QEMU || l.Kernel != nil {
			return nil, errors.New("an SVSM starts under QEMU only, and without a kernel handed over")
		}
		if l.SVSM.VarsSize%PageSize != 0 || l.SVSM.VarsSize > gpa || size > gpa-l.SVSM.VarsSize {
			return nil, fmt.Errorf("SVSM of %d bytes and %d bytes of variables do not fit below the firmware at %#x in whole pages", size, l.SVSM.VarsSize, gpa)
		}
		gpa -= l.SVSM.VarsSize + size
		ranges = append(ranges, Range{PageNormal, gpa, size, "svsm", described.Image})
	}
	sections, err := l.sections(described)
	if err != nil {
		return nil, err
	}
	ranges = append(ranges, sections...)
	vmsas, err := l.vmsas(uint32(gpa))
	if err != nil {
		return nil, err
	}
	return append(ranges, vmsas...), checkOverlap(ranges)
}

// sections are the ranges of the firmware's metadata: in its order, but for EC2,
// which puts the CPUID page last.
func (l *FirmwareLaunch) sections(f *Firmware) ([]Range, error) {
	if len(f.Sections) == 0 {
		return nil, errors.New("firmware has no SEV-SNP metadata: it cannot start as an SNP guest (OVMF has had it since 2023)")
	}
	var ranges, last []Range
	hashed := l.Kernel == nil
	for _, s := range f.Sections {
		r := Range{PageZero, uint64(s.GPA), uint64(s.Size), "", nil}
		switch s.Type {
		case SectionMemory:
			r.Name = "firmware memory"
			if l.VMM == GCE {
				r.Type = PageUnmeasured
			}
		case SectionSecrets:
			r.Name, r.Type = "secrets", PageSecrets
		case SectionCPUID:
			r.Name, r.Type = "cpuid", PageCPUID
			if l.VMM == EC2 {
				last = append(last, r)
				continue
			}
		case SectionSVSMCAA:
			r.Name = "svsm calling area"
		case SectionKernelHashes:
			r.Name = "kernel hashes"
			if l.Kernel == nil {
				break
			}
			table, err := f.HashTable()
			if err != nil {
				return nil, err
			}
			page, err := l.Kernel.Page(table)
			if err != nil {
				return nil, err
			}
			r.Type, r.Data, hashed = PageNormal, blob(page), true
		}
		ranges = append(ranges, r)
	}
	if !hashed {
		return nil, errors.New("firmware has no section for kernel hashes: it cannot check the kernel; use OVMF's AmdSev build or hand over none")
	}
	return append(ranges, last...), nil
}

// vmsas are the vCPUs' pages. svsmGPA is where the SVSM lies, if there is one.
func (l *FirmwareLaunch) vmsas(svsmGPA uint32) ([]Range, error) {
	pages, err := l.vmsaPages(svsmGPA)
	if err != nil {
		return nil, err
	}
	var ranges []Range
	for i := range l.VCPUs {
		ranges = append(ranges, Range{PageVMSA, VMSAGPA, PageSize, fmt.Sprintf("vcpu %d", i), blob(pages[min(i, 1)])})
	}
	return ranges, nil
}

// vmsaPages returns the VMSA page of the first vCPU and that of all others.
func (l *FirmwareLaunch) vmsaPages(svsmGPA uint32) (pages [2][]byte, err error) {
	rdx := l.VMM.RDX(l.Sig)
	if l.RDX != nil {
		rdx = *l.RDX
	}
	if l.SVSM != nil {
		entry, err := have(l.SVSM.Image.svsmEntry, "SVSM entry: this is no SVSM image")
		r := svsmRegisters(svsmGPA+entry, uint32(rdx))
		return [2][]byte{r.Page(), r.Page()}, err
	}
	first := ResetRegisters(l.VMM, resetVector, rdx, l.Features)
	pages[0] = first.Page()
	if l.VCPUs > 1 {
		eip, err := l.Firmware.ResetEIP()
		if err != nil {
			return pages, err
		}
		others := ResetRegisters(l.VMM, eip, rdx, l.Features)
		pages[1] = others.Page()
	}
	return pages, nil
}

// checkOverlap finds a page that is launched twice, which KVM refuses.
func checkOverlap(ranges []Range) error {
	sorted := slices.Clone(ranges)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].GPA < sorted[j].GPA })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; b.GPA < a.GPA+a.Size {
			return fmt.Errorf("%s at %#x overlaps %s at %#x: no host launches a page twice", b.Name, b.GPA, a.Name, a.GPA)
		}
	}
	return nil
}

// Digest measures the launch. Each range is passed to after, which may be nil,
// with the digest behind it.
func (l *FirmwareLaunch) Digest(after func(Range, Digest)) (Digest, error) {
	ranges, err := l.Ranges()
	if err != nil {
		return Digest{}, err
	}
	var start Digest
	if l.FirmwareDigest != nil {
		start = *l.FirmwareDigest
	}
	return Measure(start, ranges, after)
}

// Measure returns the digest behind ranges that are launched in their order, from
// the digest start on, which is zeros at LAUNCH_START. Each range is passed to
// after, which may be nil, with the digest behind it.
func Measure(start Digest, ranges []Range, after func(Range, Digest)) (Digest, error) {
	c := Chain{start}
	for _, r := range ranges {
		if err := c.Add(r); err != nil {
			return Digest{}, err
		}
		if after != nil {
			after(r, c.digest)
		}
	}
	return c.digest, nil
}

// Legacy returns the launch digest of the same guest under SEV-ES (es) or plain
// SEV: SHA-256 over firmware, kernel hash table and, with SEV-ES, VMSA pages
// (AMD 55766, LAUNCH_MEASURE's GCTX.LD).
func (l *FirmwareLaunch) Legacy(es bool) ([]byte, error) {
	d := sha256.New()
	if _, err := io.Copy(d, io.NewSectionReader(l.Firmware.Image, 0, l.Firmware.Image.Size())); err != nil {
		return nil, err
	}
	if l.Kernel != nil {
		if _, err := l.Firmware.HashTable(); err != nil {
			return nil, err
		}
		d.Write(l.Kernel.Table())
	}
	if es {
		plain := *l
		plain.Features = 0
		vmsas, err := plain.vmsas(0)
		if err != nil {
			return nil, err
		}
		for _, v := range vmsas {
			p := make([]byte, PageSize)
			if err := readZeroed(v, 0, p); err != nil {
				return nil, err
			}
			d.Write(p)
		}
	}
	return d.Sum(nil), nil
}

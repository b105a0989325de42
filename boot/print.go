package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// WriteTo prints what the image is, for people.
func (img *Image) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", key, fmt.Sprintf(format, args...))
	}
	format := string(img.Format)
	if img.Packed != "" {
		format += ", " + img.Packed
	}
	line("format", "%s", format)
	line("arch", "%s", img.Arch)
	line("protocol", "%s", img.Protocol)
	line("machine", "%s", img.Machine)
	line("system", "%s", img.System())
	line("entry", "%#x", uint64(img.Entry))
	line("memory", "%s, at least %s", humanSize(img.DefaultMemory()), humanSize(img.MinMemory(0)))
	for _, s := range img.Segments {
		line("segment", "%v %s, %d bytes from offset %#x", s.Range, s.Perm, s.FileSize, s.Offset)
	}
	for _, n := range img.Notes {
		line("note", "%s", n)
	}
	return b.WriteTo(w)
}

// System names the operating system, for people.
func (img *Image) System() string {
	switch {
	case img.Unikraft && img.LibParams:
		return "Unikraft"
	case img.Unikraft:
		return "Unikraft, without library parameters"
	case img.Linux:
		return "Linux"
	}
	return "unknown"
}

// WriteTo prints the plan, for people. It reads every region to hash it.
func (p *Plan) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s on %s %s, entered by %s at %#x\n", p.Format, p.Arch, p.Machine, p.Protocol, uint64(p.Entry))
	fmt.Fprintf(&b, "command line: %s\n", p.Cmdline)
	for _, r := range p.RAM {
		fmt.Fprintf(&b, "RAM %v (%s)\n", r, humanSize(r.Size))
	}
	for _, r := range p.printed() {
		sum, err := r.sum()
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(&b, "%#012x %#10x bytes, %#10x in all, %s, sha256 %s: %s\n", uint64(r.Base), r.Data.Size(), r.Size, r.Kind, sum[:16], r.Name)
	}
	if s := p.X86; s != nil {
		fmt.Fprintf(&b, "rip %#x rsp %#x rflags %#x rax %#x rbx %#x rsi %#x\n", s.RIP, s.RSP, s.RFLAGS, s.RAX, s.RBX, s.RSI)
		fmt.Fprintf(&b, "cr0 %#x cr3 %#x cr4 %#x efer %#x cs %#x ds %#x gdt %#x+%#x\n", s.CR0, s.CR3, s.CR4, s.EFER, s.CS.Selector, s.DS.Selector, s.GDT.Base, s.GDT.Limit)
	}
	if s := p.ARM64; s != nil {
		fmt.Fprintf(&b, "pc %#x x0 %#x x1 %#x x2 %#x x3 %#x\n", s.PC, s.X[0], s.X[1], s.X[2], s.X[3])
		p.Platform.print(&b)
	}
	return b.WriteTo(w)
}

// print lists what the device tree tells the guest.
func (m *Platform) print(w io.Writer) {
	fmt.Fprintf(w, "%v GICv%d distributor\n", m.GIC.Dist, m.GIC.Version)
	for _, r := range []struct {
		name string
		memory.Range
	}{{"GIC CPU interface", m.GIC.CPU}, {"GIC redistributors", m.GIC.Redist}, {"GIC ITS", m.GIC.ITS}, {"stolen time", m.PVTime}, {m.RTCKind, m.RTC}} {
		if r.Size > 0 {
			fmt.Fprintf(w, "%v %s\n", r.Range, r.name)
		}
	}
	for _, u := range m.UARTs {
		fmt.Fprintf(w, "%v %s, SPI %d\n", u.Range, m.UART, u.IRQ)
	}
	for _, d := range m.MMIO {
		fmt.Fprintf(w, "%v virtio-mmio, SPI %d\n", at(d.Base, d.Size), d.IRQ)
	}
	if m.PCI != nil {
		fmt.Fprintf(w, "%v PCI ECAM\n%v PCI ports\n%v PCI memory\n", m.PCI.ECAM, m.PCI.Ports, m.PCI.Memory)
		for _, d := range m.PCI.Devices {
			fmt.Fprintf(w, "PCI slot %d virtio, SPI %d\n", d.Slot, d.IRQ)
		}
	}
}

// MarshalJSON gives the plan with a hash in place of every region's bytes.
func (p *Plan) MarshalJSON() ([]byte, error) {
	type region struct {
		Base   uint64 `json:"base"`
		Size   uint64 `json:"size"`
		Bytes  int64  `json:"bytes"` // the rest of size is zero
		Name   string `json:"name"`
		Kind   Kind   `json:"kind"`
		SHA256 string `json:"sha256"` // of the bytes
	}
	type ram struct {
		Base uint64 `json:"base"`
		Size uint64 `json:"size"`
	}
	out := struct {
		Arch     Arch      `json:"arch"`
		Format   Format    `json:"format"`
		Protocol Protocol  `json:"protocol"`
		Machine  Machine   `json:"machine"`
		Unikraft bool      `json:"unikraft"`
		Entry    uint64    `json:"entry"`
		Cmdline  string    `json:"cmdline"`
		RAM      []ram     `json:"ram"`
		Regions  []region  `json:"regions"`
		X86      *X86State `json:"x86,omitempty"`

		ARM64    *ARM64State `json:"arm64,omitempty"`
		Platform *Platform   `json:"platform,omitempty"`
		FWCfg    []region    `json:"fw_cfg,omitempty"` // key in place of base
	}{
		Arch: p.Arch, Format: p.Format, Protocol: p.Protocol, Machine: p.Machine,
		Unikraft: p.Unikraft, Entry: uint64(p.Entry), Cmdline: p.Cmdline, X86: p.X86,
		ARM64: p.ARM64, Platform: p.Platform,
	}
	for _, r := range p.RAM {
		out.RAM = append(out.RAM, ram{uint64(r.Base), r.Size})
	}
	for _, r := range p.printed() {
		sum, err := r.sum()
		if err != nil {
			return nil, err
		}
		list := &out.Regions
		if r.Kind == fwCfg {
			list = &out.FWCfg
		}
		*list = append(*list, region{uint64(r.Base), r.Size, r.Data.Size(), r.Name, r.Kind, sum})
	}
	return json.Marshal(out)
}

// printed are the regions, and behind them what fw_cfg serves, with keys for
// addresses (0: a file).
func (p *Plan) printed() []Region {
	out := slices.Clone(p.Regions)
	if p.Firmware != nil {
		for _, it := range p.Firmware.Items {
			out = append(out, Region{memory.Range{Base: memory.GPA(it.Key), Size: uint64(it.Data.Size())}, it.Name, fwCfg, it.Data})
		}
	}
	return out
}

const fwCfg Kind = "fw_cfg"

// sum is the SHA-256 of the region's bytes, in hexadecimal.
func (r *Region) sum() (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r.Data, 0, r.Data.Size())); err != nil {
		return "", fmt.Errorf("hash %s: %w", r.Name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

package boot

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// launched is the memory of an SNP guest as the secure processor has it after the
// launch: page types and contents by page address.
type launched map[memory.GPA]struct {
	kind Kind
	data []byte
}

func launch(t *testing.T, p *Plan) launched {
	t.Helper()
	m := launched{}
	last := memory.GPA(0)
	for _, r := range p.Regions {
		if r.Base < last || r.Base%pageSize != 0 || r.Size%pageSize != 0 || r.Size == 0 || uint64(r.Data.Size()) > r.Size {
			t.Fatalf("%s at %v behind %#x with %d bytes: not whole pages in ascending order", r.Name, r.Range, uint64(last), r.Data.Size())
		}
		last = r.End()
		b := make([]byte, r.Size)
		if n, err := r.Data.ReadAt(b[:r.Data.Size()], 0); int64(n) < r.Data.Size() {
			t.Fatalf("%s: %d of %d bytes: %v", r.Name, n, r.Data.Size(), err)
		}
		for at := uint64(0); at < r.Size; at += pageSize {
			page := m[r.Base+memory.GPA(at)]
			page.kind, page.data = r.Kind, b[at:at+pageSize]
			m[r.Base+memory.GPA(at)] = page
		}
	}
	return m
}

// read returns n bytes that do not cross a page.
func (m launched) read(at memory.GPA, n int) []byte {
	page := m[at&^(pageSize-1)]
	return page.data[at%pageSize:][:n]
}

// walk translates an address as the processor does, and wants every step private.
func (m launched) walk(t *testing.T, cr3, address uint64, cbit int) uint64 {
	t.Helper()
	table := cr3
	for shift := 39; ; shift -= 9 {
		e := u64(m.read(memory.GPA(table+address>>shift&511*8), 8), 0)
		if e>>cbit&1 != 1 || e&3 != 3 {
			t.Fatalf("%#x: entry %#x at level %d is not private, present and writable", address, e, (shift-12)/9+1)
		}
		if e &= 1<<cbit - 1; shift == 12 || e&0x80 != 0 {
			size := uint64(1) << shift
			return e&^(size-1)&^0xfff | address&(size-1)
		}
		table = e &^ 0xfff
	}
}

func TestSNPPlan(t *testing.T) {
	ragged := goodELF64() // segments that share pages, with each other and with zeros
	ragged.entry = 0x100010
	ragged.segments = []testSegment{load(0x100000, testCode, 300), load(0x100200, []byte("data"), 4), load(0x100ff0, bytes.Repeat([]byte{7}, 32), 0x3000)}
	for name, c := range map[string]struct {
		image  []byte
		memory uint64
		entry  uint64
	}{
		"bzImage": {goodBzImage(), 64 * mib, 0x1000200}, "vmlinux": {goodVmlinux().build(), 64 * mib, 0x1000010},
		"ELF64": {goodELF64().build(), 16 * mib, 0x100010}, "ragged": {ragged.build(), 2*mib + 4096, 0x100010},
		"above 4 GiB": {goodELF64().build(), 3328*mib + 8192, 0x100010},
	} {
		t.Run(name, func(t *testing.T) {
			const cbit = 47
			img := mustOpen(t, c.image)
			p := mustPlan(t, img, Options{Memory: c.memory, Params: "quiet", Initrd: initrd(5000), CPUs: 2, SNP: &SNP{CBit: cbit}})
			if c.memory > 1<<30 { // few of its pages hold anything: look at those
				for i := range p.Regions {
					if r := &p.Regions[i]; r.Size > 1<<30 {
						r.Base, r.Size = r.End()-pageSize, pageSize
					}
				}
			}
			m := launch(t, p)
			if x := p.X86; x.RIP != c.entry || p.Protocol != ProtocolLinux64 || x.EFER != eferLMA|eferLME || x.CR0&cr0PG == 0 {
				t.Errorf("entered by %s at %#x with EFER %#x", p.Protocol, x.RIP, x.EFER)
			}
			if p.X86APs == nil || p.X86APs.RIP != 0xfff0 || p.X86APs.RDX != 0x600 {
				t.Errorf("other vCPUs: %+v", p.X86APs)
			}
			for _, at := range []uint64{0, p.X86.RIP, p.X86.RSI, p.X86.RSP, uint64(p.RAM[0].End()) - 1, uint64(p.RAM[len(p.RAM)-1].End()) - 1, 511 << 30} {
				if to := m.walk(t, p.X86.CR3, at, cbit); to != at {
					t.Errorf("%#x is mapped to %#x", at, to)
				}
			}
			// All that the memory map gives to the guest is launched, and nothing else.
			zp := m.read(memory.GPA(p.X86.RSI), pageSize)
			var kinds []string
			pages := 0
			for i := range int(zp[zpE820Count]) {
				e := zp[zpE820+20*i:]
				base, size := u64(e, 0), u64(e, 8)
				kinds = append(kinds, fmt.Sprintf("%#x:%d", base, u32(e, 16)))
				if c.memory > 1<<30 && size > mib {
					base, size = base+size-pageSize, pageSize
				}
				for at := memory.GPA(base) &^ (pageSize - 1); uint64(at) < base+size; at += pageSize {
					if m[at].kind == "" {
						t.Errorf("%#x is not launched", uint64(at))
					}
					pages++
				}
			}
			if c.memory < 1<<30 && pages != len(m) {
				t.Errorf("%d pages launched, the guest knows of %d", len(m), pages)
			}
			want := []string{"0x0:1", "0x1000:2", "0x4000:1", "0x80000:3", "0x90000:1", "0x100000:1"}
			if !slices.Equal(kinds[:len(want)], want) {
				t.Errorf("memory map %v", kinds)
			}
			if at := memory.GPA(u64(zp, zpRSDP)); string(m.read(at, 8)) != "RSD PTR " || at < 0x80000 || at >= 0x90000 {
				t.Errorf("no RSDP at %#x", uint64(at))
			}
			// The way Linux finds its secrets (find_cc_blob_setup_data).
			data := m.read(memory.GPA(u64(zp, zpSetupData)), 20)
			if u64(data, 0) != 0 || u32(data, 8) != 7 || u32(data, 12) != 4 {
				t.Fatalf("setup_data % x", data)
			}
			blob := m.read(memory.GPA(u32(data, 16)), 40)
			secrets, cpuid := memory.GPA(u64(blob, 8)), memory.GPA(u64(blob, 24))
			if string(blob[:4]) != "AMDE" || m[secrets].kind != Secrets || m[cpuid].kind != CPUID || u32(blob, 16) != 4096 || u32(blob, 32) != 4096 {
				t.Errorf("CC blob % x", blob)
			}
			// What a plain launch loads lies at the same place.
			at := memory.GPA(u32(zp, zpInitrd))
			if got := m.read(at, pageSize); got[0] != 'i' || m.read(at+pageSize, 905)[904] != 0 {
				t.Error("the initrd is not where the zero page says")
			}
			for _, s := range img.Segments {
				b, err := readAt(bytes.NewReader(c.image), int64(len(c.image)), s.Offset, min(s.FileSize, 16))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(m.read(s.Base, len(b)), b) {
					t.Errorf("segment at %#x is not there", uint64(s.Base))
				}
			}
			for at, page := range m {
				if page.kind != Normal && slices.ContainsFunc(page.data, func(b byte) bool { return b != 0 }) {
					t.Errorf("%s page at %#x has bytes", page.kind, uint64(at))
				}
			}
		})
	}
}

func TestSNPRefusals(t *testing.T) {
	for want, c := range map[string]struct {
		image  []byte
		memory uint64
	}{
		"entered by multiboot starts in 32-bit mode": {goodMultiboot().build(), 0},
		"at most 512 GiB": {goodELF64().build(), 513 << 30},
	} {
		if _, err := mustOpen(t, c.image).Plan(Options{Memory: c.memory, SNP: &SNP{CBit: 51}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A part that reads short is an error, and bytes outside the parts are zeros.
func TestPages(t *testing.T) {
	part := func(at memory.GPA, s string) Region {
		return Region{Range: memory.Range{Base: at, Size: uint64(len(s))}, Data: strings.NewReader(s)}
	}
	b := &pages{at: 0x1000, parts: []Region{part(0x1002, "abc"), part(0x1006, "de")}}
	for off := range b.Size() {
		got := bytes.Repeat([]byte{'x'}, 5)
		n, _ := b.ReadAt(got, off)
		if want := "\x00\x00abc\x00de"[off:]; string(got[:n]) != want[:min(5, len(want))] {
			t.Errorf("from %d: %q", off, got[:n])
		}
	}
	if n, err := b.ReadAt(make([]byte, 4), 7); n != 1 || err == nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

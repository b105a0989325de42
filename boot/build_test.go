package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

const mib = 1 << 20

func mustPlan(t testing.TB, img *Image, o Options) *Plan {
	t.Helper()
	p, err := img.Plan(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// initrd is one of n bytes, none of them zero.
func initrd(n int) Blob { return bytes.NewReader(bytes.Repeat([]byte{'i'}, n)) }

func TestRAMAndE820(t *testing.T) {
	const low = "0x0-0x9fbff 1, "
	for _, c := range []struct {
		memory uint64
		ram    string
		e820   string
	}{
		{2 * mib, "[0x0-0x1fffff]", low + "0x100000-0x1fffff 1"},
		{3328 * mib, "[0x0-0xcfffffff]", low + "0x100000-0xcfffffff 1"},
		{3329 * mib, "[0x0-0xcfffffff 0x100000000-0x1000fffff]", low + "0x100000-0xcfffffff 1, 0x100000000-0x1000fffff 1"},
		{8192 * mib, "[0x0-0xcfffffff 0x100000000-0x22fffffff]", low + "0x100000-0xcfffffff 1, 0x100000000-0x22fffffff 1"},
	} {
		ram := RAMRanges(c.memory)
		if got := fmt.Sprint(ram); got != c.ram {
			t.Errorf("%d MiB: RAM %s, want %s", c.memory/mib, got, c.ram)
		}
		var got []string
		for _, e := range e820(ram) {
			got = append(got, fmt.Sprintf("%v %d", e.Range, e.Type))
		}
		if s := strings.Join(got, ", "); s != c.e820 {
			t.Errorf("%d MiB: e820\n got %s\nwant %s", c.memory/mib, s, c.e820)
		}
	}
}

func TestSlots(t *testing.T) {
	seen := map[uint32]bool{}
	for i := 0; ; i++ {
		d, ok := MMIOSlot(i)
		if !ok {
			if i != 16 {
				t.Errorf("%d windows", i)
			}
			break
		}
		if d.Base != MMIOBase+memory.GPA(i)*0x1000 || d.Size != 0x1000 {
			t.Errorf("window %d: %+v", i, d)
		}
		if seen[d.IRQ] || slices.Contains([]uint32{0, 1, 2, COM1IRQ, RTCIRQ, SCIIRQ}, d.IRQ) || i < 8 && d.IRQ > 15 || d.IRQ > 23 {
			t.Errorf("window %d: interrupt %d", i, d.IRQ)
		}
		seen[d.IRQ] = true
	}
	for i := range 31 {
		if d, ok := PCISlot(i); !ok || d.Slot != i+1 || d.IRQ > 15 {
			t.Errorf("PCI device %d: %+v %v", i, d, ok)
		}
	}
	for _, i := range []int{-1, 31} {
		if _, ok := PCISlot(i); ok {
			t.Errorf("PCI device %d exists", i)
		}
	}
}

// loaded is guest memory with the plan in it.
func loaded(t *testing.T, p *Plan) *memory.Guest {
	t.Helper()
	m, err := memory.New(p.RAM...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if err := p.Load(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func guestBytes(t *testing.T, m *memory.Guest, gpa uint64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := m.Read(memory.GPA(gpa), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func cstring(b []byte) string { return string(b[:bytes.IndexByte(b, 0)]) }

func TestMultibootPlan(t *testing.T) {
	img := mustOpen(t, goodMultiboot(".uk_inittab", ".uk_libparam_params").build())
	p := mustPlan(t, img, Options{Memory: 2 * mib, Name: "app", Params: "a.b=1", Initrd: initrd(5000)})
	if p.Machine != MachinePC || p.Protocol != ProtocolMultiboot || !p.Unikraft {
		t.Errorf("%s %s %v", p.Machine, p.Protocol, p.Unikraft)
	}
	s := p.X86
	if s.RIP != 0x100010 || s.RAX != 0x2badb002 || s.RBX != uint64(multibootBase) || s.CR0 != 0x11 || s.EFER != 0 || s.RFLAGS != 2 {
		t.Errorf("registers %+v", s)
	}
	if !s.CS.DB || s.CS.L || s.CS.Limit != 0xffffffff || s.CS.Type != 11 || s.DS.Type != 3 {
		t.Errorf("segments %+v %+v", s.CS, s.DS)
	}
	m := loaded(t, p)
	mbi := guestBytes(t, m, s.RBX, 0x74)
	if flags := u32(mbi, 0); flags != 1|1<<2|1<<3|1<<6|1<<9 {
		t.Errorf("flags %#x", flags)
	}
	if lower, upper := u32(mbi, 4), u32(mbi, 8); lower != 639 || upper != 1024 {
		t.Errorf("memory %d KiB and %d KiB", lower, upper)
	}
	if line := cstring(guestBytes(t, m, uint64(u32(mbi, 16)), 100)); line != "app a.b=1 --" {
		t.Errorf("command line %q", line)
	}
	if name := cstring(guestBytes(t, m, uint64(u32(mbi, 64)), 16)); name != "gvmm" {
		t.Errorf("loader %q", name)
	}
	mod := guestBytes(t, m, uint64(u32(mbi, 24)), 16)
	// A page behind the kernel's bss, which ends at 0x103000.
	if start, end := u32(mod, 0), u32(mod, 4); u32(mbi, 20) != 1 || start != 0x104000 || end != start+5000 {
		t.Errorf("%d modules, the first at %#x-%#x", u32(mbi, 20), start, end)
	}
	if name := cstring(guestBytes(t, m, uint64(u32(mod, 8)), 16)); name != "initrd" {
		t.Errorf("module string %q", name)
	}
	if b := guestBytes(t, m, 0x104000, 5001); !bytes.Equal(b[:5000], bytes.Repeat([]byte{'i'}, 5000)) || b[5000] != 0 {
		t.Error("initrd's bytes differ")
	}
	if b := guestBytes(t, m, 0x101000, 0x2000); string(b[:4]) != "data" || !bytes.Equal(b[4:], make([]byte, 0x1ffc)) {
		t.Error("data or bss differ")
	}
	var entries []string
	mmap := guestBytes(t, m, uint64(u32(mbi, 48)), int(u32(mbi, 44)))
	for len(mmap) > 0 {
		entries = append(entries, fmt.Sprintf("%#x+%#x %d", u64(mmap, 4), u64(mmap, 12), u32(mmap, 20)))
		mmap = mmap[4+u32(mmap, 0):]
	}
	if want := []string{"0x0+0x9fc00 1", "0x100000+0x100000 1"}; !slices.Equal(entries, want) {
		t.Errorf("memory map %q", entries)
	}
	if string(guestBytes(t, m, uint64(acpiBase), 8)) != "RSD PTR " {
		t.Error("no RSDP")
	}
}

func TestMultibootWithoutInitrd(t *testing.T) {
	p := mustPlan(t, mustOpen(t, goodMultiboot().build()), Options{})
	if flags := u32(region(t, p, "multiboot information"), 0); flags&mbiModules != 0 {
		t.Errorf("flags %#x", flags)
	}
	if p.RAM[0].Size != DefaultMemoryOther {
		t.Errorf("default memory %v", p.RAM)
	}
}

// walkPage translates an address with the plan's page tables.
func walkPage(t *testing.T, m *memory.Guest, cr3, va uint64) uint64 {
	t.Helper()
	table := cr3
	for _, shift := range []uint{39, 30, 21} {
		e := u64(guestBytes(t, m, table+va>>shift&511*8, 8), 0)
		if e&3 != 3 {
			t.Fatalf("%#x is not mapped: %#x at level %d", va, e, shift)
		}
		if shift == 21 {
			if e&0x80 == 0 {
				t.Fatalf("%#x: no 2 MiB page", va)
			}
			return e&^0x1fffff&(1<<52-1) + va&0x1fffff
		}
		table = e &^ 0xfff
	}
	return 0
}

func TestLinux64Plan(t *testing.T) {
	img := mustOpen(t, goodELF64(".uk_inittab", ".uk_libparam_params").build())
	p := mustPlan(t, img, Options{Memory: 4096 * mib, Name: "app", MMIO: slots(1), Args: []string{"x"}, Initrd: initrd(5000)})
	s := p.X86
	if s.RIP != 0x100010 || s.RSI != 0x7000 || s.RSP != 0x8ff0 || s.CR0 != 0x80000011 || s.CR4 != 0x20 || s.EFER != 0x500 || s.RFLAGS != 2 {
		t.Errorf("registers %+v", s)
	}
	if !s.CS.L || s.CS.DB {
		t.Errorf("CS %+v", s.CS)
	}
	m := loaded(t, p)
	for _, va := range []uint64{0, 0x7000, 0x100010, 0xd0000000, 0xfee00000, 0xffffffff} {
		if pa := walkPage(t, m, s.CR3, va); pa != va {
			t.Errorf("%#x is mapped to %#x", va, pa)
		}
	}
	gdt := guestBytes(t, m, s.GDT.Base, int(s.GDT.Limit)+1)
	for sel, want := range map[uint16]uint64{0: 0, selCode: 0x00af9b000000ffff, selData: 0x00cf93000000ffff, selTSS: 0x00008b0000000067} {
		if d := u64(gdt, int(sel)); d != want {
			t.Errorf("descriptor %#x: %#x, want %#x", sel, d, want)
		}
	}
	zp := guestBytes(t, m, s.RSI, 4096)
	line := cstring(guestBytes(t, m, uint64(u32(zp, 0x228)), 100))
	if line != "app "+dev0+" -- x" || line != p.Cmdline {
		t.Errorf("command line %q, the plan says %q", line, p.Cmdline)
	}
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"boot flag", uint64(u16(zp, 0x1fe)), 0xaa55},
		{"magic", uint64(u32(zp, 0x202)), 0x53726448},
		{"loader", uint64(zp[0x210]), 0xff},
		{"command line size with the NUL", uint64(u32(zp, 0x238)), uint64(len(line) + 1)},
		{"initrd", uint64(u32(zp, 0x218)), 0xd0000000 - 8192}, // at the top of low RAM
		{"initrd size", uint64(u32(zp, 0x21c)), 5000},
		{"RSDP", u64(zp, 0x70), uint64(acpiBase)},
		{"e820 entries", uint64(zp[0x1e8]), 3},
		{"last e820 base", u64(zp, 0x2d0+40), 1 << 32},
		{"last e820 size", u64(zp, 0x2d0+48), 4096*mib - 0xd0000000},
		{"last e820 type", uint64(u32(zp, 0x2d0+56)), 1},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func TestBzImagePlan(t *testing.T) {
	p := mustPlan(t, mustOpen(t, goodBzImage()), Options{Memory: 4096 * mib, Initrd: initrd(5000), Params: "quiet"})
	m := loaded(t, p)
	if p.X86.RIP != 0x1000200 || !bytes.Equal(guestBytes(t, m, 0x1000000, 300), testCode) {
		t.Errorf("entry %#x, or the payload is not at 0x1000000", p.X86.RIP)
	}
	zp := guestBytes(t, m, p.X86.RSI, 4096)
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"setup sectors, from the file", uint64(zp[0x1f1]), 2},
		{"version, from the file", uint64(u16(zp, 0x206)), 0x20f},
		{"init size, from the file", uint64(u32(zp, 0x260)), 0x800000},
		{"command line size, from the file", uint64(u32(zp, 0x238)), 2047},
		{"loader", uint64(zp[0x210]), 0xff},
		{"code32_start", uint64(u32(zp, 0x214)), 0x1000000},
		{"video mode", uint64(u16(zp, 0x1fa)), 0xffff},
		{"initrd below initrd_addr_max", uint64(u32(zp, 0x218)), 0x80000000 - 8192},
		{"bytes before the header", uint64(zp[0x1f0]), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func TestPVHPlan(t *testing.T) {
	img := mustOpen(t, goodVmlinux().build())
	p := mustPlan(t, img, Options{Memory: 64 * mib, Initrd: initrd(5000), Params: "quiet"})
	s := p.X86
	if s.RIP != 0x1000020 || s.RBX != 0x6000 || s.CR0 != 0x11 || s.CR4 != 0 || s.EFER != 0 {
		t.Errorf("registers %+v", s)
	}
	m := loaded(t, p)
	info := guestBytes(t, m, s.RBX, 56)
	mod := guestBytes(t, m, u64(info, 16), 32)
	last := guestBytes(t, m, u64(info, 40)+1*24, 24)
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"magic", uint64(u32(info, 0)), 0x336ec578},
		{"version", uint64(u32(info, 4)), 1},
		{"modules", uint64(u32(info, 12)), 1},
		{"RSDP", u64(info, 32), uint64(acpiBase)},
		{"memory map entries", uint64(u32(info, 48)), 2},
		{"module", u64(mod, 0), 64*mib - 8192},
		{"module size", u64(mod, 8), 5000},
		{"last range", u64(last, 0), 1 * mib},
		{"last range's size", u64(last, 8), 63 * mib},
		{"last range's type", uint64(u32(last, 16)), 1},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
	if line := cstring(guestBytes(t, m, u64(info, 24), 100)); line != "console=ttyS0 reboot=k panic=-1 quiet" {
		t.Errorf("command line %q", line)
	}
}

// TestPlanInvariants holds for every protocol what Plan promises.
func TestPlanInvariants(t *testing.T) {
	for name, file := range map[string][]byte{
		"multiboot": goodMultiboot(".uk_inittab").build(), "linux-64": goodELF64(".uk_inittab").build(),
		"bzImage": goodBzImage(), "pvh": goodVmlinux().build(), "packed": gz(t, goodVmlinux().build()),
	} {
		for _, machine := range []Machine{MachineAuto, MachinePC, MachineMicroVM} {
			p := mustPlan(t, mustOpen(t, file), Options{Memory: 5000 * mib, Machine: machine, CPUs: 4, MMIO: slots(2), Initrd: initrd(1)})
			for i, r := range p.Regions {
				if uint64(r.Data.Size()) > r.Size {
					t.Errorf("%s: %s has more bytes than room", name, r.Name)
				}
				if i > 0 && r.Base < p.Regions[i-1].End() {
					t.Errorf("%s: %s overlaps %s", name, r.Name, p.Regions[i-1].Name)
				}
				low := r.End() <= 1*mib
				if image := strings.HasPrefix(r.Name, "kernel") || r.Name == "initrd"; image == low {
					t.Errorf("%s: %s at %v", name, r.Name, r.Range)
				}
			}
			if machine != MachineAuto && p.Machine != machine {
				t.Errorf("%s: %s, want %s", name, p.Machine, machine)
			}
			loaded(t, p)
		}
	}
}

func TestPlanRefusals(t *testing.T) {
	low := goodMultiboot()
	low.segments = append(low.segments, load(0x20000, testCode, 300))
	big := goodELF64()
	big.segments[1].memsz = 11*mib - 0x1000
	uk := goodELF64(".uk_inittab").build()
	window := slots(1)
	window[0].Base = 0xc0000000
	for _, c := range []struct {
		name string
		file []byte
		o    Options
		want string
	}{
		{"too little memory", big.build(), Options{Memory: 2 * mib}, "image needs 13 MiB, the guest has 2 MiB: use -M 13M"},
		{"too little for the initrd", uk, Options{Memory: 4 * mib, Initrd: initrd(4 * mib)}, "image and initrd need 6 MiB, the guest has 4 MiB: use -M 6M"},
		{"too little for a bzImage", goodBzImage(), Options{Memory: 16 * mib}, "use -M 25M"},
		{"initrd above initrd_addr_max", func() []byte { b := goodBzImage(); put32(b, zpInitrdMax, 0x1800fff); return b }(), Options{Memory: 64 * mib, Initrd: initrd(8192)}, "do not fit between the kernel's end at 0x1800000 and 0x1801000"},
		{"uneven memory", uk, Options{Memory: 2*mib + 1}, "whole 4 KiB pages"},
		{"endless memory", uk, Options{Memory: 1 << 60}, "at most"},
		{"machine", uk, Options{Machine: "virt"}, `machine "virt"`},
		{"no vCPU", uk, Options{CPUs: -1}, "want 1 to 255"},
		{"too many vCPUs", uk, Options{CPUs: 256}, "want 1 to 255"},
		{"over our own structures", low.build(), Options{}, "overlaps"},
		{"window in RAM", uk, Options{MMIO: window}, "0xc0000000"},
		{"interrupt", uk, Options{PCI: []PCIDevice{{1, 24}}}, "interrupt 24"},
		{"endless initrd", uk, Options{Initrd: sizeOnly(1 << 40)}, "initrd"},
		{"negative initrd", uk, Options{Initrd: sizeOnly(-1)}, "initrd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := mustOpen(t, c.file).Plan(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: want it to say %q", err, c.want)
			}
		})
	}
}

// TestMinMemory: what the refusal tells the user to give is accepted.
func TestMinMemory(t *testing.T) {
	for _, file := range [][]byte{goodMultiboot().build(), goodELF64().build(), goodBzImage(), goodVmlinux().build()} {
		img := mustOpen(t, file)
		for _, n := range []int{0, 1, mib, 3*mib + 5, 3*mib - 0x3000, 3*mib - 0x4000, 3*mib - 0x5000} {
			need := img.MinMemory(int64(n))
			mustPlan(t, img, Options{Memory: need, Initrd: initrd(n)})
			if _, err := img.Plan(Options{Memory: need - 1*mib, Initrd: initrd(n)}); err == nil {
				t.Errorf("%s with an initrd of %d bytes fits into less than %s", img.Format, n, humanSize(need))
			}
		}
	}
}

// sizeOnly is a blob that has a size and no bytes.
type sizeOnly int64

func (s sizeOnly) Size() int64                       { return int64(s) }
func (s sizeOnly) ReadAt([]byte, int64) (int, error) { return 0, nil }

func TestLoadOfAFileThatBecameShorter(t *testing.T) {
	p := mustPlan(t, mustOpen(t, goodELF64().build()), Options{Memory: 2 * mib, Initrd: sizeOnly(100)})
	m, err := memory.New(p.RAM...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := p.Load(m); err == nil || !strings.Contains(err.Error(), "load initrd: 0 of 100 bytes") {
		t.Error(err)
	}
}

func TestPrint(t *testing.T) {
	img := mustOpen(t, goodMultiboot(".uk_inittab").build())
	p := mustPlan(t, img, Options{Name: "app"})
	var text bytes.Buffer
	if _, err := img.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"segment    0x101000-0x102fff r-x, 4 bytes", "multiboot header at file offset", "command line: app\n", "ACPI tables", "rip 0x100010"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, &text)
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Protocol string
		Regions  []struct {
			Name, SHA256 string
			Base, Size   uint64
		}
		X86 struct{ RIP uint64 }
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Protocol != "multiboot" || len(back.Regions) != len(p.Regions) || len(back.Regions[0].SHA256) != 64 || back.X86.RIP != 0x100010 {
		t.Errorf("%s", b)
	}
}

// BenchmarkPlan is everything this package does for a small unikernel between
// exec and the first instruction of the guest.
func BenchmarkPlan(b *testing.B) {
	e := goodMultiboot(".uk_inittab", ".uk_libparam_params")
	e.segments[0] = load(0x100000, make([]byte, 256<<10), 256<<10)
	e.segments[1].paddr = 0x180000
	file := e.build()
	p := mustPlan(b, mustOpen(b, file), Options{Memory: 64 * mib})
	m, err := memory.New(p.RAM...)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	b.ReportAllocs()
	for b.Loop() {
		img := mustOpen(b, file)
		if err := mustPlan(b, img, Options{Memory: 64 * mib, PCI: []PCIDevice{{1, 5}}}).Load(m); err != nil {
			b.Fatal(err)
		}
	}
}

package sev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/vmm/memory"
)

// snpPlan is a small plan with a region of every kind.
func snpPlan() *boot.Plan {
	p := &boot.Plan{
		RAM: []memory.Range{{Base: 0, Size: 1 << 20}},
		X86: &boot.X86State{
			RIP: 0x1000, RSI: 0x7000, RDX: 1, CR0: 0x80000011, CR3: 0x9000, CR4: 0x20, EFER: 0x500, RFLAGS: 2,
			CS:  boot.X86Segment{Selector: 0x10, Limit: 0xffffffff, Type: 11, S: true, Present: true, L: true, G: true},
			GDT: boot.X86Table{Base: 0x500, Limit: 47},
		},
		X86APs: &boot.X86State{RIP: 0xfff0, RDX: 0x600, CR0: 0x60000010, CS: boot.X86Segment{Selector: 0xf000, Base: 0xffff0000}},
	}
	add := func(at, size uint64, kind boot.Kind, data string) {
		p.Regions = append(p.Regions, boot.Region{
			Range: memory.Range{Base: memory.GPA(at), Size: size}, Name: string(kind), Kind: kind, Data: strings.NewReader(data),
		})
	}
	add(0x1000, 0x2000, boot.Normal, strings.Repeat("code", 1500))
	add(0x3000, 0x1000, boot.Secrets, "")
	add(0x4000, 0x1000, boot.CPUID, "")
	add(0x5000, 0x4000, boot.Zero, "")
	add(0x9000, 0x1000, boot.Normal, "page tables")
	add(0xa000, 0x1000, boot.Unmeasured, "")
	return p
}

func planDigest(t *testing.T, p *boot.Plan, vcpus int, features uint64) Digest {
	t.Helper()
	ranges, err := PlanRanges(p, vcpus, features)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Measure(Digest{}, ranges, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Every change of a page, a register or the number of vCPUs shows in the digest.
func TestPlanMutations(t *testing.T) {
	seen := map[Digest]string{}
	check := func(name string, vcpus int, features uint64, change func(*boot.Plan)) {
		t.Helper()
		p := snpPlan()
		change(p)
		d := planDigest(t, p, vcpus, features)
		if was, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", name, was)
		}
		seen[d] = name
	}
	check("the plan", 2, 0, func(*boot.Plan) {})
	for _, n := range []int{1, 3, 64} {
		check(fmt.Sprint(n, " vCPUs"), n, 0, func(*boot.Plan) {})
	}
	check("features", 2, 0x20, func(*boot.Plan) {})
	for i, r := range snpPlan().Regions {
		of := func(what string) string { return fmt.Sprintf("%s of %s %d", what, r.Kind, i) }
		check(of("drop"), 2, 0, func(p *boot.Plan) { p.Regions = slices.Delete(p.Regions, i, i+1) })
		check(of("move"), 2, 0, func(p *boot.Plan) { p.Regions[i].Base += 0x100000 })
		if i > 0 {
			check(of("swap"), 2, 0, func(p *boot.Plan) { p.Regions[i], p.Regions[i-1] = p.Regions[i-1], p.Regions[i] })
		}
		for _, kind := range kinds {
			if kind != "" && kind != r.Kind {
				check(of("retype as "+string(kind)), 2, 0, func(p *boot.Plan) { p.Regions[i].Kind = kind })
			}
		}
		if r.Size > PageSize {
			check(of("shorten"), 2, 0, func(p *boot.Plan) {
				b := make([]byte, min(r.Data.Size(), PageSize))
				_, _ = p.Regions[i].Data.ReadAt(b, 0)
				p.Regions[i].Size -= PageSize
				p.Regions[i].Data = bytes.NewReader(b)
			})
		}
		if r.Kind != boot.Normal {
			continue
		}
		for _, bit := range []int64{0, 8*PageSize - 1, 8*r.Data.Size() - 1, 8*int64(r.Size) - 1} {
			if bit < 8*int64(r.Size) {
				check(of(fmt.Sprint("flip bit ", bit)), 2, 0, func(p *boot.Plan) {
					b := make([]byte, r.Size)
					_, _ = p.Regions[i].Data.ReadAt(b, 0)
					b[bit/8] ^= 1 << (bit % 8)
					p.Regions[i].Data = bytes.NewReader(b)
				})
				if r.Size == PageSize && bit == 8*PageSize-1 {
					break // the last one is this one
				}
			}
		}
	}
	// Every field of both states, by reflection: a new one has to be measured too.
	var walk func(path string, kind reflect.Type, index []int)
	walk = func(path string, kind reflect.Type, index []int) {
		for i := range kind.NumField() {
			f, at := kind.Field(i), append(slices.Clone(index), i)
			if f.Type.Kind() == reflect.Struct {
				walk(path+f.Name+".", f.Type, at)
				continue
			}
			for _, ap := range []bool{false, true} {
				check(fmt.Sprintf("%s%s ap=%t", path, f.Name, ap), 2, 0, func(p *boot.Plan) {
					x := p.X86
					if ap {
						x = p.X86APs
					}
					switch v := reflect.ValueOf(x).Elem().FieldByIndex(at); v.Kind() {
					case reflect.Bool:
						v.SetBool(!v.Bool())
					case reflect.Uint8:
						v.SetUint(v.Uint() ^ 1)
					default:
						v.SetUint(v.Uint() ^ 1<<9)
					}
				})
			}
		}
	}
	walk("", reflect.TypeFor[boot.X86State](), nil)
	if len(seen) < 180 {
		t.Errorf("%d mutations tried: some were left out", len(seen))
	}
}

func TestPlanRefusals(t *testing.T) {
	for want, change := range map[string]func(*boot.Plan){
		"not the plan":         func(p *boot.Plan) { p.X86APs = nil },
		"overlaps":             func(p *boot.Plan) { p.Regions[1].Base = 0x2000 },
		"unknown page type 0":  func(p *boot.Plan) { p.Regions[1].Kind = "secret" },
		"not whole pages":      func(p *boot.Plan) { p.Regions[5].Size = 100 },
		"is not page aligned":  func(p *boot.Plan) { p.Regions[5].Base++ },
		"bytes of data for a ": func(p *boot.Plan) { p.Regions[4].Data = strings.NewReader(strings.Repeat("x", 4097)) },
	} {
		p := snpPlan()
		change(p)
		ranges, err := PlanRanges(p, 1, 0)
		if err == nil {
			_, err = Measure(Digest{}, ranges, nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for _, n := range []int{-1, 0, 5000} {
		if _, err := PlanRanges(snpPlan(), n, 0); err == nil {
			t.Errorf("%d vCPUs were accepted", n)
		}
	}
}

// What gvmm launches of a firmware is what QEMU launches, but for RDX.
func TestPlanFirmware(t *testing.T) {
	data := readFile(t, "ovmf_AmdSev_suffix.bin")
	img, err := boot.OpenFirmware(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd := strings.NewReader("MZ kernel"), strings.NewReader("initrd")
	p, err := img.Plan(boot.Options{Memory: 128 << 20, Kernel: kernel, Initrd: initrd, Params: "quiet", SNP: &boot.SNP{CBit: 51}})
	if err != nil {
		t.Fatal(err)
	}
	if err := PlanFirmware(p); err != nil {
		t.Fatal(err)
	}
	hashes, err := HashKernel(kernel, initrd, "quiet")
	if err != nil {
		t.Fatal(err)
	}
	rdx := uint64(0x600)
	l := FirmwareLaunch{VMM: QEMU, Firmware: parseFirmware(t, "ovmf_AmdSev_suffix.bin"), Kernel: hashes, VCPUs: 3, RDX: &rdx, Features: 0x21}
	want, err := l.Digest(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := planDigest(t, p, 3, 0x20); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	small, err := img.Plan(boot.Options{Memory: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	small.RAM[0].Size = 8 << 20
	if err := PlanFirmware(small); err == nil || !strings.Contains(err.Error(), "outside the guest's memory") {
		t.Errorf("sections outside RAM: %v", err)
	}
	if err := PlanFirmware(snpPlan()); err == nil {
		t.Error("a plan without firmware was accepted")
	}
}

// A plain guest's AmdSev firmware finds the same hashes in the same place as in
// an SNP launch; one that does not ask for them gets none.
func TestPlanHashes(t *testing.T) {
	plan := func(file string, o boot.Options) *boot.Plan {
		data := readFile(t, file)
		img, err := boot.OpenFirmware(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		o.Memory = 128 << 20
		p, err := img.Plan(o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	kernel := boot.Options{Kernel: strings.NewReader("MZ kernel"), Initrd: strings.NewReader("initrd"), Params: "quiet"}
	p, launched := plan("ovmf_AmdSev_suffix.bin", kernel), plan("ovmf_AmdSev_suffix.bin", kernel)
	if err := errors.Join(PlanHashes(p), PlanFirmware(launched)); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(launched.Regions, func(r boot.Region) bool { return r.Name == "kernel hashes" })
	if got, want := p.Regions[0], launched.Regions[i]; len(p.Regions) != 2 || got.Range != want.Range || got.Kind != want.Kind || !reflect.DeepEqual(got.Data, want.Data) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, p := range map[string]*boot.Plan{
		"no kernel":          plan("ovmf_AmdSev_suffix.bin", boot.Options{}),
		"no table of hashes": plan("ovmf_OvmfX64_suffix.bin", kernel),
	} {
		if err := PlanHashes(p); err != nil || len(p.Regions) != 1 {
			t.Errorf("%s: %v, regions %v", name, err, p.Regions)
		}
	}
	small := plan("ovmf_AmdSev_suffix.bin", kernel)
	small.RAM[0].Size = 8 << 20
	if err := PlanHashes(small); err == nil || !strings.Contains(err.Error(), "outside the guest's memory") {
		t.Errorf("hashes outside RAM: %v", err)
	}
}

func TestCPUIDPage(t *testing.T) {
	entries := []CPUIDEntry{
		{0, 0, 0x10, 1, 2, 3}, {1, 0, 0xa00f11, 0, 1<<24 | 1, 0}, {2, 0, 0, 0, 0, 0},
		{7, 0, 0, 1<<1 | 1<<3, 1 << 7, 1<<20 | 63<<26}, {0xd, 0, 7, 0x988, 0x988, 0}, {0xd, 1, 0xf, 0x348, 0x1800, 0},
		{0x80000008, 0, 0x3030, 1 << 25, 0, 0}, {0x8000001f, 0, 0x1001f, 0x173, 0x1fd, 1},
	}
	p, err := CPUIDPage(entries, 51)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	got := map[CPUIDEntry][6]uint32{}
	for i := range int(le.Uint32(p)) {
		e := p[16+48*i:]
		got[CPUIDEntry{Function: le.Uint32(e), Index: le.Uint32(e[4:])}] = [6]uint32{
			le.Uint32(e[24:]), le.Uint32(e[28:]), le.Uint32(e[32:]), le.Uint32(e[36:]), le.Uint32(e[8:]), le.Uint32(e[16:]),
		}
	}
	for k, want := range map[CPUIDEntry][6]uint32{
		{Function: 0}: {0x10, 1, 2, 3}, {Function: 1}: {0xa00f11, 0, 1, 0}, {Function: 7}: {0, 1 << 3, 1 << 7, 1 << 20},
		{Function: 0xd}: {7, 0x240, 0x988, 0, 1, 0}, {Function: 0xd, Index: 1}: {0xf, 0x240, 0x1800, 0, 1, 0},
		{Function: 0xd, Index: 11}: {16, 0, 1, 0}, {Function: 0xd, Index: 12}: {24, 0, 1, 0},
		{Function: 0x80000008}: {0x3030, 0, 0, 0}, {Function: 0x8000001f}: {0x1a, 0x173, 0, 0},
	} {
		if got[k] != want {
			t.Errorf("function %#x.%d: %#x, want %#x", k.Function, k.Index, got[k], want)
		}
	}
	if len(got) != 9 {
		t.Errorf("%d functions: %v", len(got), got)
	}
	if _, err := CPUIDPage(make65(), 51); err == nil {
		t.Error("65 functions were accepted")
	}
}

func make65() []CPUIDEntry {
	var e []CPUIDEntry
	for i := range uint32(65) {
		e = append(e, CPUIDEntry{Function: 0xd, Index: i, EAX: 1})
	}
	return e
}

package boot

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Keys of the hand-over (QEMU include/standard-headers/linux/qemu_fw_cfg.h
// and hw/i386/x86-common.c): the kernel in two parts, its setup sectors first.
const (
	fwKernelSize  = 0x08
	fwInitrdSize  = 0x0b
	fwKernelData  = 0x11
	fwInitrdData  = 0x12
	fwCmdlineSize = 0x14
	fwCmdlineData = 0x15
	fwSetupSize   = 0x17
	fwSetupData   = 0x18
)

// goodFirmware has a jump at the reset vector.
func goodFirmware(size int) []byte {
	b := make([]byte, size)
	copy(b[size-16:], "\x90\x90\xe9")
	return b
}

func firmwarePlan(t *testing.T, o Options) *Plan {
	t.Helper()
	rom := goodFirmware(2 * mib)
	img, err := OpenFirmware(bytes.NewReader(rom), int64(len(rom)))
	if err != nil {
		t.Fatal(err)
	}
	return mustPlan(t, img, o)
}

// items reads what fw_cfg would serve, by name or key.
func items(t *testing.T, p *Plan) (files map[string][]byte, keys map[uint16][]byte) {
	t.Helper()
	files, keys = map[string][]byte{}, map[uint16][]byte{}
	for _, it := range p.Firmware.Items {
		b, err := io.ReadAll(io.NewSectionReader(it.Data, 0, it.Data.Size()))
		if err != nil {
			t.Fatal(err)
		}
		if it.Key == 0 {
			files[it.Name] = b
		} else {
			keys[it.Key] = b
		}
	}
	return files, keys
}

func TestFirmwarePlan(t *testing.T) {
	kernel := goodBzImage()
	p := firmwarePlan(t, Options{Memory: 5 << 30, CPUs: 2, Params: "quiet", Args: []string{"one"}, Kernel: bytes.NewReader(kernel), Initrd: initrd(1000)})
	rom := memory.Range{Base: 0xffe00000, Size: 2 * mib}
	if p.Firmware.ROM != rom || len(p.Regions) != 1 || p.Regions[0].Range != rom || p.Regions[0].Name != "firmware" || p.Regions[0].Kind != Normal {
		t.Errorf("ROM %v, regions %v", p.Firmware.ROM, p.Regions)
	}
	if got := p.Memory(); len(got) != 3 || got[2] != rom || slices.Contains(p.RAM, rom) {
		t.Errorf("memory %v, RAM %v", got, p.RAM)
	}
	if x := p.X86; x.CS.Base+x.RIP != uint64(p.Entry) || p.Entry != 0xfffffff0 || x.CR0&1 != 0 || x.CS.Selector != 0xf000 || x.SS.Type != 3 {
		t.Errorf("entered at %#x with %+v", p.Entry, x)
	}
	if want := "console=ttyS0 reboot=k panic=-1 quiet -- one"; p.Cmdline != want {
		t.Errorf("command line %q, want %q", p.Cmdline, want)
	}
	files, keys := items(t, p)
	if got := append(slices.Clone(keys[fwSetupData]), keys[fwKernelData]...); !bytes.Equal(got, kernel) || len(keys[fwSetupData]) != (int(kernel[zpSetupSects])+1)*512 {
		t.Errorf("setup of %d bytes, kernel of %d", len(keys[fwSetupData]), len(keys[fwKernelData]))
	}
	if got := string(keys[fwCmdlineData]); got != p.Cmdline+"\x00" {
		t.Errorf("command line %q", got)
	}
	if !bytes.Equal(keys[fwInitrdData], bytes.Repeat([]byte{'i'}, 1000)) {
		t.Errorf("initrd of %d bytes", len(keys[fwInitrdData]))
	}
	for size, data := range map[uint16]uint16{fwSetupSize: fwSetupData, fwKernelSize: fwKernelData, fwInitrdSize: fwInitrdData, fwCmdlineSize: fwCmdlineData} {
		if b := keys[size]; len(b) != 4 || int(u32(b, 0)) != len(keys[data]) {
			t.Errorf("key %#x says % x for %d bytes", size, b, len(keys[data]))
		}
	}
	want := []uint64{0, uint64(RAMHole), uint64(RAMAbove4G), 5<<30 - uint64(RAMHole)}
	for i, e := 0, files["etc/e820"]; i < 2; i, e = i+1, e[20:] {
		if u64(e, 0) != want[2*i] || u64(e, 8) != want[2*i+1] || u32(e, 16) != e820RAM {
			t.Errorf("e820 entry %d: % x", i, e[:20])
		}
	}
	var text strings.Builder
	if _, err := p.WriteTo(&text); err != nil || !strings.Contains(text.String(), "0x000000000012      0x3e8 bytes,      0x3e8 in all, fw_cfg, sha256 ") {
		t.Errorf("printed as\n%s%v", &text, err)
	}
	js, err := json.Marshal(p)
	if err != nil || !strings.Contains(string(js), `"fw_cfg":[{"base":23,`) {
		t.Errorf("JSON %s, %v", js, err)
	}
	names := slices.Collect(func(yield func(string) bool) {
		for _, it := range p.Firmware.Items {
			if it.Key == 0 && !yield(it.Name) {
				return
			}
		}
	})
	if !slices.IsSorted(names) {
		t.Errorf("files %q are not in order", names)
	}
}

// An EFI program that is no Linux kernel is handed over whole, with the
// parameters as they are.
func TestFirmwareBootsAnEFIProgram(t *testing.T) {
	program := []byte("MZ an EFI program")
	p := firmwarePlan(t, Options{Params: "a b", Kernel: bytes.NewReader(program)})
	_, keys := items(t, p)
	if len(keys[fwSetupData]) != 0 || !bytes.Equal(keys[fwKernelData], program) || p.Cmdline != "a b" {
		t.Errorf("setup of %d bytes, program %q, parameters %q", len(keys[fwSetupData]), keys[fwKernelData], p.Cmdline)
	}
	if p = firmwarePlan(t, Options{}); len(p.Firmware.Items) != 4 {
		t.Errorf("%d items without a kernel, want files only", len(p.Firmware.Items))
	}
}

func TestFirmwareRefusals(t *testing.T) {
	for _, c := range []struct {
		rom  []byte
		want string
	}{
		{nil, "whole 4 KiB pages"},
		{goodFirmware(4096 + 16), "whole 4 KiB pages"},
		{goodFirmware(int(MaxFirmware) + 4096), "at most 16 MiB"},
		{make([]byte, 8192), "nothing at the reset vector"},
		{bytes.Repeat([]byte{0xff}, 8192), "OVMF_VARS"},
	} {
		if _, err := OpenFirmware(bytes.NewReader(c.rom), int64(len(c.rom))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes: %v, want %q", len(c.rom), err, c.want)
		}
	}
	rom := goodFirmware(4096)
	img, err := OpenFirmware(bytes.NewReader(rom), int64(len(rom)))
	if err != nil {
		t.Fatal(err)
	}
	cut := goodBzImage()[:zpMagic+4]
	cut[zpSetupSects] = 40
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Machine: MachineMicroVM}, "on pc only"},
		{Options{Params: "quiet"}, "without a kernel"},
		{Options{Initrd: initrd(1)}, "without a kernel"},
		{Options{Memory: 32 * mib}, "use -M 64M"},
		{Options{Kernel: sizeOnly(1 << 32)}, "less than 4 GiB"},
		{Options{Kernel: bytes.NewReader(cut)}, "truncated"},
		{Options{Kernel: bytes.NewReader([]byte("MZ")), Params: "a\x00b"}, "NUL"},
	} {
		if _, err := img.Plan(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// TestACPILoader does what firmware does with the script, and walks the tables
// where it put them.
func TestACPILoader(t *testing.T) {
	o := Options{CPUs: 3, Machine: MachinePC, PCI: []PCIDevice{{2, 6}, {3, 7}}}
	direct := testACPI(t, o)
	blob, err := acpiTables(o)
	if err != nil {
		t.Fatal(err)
	}
	script := acpiLoader(blob)
	files := map[string][]byte{acpiRSDPFile: slices.Clone(blob[:acpiRSDPSize]), acpiTablesFile: blob}
	place := map[string]int{}
	name := func(b []byte) string { return cstring(b[:56]) }
	memory := make([]byte, 0x1000) // at acpiBase
	for ; len(script) > 0; script = script[128:] {
		file, rest := name(script[4:]), script[60:]
		switch b := files[file]; u32(script, 0) {
		case 1:
			if rest[4] == 2 { // the RSDP
				place[file] = 0
			} else {
				place[file] = len(memory)
				memory = append(memory, b...)
				files[file] = memory[place[file]:]
			}
		case 2:
			at, src := int(u32(rest, 56)), name(rest)
			base := uint64(acpiBase) + uint64(place[src])
			if rest[60] == 8 {
				put64(b, at, u64(b, at)+base)
			} else {
				put32(b, at, u32(b, at)+uint32(base))
			}
		case 3:
			at, from, n := u32(rest, 0), u32(rest, 4), u32(rest, 8)
			b[at] = checksum(b[from : from+n])
		default:
			t.Fatalf("command %d", u32(script, 0))
		}
	}
	copy(memory, files[acpiRSDPFile])
	placed := findTables(t, memory)
	if got, want := slices.Sorted(maps.Keys(placed)), slices.Sorted(maps.Keys(direct)); !slices.Equal(got, want) {
		t.Errorf("tables %q, want %q", got, want)
	}
	for _, name := range []string{"DSDT", "APIC"} {
		if !bytes.Equal(placed[name], direct[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

// Firmware places PCI memory from 2 GiB or the end of RAM on; the window that
// the tables name has to hold it.
func TestFirmwarePCIWindow(t *testing.T) {
	for _, c := range []struct {
		memory uint64
		want   string
	}{{512 * mib, "0x80000000-0xfebfffff"}, {3 << 30, "0xc0000000-0xfebfffff"}, {8 << 30, "0xd0000000-0xfebfffff"}} {
		all := strings.Join(walkDSDT(t, Options{Memory: c.memory, CPUs: 1, Machine: MachinePC, firmware: true}), "\n")
		if !strings.Contains(all, c.want) {
			t.Errorf("%d bytes of memory: no window %s in\n%s", c.memory, c.want, all)
		}
	}
}

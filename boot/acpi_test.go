package boot

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// findTables walks the tables as a guest does, from the RSDP, and checks every
// length and checksum.
func findTables(t *testing.T, blob []byte) map[string][]byte {
	t.Helper()
	sum := func(what string, b []byte) {
		if checksum(b) != 0 {
			t.Errorf("%s: bad checksum", what)
		}
	}
	at := func(gpa uint64) []byte { return blob[gpa-uint64(acpiBase):] }
	table := func(gpa uint64) []byte {
		b := at(gpa)
		b = b[:u32(b, 4)]
		sum(string(b[:4]), b)
		return b
	}
	if string(blob[:8]) != "RSD PTR " || blob[15] != 2 {
		t.Fatalf("no RSDP at the start: % x", blob[:36])
	}
	sum("RSDP", blob[:20])
	sum("extended RSDP", blob[:36])
	xsdt, rsdt := table(u64(blob, 24)), table(uint64(u32(blob, 16)))
	tables := map[string][]byte{}
	for i := acpiHeaderSize; i < len(xsdt); i += 8 {
		b := table(u64(xsdt, i))
		tables[string(b[:4])] = b
		if j := acpiHeaderSize + (i-acpiHeaderSize)/2; uint64(u32(rsdt, j)) != u64(xsdt, i) {
			t.Errorf("RSDT and XSDT differ at entry %d", j)
		}
	}
	fadt := tables["FACP"]
	tables["DSDT"] = table(u64(fadt, 140))
	if u64(fadt, 140) != uint64(u32(fadt, 40)) {
		t.Error("DSDT and X_DSDT differ")
	}
	if facs := at(uint64(u32(fadt, 36))); string(facs[:4]) != "FACS" || u32(facs, 4) != 64 || u32(fadt, 36)%64 != 0 {
		t.Errorf("no FACS at %#x", u32(fadt, 36))
	}
	return tables
}

func testACPI(t *testing.T, o Options) map[string][]byte {
	t.Helper()
	blob, err := acpiTables(o)
	if err != nil {
		t.Fatal(err)
	}
	return findTables(t, blob)
}

func TestFADT(t *testing.T) {
	f := testACPI(t, Options{CPUs: 1})["FACP"]
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"length", uint64(len(f)), 276},
		{"SCI", uint64(u16(f, 46)), 9},
		{"SMI command", uint64(u32(f, 48)), 0},
		{"PM1a event", uint64(u32(f, 56)), 0x600},
		{"X PM1a event", u64(f, 152), 0x600},
		{"PM1a control", uint64(u32(f, 64)), 0x604},
		{"X PM1a control", u64(f, 176), 0x604},
		{"PM1 event length", uint64(f[88]), 4},
		{"PM1 control length", uint64(f[89]), 2},
		{"8042", uint64(u16(f, 109) & 2), 0},
		{"hardware-reduced", uint64(u32(f, 112) & (1 << 20)), 0},
		{"reset supported", uint64(u32(f, 112) & (1 << 10)), 1 << 10},
		{"reset port", u64(f, 120), 0x64},
		{"reset value", uint64(f[128]), 0xfe},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func TestMADT(t *testing.T) {
	m := testACPI(t, Options{CPUs: 3, PCI: []PCIDevice{{1, 10}, {2, 5}, {3, 10}, {4, 17}}})["APIC"]
	if u32(m, 36) != 0xfee00000 {
		t.Errorf("local APIC at %#x", u32(m, 36))
	}
	var got []string
	for b := m[44:]; len(b) > 0; b = b[b[1]:] {
		switch b[0] {
		case 0:
			got = append(got, fmt.Sprintf("cpu %d apic %d flags %d", b[2], b[3], u32(b, 4)))
		case 1:
			got = append(got, fmt.Sprintf("ioapic %d at %#x gsi %d", b[2], u32(b, 4), u32(b, 8)))
		case 2:
			got = append(got, fmt.Sprintf("irq %d is gsi %d flags %#x", b[3], u32(b, 4), u16(b, 8)))
		case 4:
			got = append(got, fmt.Sprintf("nmi cpu %#x lint %d", b[2], b[5]))
		default:
			t.Fatalf("entry type %d", b[0])
		}
	}
	want := []string{"cpu 0 apic 0 flags 1", "cpu 1 apic 1 flags 1", "cpu 2 apic 2 flags 1", "ioapic 0 at 0xfec00000 gsi 0",
		"irq 5 is gsi 5 flags 0xd", "irq 9 is gsi 9 flags 0xd", "irq 10 is gsi 10 flags 0xd", "nmi cpu 0xff lint 1"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// amlWalk prints the terms of AML that the encoder can make, checking that
// every length ends where the term ends.
type amlWalk struct {
	t   *testing.T
	out []string
}

func (w *amlWalk) list(b []byte, path string) {
	for len(b) > 0 {
		b = w.term(b, path)
	}
}

func (w *amlWalk) pkg(b []byte) (body, rest []byte) {
	n, extra := int(b[0]&0x3f), int(b[0]>>6)
	if extra > 0 {
		n = int(b[0] & 15)
		for i := range extra {
			n |= int(b[1+i]) << (4 + 8*i)
		}
	}
	if n < 1+extra || n > len(b) {
		w.t.Fatalf("package length %d of %d bytes", n, len(b))
	}
	return b[1+extra : n], b[n:]
}

func amlPath(b []byte) (string, []byte) {
	n := 4
	if b[0] == '\\' {
		n = 5
	}
	return string(b[:n]), b[n:]
}

func (w *amlWalk) term(b []byte, path string) []byte {
	switch {
	case b[0] == 0x10, b[0] == 0x5b && b[1] == 0x82:
		body, rest := w.pkg(b[1+int(b[0]>>6&1):])
		name, body := amlPath(body)
		w.out = append(w.out, path+name)
		w.list(body, path+name+".")
		return rest
	case b[0] == 0x08:
		name, rest := amlPath(b[1:])
		value, rest := w.value(rest)
		w.out = append(w.out, path+name+" = "+value)
		return rest
	}
	w.t.Fatalf("term % x in %s", b[:min(len(b), 8)], path)
	return nil
}

func (w *amlWalk) value(b []byte) (string, []byte) {
	switch b[0] {
	case 0, 1:
		return fmt.Sprint(b[0]), b[1:]
	case 0x0a:
		return fmt.Sprintf("%#x", b[1]), b[2:]
	case 0x0b:
		return fmt.Sprintf("%#x", u16(b, 1)), b[3:]
	case 0x0c:
		return fmt.Sprintf("%#x", u32(b, 1)), b[5:]
	case 0x0d:
		n := bytes.IndexByte(b, 0)
		return string(b[1:n]), b[n+1:]
	case 0x11:
		body, rest := w.pkg(b[1:])
		_, template := w.value(body)
		return w.resources(template), rest
	case 0x12:
		body, rest := w.pkg(b[1:])
		var elements []string
		n := int(body[0])
		for body = body[1:]; len(body) > 0; {
			var v string
			v, body = w.value(body)
			elements = append(elements, v)
		}
		if n != len(elements) {
			w.t.Fatalf("package says %d elements and has %d", n, len(elements))
		}
		return "{" + strings.Join(elements, " ") + "}", rest
	}
	w.t.Fatalf("value % x", b[:min(len(b), 8)])
	return "", nil
}

func (w *amlWalk) resources(b []byte) string {
	var out []string
	for {
		n := 1 + int(b[0]&7)
		if b[0]&0x80 != 0 {
			n = 3 + int(u16(b, 1))
		}
		switch b[0] {
		case 0x22:
			out = append(out, fmt.Sprintf("irqs %#x", u16(b, 1)))
		case 0x47:
			out = append(out, fmt.Sprintf("ports %#x+%d", u16(b, 2), b[7]))
		case 0x86:
			out = append(out, fmt.Sprintf("memory %#x+%#x", u32(b, 4), u32(b, 8)))
		case 0x87:
			out = append(out, fmt.Sprintf("window %#x-%#x+%#x", u32(b, 10), u32(b, 14), u32(b, 22)))
		case 0x88:
			out = append(out, fmt.Sprintf("window%d %#x-%#x+%#x", b[3], u16(b, 8), u16(b, 10), u16(b, 14)))
		case 0x89:
			out = append(out, fmt.Sprintf("gsi %d flags %#x", u32(b, 5), b[3]))
		case 0x79:
			if n != len(b) {
				w.t.Fatalf("%d bytes behind the end tag", len(b)-n)
			}
			return strings.Join(out, ", ")
		default:
			w.t.Fatalf("resource % x", b[:min(len(b), 8)])
		}
		b = b[n:]
	}
}

func walkDSDT(t *testing.T, o Options) []string {
	w := &amlWalk{t: t}
	w.list(testACPI(t, o)["DSDT"][acpiHeaderSize:], "")
	return w.out
}

func TestDSDT(t *testing.T) {
	common := []string{`\_SB_`,
		`\_SB_.COM1`, `\_SB_.COM1._HID = 0x105d041`, `\_SB_.COM1._UID = 1`, `\_SB_.COM1._CRS = ports 0x3f8+8, irqs 0x10`,
		`\_SB_.RTC_`, `\_SB_.RTC_._HID = 0xbd041`, `\_SB_.RTC_._CRS = ports 0x70+2, irqs 0x100`,
		`\_SB_.PVPN`, `\_SB_.PVPN._HID = QEMU0001`, `\_SB_.PVPN._CRS = ports 0x505+1`}
	off := []string{`_S5_ = {0 0 0 0}`}
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"microvm", Options{CPUs: 1, Machine: MachineMicroVM, MMIO: slots(2)}, []string{
			`\_SB_.VM00`, `\_SB_.VM00._HID = LNRO0005`, `\_SB_.VM00._UID = 0`, `\_SB_.VM00._CCA = 1`, `\_SB_.VM00._CRS = memory 0xd0000000+0x1000, gsi 5 flags 0x3`,
			`\_SB_.VM01`, `\_SB_.VM01._HID = LNRO0005`, `\_SB_.VM01._UID = 1`, `\_SB_.VM01._CCA = 1`, `\_SB_.VM01._CRS = memory 0xd0001000+0x1000, gsi 6 flags 0x3`}},
		{"pc", Options{CPUs: 1, Machine: MachinePC, PCI: []PCIDevice{{1, 5}, {3, 11}}}, []string{
			`\_SB_.PCI0`, `\_SB_.PCI0._HID = 0x30ad041`, `\_SB_.PCI0._UID = 0`, `\_SB_.PCI0._BBN = 0`,
			`\_SB_.PCI0._CRS = window2 0x0-0x0+0x1, ports 0xcf8+8, window1 0xc000-0xffff+0x4000, window 0xe0000000-0xfebfffff+0x1ec00000`,
			`\_SB_.PCI0._PRT = {{0x1ffff 0 0 0x5} {0x3ffff 0 0 0xb}}`}},
	} {
		got := walkDSDT(t, c.o)
		if want := slices.Concat(common, c.want, off); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
}

// TestACPILarge has tables of every size of package length.
func TestACPILarge(t *testing.T) {
	o := Options{CPUs: maxCPUs, Machine: MachinePC}
	for i := range 100 {
		o.MMIO = append(o.MMIO, MMIODevice{MMIOBase + MMIOSize*0x100, MMIOSize, uint32(i % 24)})
		if s, ok := PCISlot(i); ok {
			o.PCI = append(o.PCI, s)
		}
	}
	if n := len(walkDSDT(t, o)); n < 500 {
		t.Errorf("%d terms", n)
	}
	for len(o.MMIO) < 2000 {
		o.MMIO = append(o.MMIO, o.MMIO...)
	}
	if _, err := acpiTables(o); err == nil {
		t.Error("tables beyond their room accepted")
	}
}

// TestIASL has the reference compiler read the tables where it is installed.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("iasl (acpica-tools) is not installed")
	}
	dir := t.TempDir()
	for name, b := range testACPI(t, Options{CPUs: 2, Machine: MachinePC, MMIO: slots(3), PCI: []PCIDevice{{1, 5}}}) {
		file := filepath.Join(dir, strings.ToLower(name))
		if err := os.WriteFile(file+".dat", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(iasl, "-d", file+".dat").CombinedOutput(); err != nil || bytes.Contains(out, []byte("ACPI Error")) {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if out, err := exec.Command(iasl, "-we", file+".dsl").CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

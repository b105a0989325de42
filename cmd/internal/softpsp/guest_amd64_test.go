package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm"
)

const (
	powerOffPort = 0x604
	top          = 4 << 20 // of the guest's memory
)

// play runs a script in a guest of 4 MiB and returns its console and outcome.
func runScript(t *testing.T, snp vmm.SNP, script psp.Script) (console string, o vmm.Outcome, m *psp.Machine) {
	t.Helper()
	host := psp.New(psp.Options{Script: func(g *psp.Guest) {
		script(g)
		g.Out(powerOffPort, 2, 1<<13)
	}})
	var out bytes.Buffer
	vm, err := vmm.New(vmm.Config{Image: writeImages(t).elf, Memory: top, CPUs: 2, SNP: &snp, Kernel: host, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	o, err = vm.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if n := host.OpenFiles(); n != 0 {
		t.Errorf("%d descriptors were left open", n)
	}
	return out.String(), o, host.Machines()[0]
}

// A page that the guest shares leaves private memory, and the host's half is given
// back when it takes the page back, by request or by use.
func TestConversion(t *testing.T) {
	const at, n = uint64(0x300000), uint64(16)
	console, o, _ := runScript(t, vmm.SNP{}, func(g *psp.Guest) {
		m := g.Machine()
		pages := func() (n int) { return len(m.Owned()) }
		resident := func() bool { is, err := m.SharedResident(at); return is || err != nil }
		must := func(answer uint64, err error) {
			if answer != 0 || err != nil {
				g.Print("answer %d, %v\n", answer, err)
			}
		}
		all := pages()
		g.Print("resident at first: %v\n", resident())
		must(g.Convert(at, n, false))
		must(0, g.Memory(at, []byte("for the host"), false, true))
		g.Print("shared: %d pages less, resident: %v\n", all-pages(), resident())
		must(g.Convert(at, n, true))
		g.Print("private: %v, resident: %v\n", m.Private(at) && m.Private(at+(n-1)*4096), resident())
		b := make([]byte, 12)
		must(0, g.Memory(at, b, true, false))
		g.Print("fresh: %x, %d pages less\n", b, all-pages())
		must(0, g.Memory(at, []byte("used as shared"), false, true)) // the exit MEMORY_FAULT
		g.Print("by use: %v, resident: %v\n", !m.Private(at), resident())
		must(0, g.Memory(at, b, true, false))
		g.Print("and back: %v, resident: %v\n", m.Private(at), resident())
		for _, bad := range [][2]uint64{{at + 1, 1}, {1 << 40, 1}, {top - 4096, 2}, {at, 1 << 60}, {^uint64(0) &^ 4095, 1}, {0xfee00000, 1}} {
			answer, _ := g.Convert(bad[0], bad[1], false)
			g.Print("%#x+%#x: %v\n", bad[0], bad[1], answer != 0)
		}
	})
	want := `resident at first: false
shared: 16 pages less, resident: true
private: true, resident: false
fresh: 000000000000000000000000, 15 pages less
by use: true, resident: true
and back: true, resident: false
0x300001+0x1: true
0x10000000000+0x1: true
0x3ff000+0x2: true
0x300000+0x1000000000000000: true
0xfffffffffffff000+0x1: true
0xfee00000+0x1: true
`
	if console != want || o.Status != vmm.StatusOK {
		t.Errorf("%v\n%s", o, console)
	}
}

// Requests for certificates are answered from the file, as far as it goes.
func TestCertificates(t *testing.T) {
	const at = uint64(0x300000)
	file := filepath.Join(t.TempDir(), "certs")
	if err := os.WriteFile(file, bytes.Repeat([]byte("certificate "), 500), 0o600); err != nil {
		t.Fatal(err)
	}
	console, o, _ := runScript(t, vmm.SNP{Certs: file}, func(g *psp.Guest) {
		b := make([]byte, 12)
		if err := g.Memory(at, b, false, false); err != nil {
			g.Print("%v\n", err)
		}
		ask := func(what string, gpa, pages uint64) {
			answer, wanted := g.Certificates(gpa, pages)
			g.Print("%s: %v, %d pages\n", what, unix.Errno(answer), wanted)
		}
		ask("one page", at, 1)
		ask("private memory", at+4096, 2)
		ask("no memory", 1<<40, 2)
		if _, err := g.Convert(at+4096, 1, false); err != nil {
			g.Print("%v\n", err)
		}
		ask("two pages", at, 2)
		if err := g.Memory(at+4096, b, false, false); err != nil {
			g.Print("%v\n", err)
		}
		g.Print("%s\n", b)
		if report, err := g.Report(psp.ReportRequest{}); err != nil || len(report) != 1184 {
			g.Print("%v\n", err)
		}
	})
	want := fmt.Sprintf(`one page: %v, 2 pages
private memory: %v, 2 pages
no memory: %v, 2 pages
two pages: %v, 2 pages
ificate cert
`, unix.ENOSPC, unix.EIO, unix.EIO, unix.Errno(0))
	if console != want || o.Status != vmm.StatusOK {
		t.Errorf("%v\n%s\nwant\n%s", o, console, want)
	}
	console, _, _ = runScript(t, vmm.SNP{}, func(g *psp.Guest) {
		answer, pages := g.Certificates(at, 1)
		g.Print("%d %d", answer, pages)
	})
	if console != "0 0" {
		t.Errorf("without a file: %q", console)
	}
}

// The ends that only such guests have are told for what they are.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		script psp.Script
		want   string
	}{
		{func(g *psp.Guest) { g.Terminate(0, 0) }, "general termination"},
		{func(g *psp.Guest) { g.Terminate(1, 2) }, "PVALIDATE failed"},
		{func(g *psp.Guest) { g.Terminate(7, 9) }, "reason set 7, code 9"},
		{(*psp.Guest).Shutdown, "triple fault"},
		{func(g *psp.Guest) { g.Exit(99, nil) }, "KVM exit 99"},
		{func(g *psp.Guest) { g.Exit(24, func(u []byte) { u[0] = 77 }) }, "system event 77"},
	} {
		_, o, _ := runScript(t, vmm.SNP{}, c.script)
		if o.Status != vmm.StatusCrashed || !strings.Contains(o.Why, c.want) || !strings.Contains(o.Dump, "encrypted") {
			t.Errorf("%v, want %q\n%s", o, c.want, o.Dump)
		}
	}
}

// A guest finds its secrets and its CPUID table where the blob says, and the
// table is what the processor takes without a correction.
func TestWhatTheGuestFinds(t *testing.T) {
	console, o, m := runScript(t, vmm.SNP{HostData: [32]byte{1, 2, 3}}, func(g *psp.Guest) {
		read := func(gpa uint64, n int) []byte {
			b := make([]byte, n)
			if err := g.Memory(gpa, b, true, false); err != nil {
				g.Print("%v\n", err)
			}
			return b
		}
		number := func(gpa uint64, n int) (v uint64) {
			for i, b := range read(gpa, n) {
				v |= uint64(b) << (8 * i)
			}
			return v
		}
		vmsa := g.Launch().VMSAs[0]
		zero := uint64(vmsa[0x330]) | uint64(vmsa[0x331])<<8 // RSI
		data := number(zero+0x250, 8)
		blob := number(data+16, 4)
		secrets, cpuid := number(blob+8, 8), number(blob+24, 8)
		g.Print("setup data type %d, magic %s, secrets version %d, %v\n", number(data+8, 4), read(blob, 4), number(secrets, 4), !bytes.Equal(read(secrets+0x20, 32), make([]byte, 32)))
		n := number(cpuid, 4)
		found := map[uint64]bool{}
		for i := range n {
			found[number(cpuid+16+48*i, 4)<<8|number(cpuid+20+48*i, 4)] = true
		}
		g.Print("CPUID functions: %v, CET's state: %v %v, encryption: %v\n", n > 16 && n <= 64, found[0xd0b], found[0xd0c], found[0x8000001f00])
	})
	want := "setup data type 7, magic AMDE, secrets version 3, true\nCPUID functions: true, CET's state: true true, encryption: true\n"
	if console != want || o.Status != vmm.StatusOK {
		t.Errorf("%v\n%s", o, console)
	}
	l, _ := m.Launched()
	if l.HostData != [32]byte{1, 2, 3} || l.Policy != 0x30000 || len(l.VMSAs) != 2 {
		t.Errorf("host data %x, policy %#x, %d vCPUs", l.HostData, l.Policy, len(l.VMSAs))
	}
}

// A virtio device of such a guest wants VIRTIO_F_ACCESS_PLATFORM, and serves rings
// and buffers in shared memory only.
func TestVirtio(t *testing.T) {
	const rings, buffer, private = uint64(0x300000), uint64(0x301000), uint64(0x310000)
	const statusFeaturesOK, statusDriverOK, needsReset = 1 | 2 | 8, 1 | 2 | 4 | 8, 64
	slot, _ := boot.MMIOSlot(0)
	var failed string
	host := psp.New(psp.Options{Script: func(g *psp.Guest) {
		defer g.Out(powerOffPort, 2, 1<<13)
		number := func(gpa uint64, n int) uint64 {
			b := make([]byte, 8)
			if err := g.Memory(gpa, b[:n], false, false); err != nil {
				failed = err.Error()
			}
			return binary.LittleEndian.Uint64(b)
		}
		put := func(gpa uint64, v uint64, n int, private bool) {
			if err := g.Memory(gpa, binary.LittleEndian.AppendUint64(nil, v)[:n], private, true); err != nil {
				failed = err.Error()
			}
		}
		reg := func(at uint64) uint32 {
			b := make([]byte, 4)
			g.MMIO(uint64(slot.Base)+at, b, false)
			return binary.LittleEndian.Uint32(b)
		}
		set := func(at uint64, v uint32) {
			g.MMIO(uint64(slot.Base)+at, binary.LittleEndian.AppendUint32(nil, v), true)
		}
		negotiate := func(high uint32) uint32 {
			set(0x70, 0)
			set(0x70, 1|2)
			for sel, v := range []uint32{0, high} {
				set(0x24, uint32(sel))
				set(0x20, v)
			}
			set(0x70, statusFeaturesOK)
			return reg(0x70)
		}
		// start gives the device a ring of one buffer and says whether it was used.
		start := func(at, buf uint64, private bool) (used bool, status uint32) {
			set(0x14, 1)
			const version1AndPlatform = 3 // not the packed rings that are offered, too
			if high := reg(0x10); high&version1AndPlatform != version1AndPlatform || negotiate(version1AndPlatform) != statusFeaturesOK {
				failed = fmt.Sprintf("features %#x, status %#x", high, reg(0x70))
				return
			}
			set(0x30, 0)
			set(0x38, 4)
			for i, field := range []uint64{0x80, 0x90, 0xa0} {
				set(field, uint32(at)+uint32(i)*0x100)
			}
			put(at, buf, 8, private)
			put(at+8, 64|2<<32, 8, private) // 64 bytes, for the device to write
			put(at+0x100, 1<<16, 8, private)
			put(at+0x202, 0, 2, private)
			set(0x44, 1)
			set(0x70, statusDriverOK)
			set(0x50, 0)
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
				if status = reg(0x70); status&needsReset != 0 {
					return false, status
				}
				if !private && number(at+0x202, 2) == 1 {
					return true, status
				}
			}
			return false, status
		}
		if s := negotiate(1); s&8 != 0 { // VERSION_1 alone
			failed = fmt.Sprintf("status %#x without ACCESS_PLATFORM", s)
		}
		if used, s := start(rings, buffer+0, false); s&needsReset == 0 || used { // the buffer is private as yet
			failed = fmt.Sprintf("a private buffer: used %v, status %#x", used, s)
		}
		put(buffer, 0, 8, false)
		if used, s := start(rings, buffer, false); !used || number(rings+0x208, 4) != 64 || number(buffer, 8) == 0 {
			failed = fmt.Sprintf("used %v, status %#x", used, s)
		}
		if used, s := start(private, buffer, true); used || s&needsReset == 0 {
			failed = fmt.Sprintf("private rings: used %v, status %#x", used, s)
		}
	}})
	vm, err := vmm.New(vmm.Config{Image: writeImages(t).elf, Memory: top, SNP: &vmm.SNP{}, Kernel: host, RNG: vmm.On, Machine: boot.MachineMicroVM})
	if err != nil {
		t.Fatal(err)
	}
	o, err := vm.Run(context.Background())
	if err != nil || o.Status != vmm.StatusOK || failed != "" {
		t.Errorf("%v, %v: %s", o, err, failed)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

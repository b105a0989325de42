package vmm

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// snpImage is an ELF64 of one instruction, which nobody runs.
func snpImage(t testing.TB) string {
	t.Helper()
	const base, headers = 0x200000, 64 + 56
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 15: 0}
	b = le.AppendUint32(b, 2|62<<16)
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + headers, 64, 0} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, 7)
	for _, v := range []uint64{0, base, base, headers + 1, 0x2000, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	path := filepath.Join(t.TempDir(), "guest.elf")
	if err := os.WriteFile(path, append(b, 0xf4), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// snpRun is a guest's run on the software PSP.
type snpRun struct {
	*seam
	outcome Outcome
	err     error // of New
	out     string
	log     string
	machine *psp.Machine
}

func runSNP(t *testing.T, s *seam, change func(*Config)) *snpRun {
	t.Helper()
	var out, log bytes.Buffer
	cfg := Config{
		Image: snpImage(t), Memory: 8 << 20, CPUs: 2, RNG: Off, Kernel: s, Stdout: &out, SNP: &SNP{},
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	r := &snpRun{seam: s}
	m, err := New(cfg)
	if r.err = err; err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if r.outcome, err = m.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if all := s.Machines(); len(all) > 0 {
			r.machine = all[len(all)-1]
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := s.OpenFiles(); n != 0 {
		t.Errorf("%d descriptors are left open", n)
	}
	r.out, r.log = out.String(), log.String()
	return r
}

func powerOff(g *psp.Guest) { g.Out(devices.PortPM1Event+4, 2, 1<<13) }

// TestSNPLaunch launches on hosts that do less than asked at every step, and
// expects the predicted digest and the kernel's order of calls each time.
func TestSNPLaunch(t *testing.T) {
	for name, o := range map[string]struct {
		o          psp.Options
		interrupts int
		says       string // in the log
	}{
		"plain":    {},
		"eagain":   {o: psp.Options{EAGAIN: 2}},
		"partial":  {o: psp.Options{PartialPages: 3}},
		"cpuid":    {o: psp.Options{RewriteCPUID: true}, says: "corrected the guest's CPUID table"},
		"signals":  {interrupts: 5},
		"together": {o: psp.Options{EAGAIN: 3, PartialPages: 5, RewriteCPUID: true}, interrupts: 3},
	} {
		t.Run(name, func(t *testing.T) {
			o.o.Script = func(g *psp.Guest) { g.Print("hello\n"); powerOff(g) }
			s := &seam{Kernel: psp.New(o.o), interrupts: o.interrupts}
			host := [32]byte{1, 2, 3}
			var digest sev.Digest
			r := runSNP(t, s, func(c *Config) {
				c.SNP.HostData, c.SNP.VCEKDisabled = host, true
				digest = predict(t, *c)
			})
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.outcome.Status != StatusOK || r.out != "hello\n" {
				t.Errorf("%v, console %q", r.outcome, r.out)
			}
			l, ok := r.machine.Launched()
			if !ok || l.Digest != digest {
				t.Errorf("measured %x, predicted %v", l.Digest, digest)
			}
			if l.HostData != host || !l.VCEKDisabled || l.Policy != sev.DefaultPolicy || len(l.VMSAs) != 2 {
				t.Errorf("launched with policy %#x, host data %x, %d vCPUs", l.Policy, l.HostData, len(l.VMSAs))
			}
			if !strings.Contains(r.log, o.says) {
				t.Errorf("log without %q: %s", o.says, r.log)
			}
			checkOrder(t, s.requests)
		})
	}
}

func predict(t *testing.T, cfg Config) sev.Digest {
	t.Helper()
	i, err := Inspect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	ranges, err := sev.PlanRanges(i.Plan, cfg.CPUs, cfg.SNP.Features)
	if err != nil {
		t.Fatal(err)
	}
	var c sev.Chain
	for _, r := range ranges {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	return c.Digest()
}

// checkOrder checks the order that KVM and its speed want, and that nothing asks
// for protected state once there is some.
func checkOrder(t *testing.T, requests []uint32) {
	t.Helper()
	order := []struct {
		name    string
		request uint32
	}{
		{"CREATE_VM", 0xae01}, {"INIT2", 22}, {"LAUNCH_START", 100}, {"CREATE_GUEST_MEMFD", 0xc040aed4},
		{"SET_USER_MEMORY_REGION2", 0x40a0ae49}, {"SET_MEMORY_ATTRIBUTES", 0x4020aed2}, {"CREATE_IRQCHIP", 0xae60},
		{"CREATE_VCPU", 0xae41}, {"SET_CPUID2", 0x4008ae90}, {"SET_SREGS", 0x4138ae84}, {"LAUNCH_UPDATE", 101}, {"LAUNCH_FINISH", 102},
	}
	last := -1
	for _, o := range order {
		at := slices.Index(requests, o.request)
		if at <= last {
			t.Errorf("%s is call %d, behind %d", o.name, at, last)
		}
		last = at
	}
	for _, r := range requests[last+1:] {
		switch r & 0xff { // registers, translation, single step
		case 0x81, 0x82, 0x83, 0x84, 0x88, 0x89, 0xa4, 0xa5, 0xa6, 0xa7, 0x9b, 0x85:
			t.Errorf("request %#x behind LAUNCH_FINISH: KVM refuses it", r)
		}
	}
}

func TestSNPRefused(t *testing.T) {
	block := (&sev.IDBlock{Digest: sev.Digest{0xaa, 0xbb}, Policy: sev.DefaultPolicy}).Bytes()
	for name, c := range map[string]struct {
		o       psp.Options
		change  func(*SNP)
		lacking bool
		says    []string
	}{
		"no SNP":       {o: psp.Options{NoSNP: true}, lacking: true, says: []string{"machine", "kvm_amd"}},
		"policy":       {o: psp.Options{PolicyBits: 0x1bffff}, change: func(s *SNP) { s.Policy = 0x2030000 }, lacking: true, says: []string{"0x2000000 [PAGE_SWAP_DISABLE]", "0x1bffff"}},
		"policy MBO":   {change: func(s *SNP) { s.Policy = 0x10000 }, lacking: true, says: []string{"bit 17"}},
		"migration":    {change: func(s *SNP) { s.Policy = 0x70000 }, lacking: true, says: []string{"bit 18"}},
		"features":     {change: func(s *SNP) { s.Features = 0x21 | 1<<9 }, lacking: true, says: []string{"0x200"}},
		"SMT":          {change: func(s *SNP) { s.Policy = 0x20000 }, lacking: true, says: []string{"POLICY_FAILURE", "SMT"}},
		"C-bit":        {change: func(s *SNP) { s.CBit = 47 }, lacking: true, says: []string{"C-bit 47", "cbit=51"}},
		"no ASID":      {o: psp.Options{Fail: map[uint32]uint32{22: 0x20}}, lacking: true, says: []string{"RMP_INIT_REQUIRED", "BIOS"}},
		"update":       {o: psp.Options{Fail: map[uint32]uint32{101: 0x1a}}, says: []string{"launch ", "INVALID_PAGE_STATE"}},
		"measurement":  {o: psp.Options{Fail: map[uint32]uint32{102: 0xb}}, says: []string{"BAD_MEASUREMENT"}},
		"both digests": {o: psp.Options{Fail: map[uint32]uint32{102: 0xb}}, change: func(s *SNP) { s.IDBlock, s.IDAuth = block, make([]byte, sev.IDAuthSize) }, says: []string{"BAD_MEASUREMENT", "aabb0000", "predicted as "}},
		"signature":    {change: func(s *SNP) { s.IDBlock, s.IDAuth = block, make([]byte, sev.IDAuthSize) }, says: []string{"LAUNCH_FINISH"}},
		"block length": {change: func(s *SNP) { s.IDBlock, s.IDAuth = block[1:], make([]byte, sev.IDAuthSize) }, says: []string{"95 bytes"}},
		"no certs":     {change: func(s *SNP) { s.Certs = "/nonexistent" }, says: []string{"certs=/nonexistent"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := runSNP(t, &seam{Kernel: psp.New(c.o)}, func(cfg *Config) {
				if c.change != nil {
					c.change(cfg.SNP)
				}
			})
			if r.err == nil {
				t.Fatal("launched")
			}
			if lacking := (*LackingError)(nil); errors.As(r.err, &lacking) != c.lacking {
				t.Errorf("the host's fault: %v, want %v: %v", !c.lacking, c.lacking, r.err)
			}
			for _, s := range c.says {
				if !strings.Contains(r.err.Error(), s) {
					t.Errorf("error without %q: %v", s, r.err)
				}
			}
		})
	}
}

// TestSNPConversions has a guest convert memory by page state changes and by mere
// use: the other side's memory is given back, nonsense is refused.
func TestSNPConversions(t *testing.T) {
	type answer struct {
		gpa, pages, got uint64
		private         bool
	}
	var k *psp.Kernel
	var answers []answer
	var problems []string
	const at, ram = 0x400000, 8 << 20
	script := func(g *psp.Guest) {
		m := k.Machines()[0]
		expect := func(what string, ok bool) {
			if !ok {
				problems = append(problems, what)
			}
		}
		owned := func(gpa uint64) bool {
			return slices.ContainsFunc(m.Owned(), func(p psp.Page) bool { return p.GPA == gpa })
		}
		resident := func(gpa uint64) bool {
			is, err := m.SharedResident(gpa)
			expect(fmt.Sprint(err), err == nil)
			return is
		}
		expect("launched page is not the guest's", owned(at))
		a, err := g.Convert(at, 16, false)
		expect("conversion to shared", a == 0 && err == nil && !m.Private(at) && !m.Private(at+15<<12) && m.Private(at+16<<12))
		expect("private memory kept behind shared pages", !owned(at) && !owned(at+15<<12) && owned(at+16<<12))
		expect("shared memory", g.Memory(at, []byte("text"), false, true) == nil && resident(at))
		a, err = g.Convert(at, 16, true)
		expect("conversion back", a == 0 && err == nil && m.Private(at))
		expect("shared memory kept behind private pages", !resident(at))
		expect("use as shared", g.Memory(at+0x5000, []byte("text"), false, true) == nil && !m.Private(at+0x5000) && !owned(at+0x5000))
		expect("use as private", g.Memory(at+0x5000, []byte("text"), true, true) == nil && m.Private(at+0x5000) && !resident(at+0x5000))
		for _, c := range []answer{
			{gpa: at, pages: 0}, {gpa: at + 1, pages: 1}, {gpa: ram - 4096, pages: 2}, {gpa: ram, pages: 1}, {gpa: 0xfee00000, pages: 1},
			{gpa: 0, pages: 1 << 52}, {gpa: at, pages: ^uint64(0)}, {gpa: at, pages: 1<<52 + 1}, {gpa: ^uint64(0xfff), pages: 1}, {gpa: ^uint64(0xfff), pages: 1, private: true},
		} {
			c.got, _ = g.Convert(c.gpa, c.pages, c.private)
			answers = append(answers, c)
		}
		g.Exit(3, func(u []byte) { binary.LittleEndian.PutUint64(u, 99) }) // a hypercall nobody knows
		expect("page changed by nonsense", m.Private(at) && m.Private(0))
		powerOff(g)
	}
	k = psp.New(psp.Options{Script: script})
	r := runSNP(t, &seam{Kernel: k}, nil)
	if r.err != nil || r.outcome.Status != StatusOK {
		t.Fatal(r.err, r.outcome)
	}
	for _, a := range answers {
		if a.got != uint64(unix.EINVAL) {
			t.Errorf("%d pages at %#x: answer %d", a.pages, a.gpa, a.got)
		}
	}
	if len(answers) == 0 || problems != nil {
		t.Errorf("%d answers; %q", len(answers), problems)
	}
}

func TestSNPCertificates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "certs")
	want := bytes.Repeat([]byte("certificate "), 500) // two pages
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	lock := func(kind int16) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind})
	}
	var got [][2]uint64
	var file []byte
	var held *os.File
	const at = 0x400000
	s := &seam{held: func() bool { return lock(unix.F_WRLCK) != nil }}
	s.Kernel = psp.New(psp.Options{Script: func(g *psp.Guest) {
		ask := func(gpa, pages uint64) {
			a, n := g.Certificates(gpa, pages)
			got = append(got, [2]uint64{a, n})
		}
		ask(at, 2) // private
		_, _ = g.Convert(at, 4, false)
		ask(at, 0)
		ask(at, 1)
		file = make([]byte, 4096)
		ask(at, 3)
		_ = g.Memory(at, file, false, false)
		var err error
		if held, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
			err = unix.FcntlFlock(held.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		if err != nil {
			g.Shutdown()
		}
		s.mu.Lock()
		s.held = nil
		s.mu.Unlock()
		ask(at, 3)
		_ = held.Close()
		_ = os.Remove(path)
		ask(at, 3)
		powerOff(g)
	}})
	r := runSNP(t, s, func(c *Config) { c.SNP.Certs = path })
	if r.err != nil || r.outcome.Status != StatusOK {
		t.Fatal(r.err, r.outcome)
	}
	for i, w := range [][2]unix.Errno{{unix.EIO, 2}, {unix.ENOSPC, 2}, {unix.ENOSPC, 2}, {0, 3}, {unix.EAGAIN, 3}, {unix.EIO, 3}} {
		if g := got[i]; g != [2]uint64{uint64(w[0]), uint64(w[1])} {
			t.Errorf("request %d: answer %d, %d pages, want %d, %d", i, g[0], g[1], w[0], w[1])
		}
	}
	if !bytes.Equal(file, want[:4096]) {
		t.Error("the guest did not get the certificates")
	}
	if n := len(slices.DeleteFunc(s.certs, func(b bool) bool { return !b })); n != 1 {
		t.Errorf("the file was locked during %d of the runs, want the one that makes the report", n)
	}
}

func TestSNPEnds(t *testing.T) {
	for name, c := range map[string]struct {
		script psp.Script
		says   string
	}{
		"PVALIDATE":  {func(g *psp.Guest) { g.Terminate(1, 2) }, "PVALIDATE failed"},
		"unknown":    {func(g *psp.Guest) { g.Terminate(9, 200) }, "reason set 9, code 200"},
		"shutdown":   {func(g *psp.Guest) { g.Shutdown() }, "triple fault"},
		"emulation":  {func(g *psp.Guest) { g.Exit(17, func(u []byte) { binary.LittleEndian.PutUint32(u, 1) }) }, "internal error"},
		"no memory":  {func(g *psp.Guest) { g.Exit(39, func(u []byte) { binary.LittleEndian.PutUint64(u[8:], 1<<40) }) }, "0x10000000000"},
		"vmgexit 99": {func(g *psp.Guest) { g.Exit(99, func([]byte) {}) }, "exit 99"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &seam{Kernel: psp.New(psp.Options{Script: c.script})}
			r := runSNP(t, s, nil)
			if r.err != nil || r.outcome.Status != StatusCrashed || !strings.Contains(r.outcome.Why, c.says) {
				t.Errorf("%v, %v", r.err, r.outcome)
			}
			if !strings.Contains(r.outcome.Dump, "encrypted") {
				t.Errorf("dump: %s", r.outcome.Dump)
			}
			checkOrder(t, s.requests)
		})
	}
}

func TestProbeSNP(t *testing.T) {
	sys, err := kvm.Open(psp.New(psp.Options{NoSNP: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	type cpuid = func(uint32, uint32) (uint32, uint32, uint32, uint32)
	processor := func(vendor string, features uint32, guest bool) cpuid {
		return func(leaf, _ uint32) (a, b, c, d uint32) {
			word := func(i int) uint32 { return binary.LittleEndian.Uint32([]byte(vendor[i:])) }
			switch leaf {
			case 0:
				return 0x10, word(0), word(8), word(4)
			case 1:
				if guest {
					c = 1 << 31
				}
			case 0x80000000:
				a = 0x80000020
			case 0x8000001f:
				a = features
			}
			return
		}
	}
	milan := processor("AuthenticAMD", 0x1001a, false)
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	module := func(snp string) fstest.MapFS {
		return fstest.MapFS{
			"sys/module/kvm_amd/parameters/sev": file("Y\n"), "sys/module/kvm_amd/parameters/sev_es": file("Y\n"),
			"sys/module/kvm_amd/parameters/sev_snp": file(snp),
		}
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write([]byte("# CONFIG_KVM_AMD is not set\n"))
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cpuid   cpuid
		fs      fstest.MapFS
		release string
		log     string
		missing map[string]string // finding: what its detail says
		fine    []string
	}{
		"Intel":    {cpuid: processor("GenuineIntel", 0, false), release: "7.3", missing: map[string]string{"snp-processor": "GenuineIntel", "snp-module": "not loaded"}},
		"Naples":   {cpuid: processor("AuthenticAMD", 0xb, false), release: "7.3", missing: map[string]string{"snp-processor": "0xb"}},
		"guest":    {cpuid: processor("AuthenticAMD", 0, true), release: "7.3", missing: map[string]string{"snp-processor": "virtual machine"}},
		"old":      {cpuid: milan, release: "6.1.0-9-amd64", missing: map[string]string{"snp-kernel": "6.11", "snp-module": "not loaded"}, fine: []string{"snp-processor"}},
		"cloud":    {cpuid: milan, release: "7.3-cloud", fs: fstest.MapFS{"boot/config-7.3-cloud": file("CONFIG_KVM=m\n# CONFIG_KVM_AMD_SEV is not set\n")}, missing: map[string]string{"snp-kernel": "CONFIG_KVM_AMD_SEV"}},
		"gzipped":  {cpuid: milan, release: "7.3", fs: fstest.MapFS{"proc/config.gz": file(packed.String())}, missing: map[string]string{"snp-kernel": "CONFIG_KVM_AMD_SEV"}},
		"off":      {cpuid: milan, release: "7.3", fs: module("N\n"), log: "[ 0.1] SEV-SNP: Memory for the RMP table has not been reserved by BIOS\n[ 1.0] x\n", missing: map[string]string{"snp-module": "sev_snp=N", "snp-bios": "not been reserved by BIOS"}},
		"no param": {cpuid: milan, release: "7.3", fs: fstest.MapFS{"sys/module/kvm_amd/parameters/sev": file("Y")}, missing: map[string]string{"snp-module": "no parameter"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := snpHost{cet.Host{FS: c.fs, Release: c.release, CPUID: c.cpuid}, func() ([]byte, error) { return []byte(c.log), nil }}
			found := probeSNP(sys, h)
			for want, says := range c.missing {
				if !slices.ContainsFunc(found, func(f Finding) bool {
					return f.Name == want && !f.OK && f.Remedy != "" && strings.Contains(f.Detail, says)
				}) {
					t.Errorf("no finding %s with %q: %+v", want, says, found)
				}
			}
			for _, f := range found {
				if f.OK != (f.Remedy == "") || slices.Contains(c.fine, f.Name) && !f.OK {
					t.Errorf("%+v", f)
				}
			}
		})
	}
	// A host that can: nothing is missing, whatever this machine is.
	sys2, err := kvm.Open(psp.New(psp.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer sys2.Close()
	for _, f := range probeSNP(sys2, thisHost()) {
		if !f.OK {
			t.Errorf("%+v", f)
		}
	}
}

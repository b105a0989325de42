package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/cmd/internal/cli"
	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// launchCase is a launch: the flags of run and measure, and the configuration that
// is the same.
type launchCase struct {
	name  string
	flags []string
	cfg   vmm.Config
}

func launchCases(i images) []launchCase {
	const mib = 1 << 20
	fw := vmm.Config{Firmware: i.firmware, Image: i.bzImage, Initrd: i.initrd, Params: "console=ttyS0 x", Memory: 68 * mib}
	fwFlags := []string{"-M", "68M", "--firmware", i.firmware, "-i", i.initrd, "-a", "console=ttyS0 x", i.bzImage}
	linux := vmm.Config{Image: i.bzImage, Initrd: i.initrd, Params: "quiet", Memory: 4 * mib}
	linuxFlags := []string{"-M", "4M", "-i", i.initrd, "-a", "quiet", i.bzImage}
	with := func(c vmm.Config, cpus int) vmm.Config { c.CPUs = cpus; return c }
	flags := func(f []string, cpus int) []string { return append([]string{"-c", fmt.Sprint(cpus)}, f...) }
	return []launchCase{
		{"ELF", []string{"-M", "4M", i.elf}, vmm.Config{Image: i.elf, Memory: 4 * mib}},
		{"ELF on 2 vCPUs", []string{"-M", "4M", "-c", "2", i.elf}, vmm.Config{Image: i.elf, Memory: 4 * mib, CPUs: 2}},
		{"ELF with features", []string{"-M", "4M", "--sev-snp=features=20", i.elf}, vmm.Config{Image: i.elf, Memory: 4 * mib, SNP: &vmm.SNP{Features: 0x20}}},
		{"Linux", linuxFlags, linux},
		{"Linux on 4 vCPUs", flags(linuxFlags, 4), with(linux, 4)},
		{"firmware", fwFlags, fw},
		{"firmware on 3 vCPUs", flags(fwFlags, 3), with(fw, 3)},
		{"firmware alone", []string{"-M", "68M", "--firmware", i.firmware}, vmm.Config{Firmware: i.firmware, Memory: 68 * mib}},
	}
}

// predict is `gvmm measure snp` with the flags.
func (c *launchCase) predict(t testing.TB) string {
	t.Helper()
	var out, errs bytes.Buffer
	if status := cli.Main(slices.Concat([]string{"measure", "snp"}, c.flags), &out, &errs, kvm.Host{}); status != 0 {
		t.Fatalf("%s: measure: status %d: %s", c.name, status, errs.String())
	}
	digest, _, _ := strings.Cut(out.String(), "\n")
	return digest
}

// launch builds the VM, which launches the guest, through a wrapped kernel. digest
// is "" where the launch failed.
func (c *launchCase) launch(t testing.TB, o psp.Options, change func(*meddler)) (digest string, err error) {
	t.Helper()
	host := psp.New(o)
	k := &meddler{Kernel: host}
	if change != nil {
		change(k)
	}
	cfg := c.cfg
	cfg.Kernel = k
	if cfg.SNP == nil {
		cfg.SNP = new(vmm.SNP)
	}
	m, err := vmm.New(cfg)
	if err == nil {
		l, ok := host.Machines()[0].Launched()
		if !ok {
			t.Fatalf("%s: not launched", c.name)
		}
		digest = fmt.Sprintf("%x", l.Digest)
		err = m.Close()
	}
	if err := k.done(); err != nil {
		t.Fatal(err)
	}
	if n := host.OpenFiles(); n != 0 {
		t.Fatalf("%s: %d descriptors were left open", c.name, n)
	}
	return digest, err
}

// The digest of a launch is the one that is predicted from the same flags,
// whatever the host makes of it on the way.
func TestPrediction(t *testing.T) {
	for _, c := range launchCases(writeImages(t)) {
		want := c.predict(t)
		for _, o := range []psp.Options{{}, {EAGAIN: 3, PartialPages: 7, RewriteCPUID: true}} {
			if got, err := c.launch(t, o, nil); got != want || err != nil {
				t.Errorf("%s, %+v: launched %s, measured %s: %v", c.name, o, got, want, err)
			}
		}
	}
}

// What a launch hands over page by page is what counts: leave one out, exchange
// two, give one another type, another place or another bit, and it is another
// launch or none.
func TestPages(t *testing.T) {
	for _, c := range launchCases(writeImages(t)) {
		want := c.predict(t)
		var steps []page
		if got, err := c.launch(t, psp.Options{}, func(k *meddler) { k.page = func(p *page) action { steps = append(steps, *p); return pass } }); got != want || err != nil {
			t.Fatalf("%s, page by page: %s, want %s: %v", c.name, got, want, err)
		}
		for _, n := range sample(steps) {
			for name, act := range map[string]func(p *page) action{
				"dropped":  func(*page) action { return drop },
				"swapped":  func(*page) action { return swap },
				"re-typed": retype,
				"moved":    func(p *page) action { p.gfn = 0xc0; return pass }, // no guest here has it
				"flipped":  flip,
			} {
				changed := true
				got, err := c.launch(t, psp.Options{}, func(k *meddler) {
					k.page = func(p *page) action {
						if p.gfn != steps[n].gfn {
							return pass
						}
						a := act(p)
						changed = a != nothing
						return a
					}
				})
				what := fmt.Sprintf("%s: page %d of %d, %d at %#x, %s", c.name, n, len(steps), steps[n].typ, steps[n].gfn<<12, name)
				if changed && err == nil && got == want {
					t.Errorf("%s: the digest is the same", what)
				} else if !changed && (err != nil || got != want) {
					t.Errorf("%s: %s, %v", what, got, err)
				}
			}
		}
		first := true
		if _, err := c.launch(t, psp.Options{}, func(k *meddler) {
			k.page = func(*page) action {
				if !first {
					return pass
				}
				first = false
				return twice
			}
		}); err == nil {
			t.Errorf("%s: a page that is launched twice passes", c.name)
		}
	}
}

// sample chooses pages: those where the type or the order changes, their
// neighbours, and some more.
func sample(steps []page) []int {
	r := rand.New(rand.NewPCG(1, 2))
	var chosen []int
	for i, s := range steps {
		edge := i == 0 || i == len(steps)-1 || steps[i-1].typ != s.typ || steps[i+1].typ != s.typ || steps[i-1].gfn+1 != s.gfn
		if edge && (len(chosen) < 24 || r.IntN(4) == 0) || r.IntN(200) == 0 {
			chosen = append(chosen, i)
		}
	}
	if testing.Short() {
		return chosen[:min(len(chosen), 6)]
	}
	return chosen
}

// retype makes a page's contents count that did not, or the other way round.
func retype(p *page) action {
	switch p.typ {
	case 1, 3:
		p.typ = 4
	default:
		p.typ = 1
	}
	return pass
}

// flip changes a bit of a page whose contents are measured. Of others it does not
// matter, and KVM is given none for a page of zeros.
func flip(p *page) action {
	if p.typ != 1 {
		return nothing
	}
	p.flip = true
	return pass
}

// A bit of any register that a VMSA holds makes another launch, or one that KVM
// refuses; so does a vCPU more, and a first vCPU that takes the place of another.
func TestRegisters(t *testing.T) {
	i := writeImages(t)
	for _, c := range launchCases(i) {
		if c.name != "ELF on 2 vCPUs" && c.name != "firmware on 3 vCPUs" {
			continue
		}
		want := c.predict(t)
		for cpu := range c.cfg.CPUs {
			for _, b := range registerBits() {
				hit := false
				got, err := c.launch(t, psp.Options{}, func(k *meddler) {
					k.register = func(n int, request uint32, arg []byte) {
						if n != cpu || request != b.request {
							return
						}
						at := b.at
						if b.msr != 0 {
							if at = msrAt(arg, b.msr); at == 0 {
								return
							}
						}
						arg[at] ^= b.mask
						hit = true
					}
				})
				switch same := err == nil && got == want; {
				case !hit:
					t.Errorf("%s, vCPU %d: %s is never set", c.name, cpu, b.name)
				case same == b.counts:
					t.Errorf("%s, vCPU %d: a bit of %s: the same digest is %v", c.name, cpu, b.name, same)
				}
			}
		}
		for name, change := range map[string]func(*meddler){
			"a vCPU more":     func(k *meddler) { k.extraCPU = true },
			"a vCPU less":     func(k *meddler) { k.lessCPU = c.cfg.CPUs },
			"the first less":  func(k *meddler) { k.lessCPU = 1 },
			"vCPUs exchanged": func(k *meddler) { k.swapCPUs = true },
			"no registers for the last vCPU": func(k *meddler) {
				k.register = func(n int, request uint32, arg []byte) {
					if n == c.cfg.CPUs-1 && request == setRegs {
						clear(arg)
					}
				}
			},
		} {
			if got, err := c.launch(t, psp.Options{}, change); err == nil && got == want {
				t.Errorf("%s: %s: the digest is the same", c.name, name)
			}
		}
	}
}

// registerBit is a bit in the structure of a request: of the byte at a place, or of
// the value of a model-specific register.
type registerBit struct {
	name    string
	request uint32
	at      int
	mask    byte
	msr     uint32
	counts  bool // whether it is measured
}

// msrAt returns where in a struct kvm_msrs the value of a register lies, 0 if it
// is not there.
func msrAt(arg []byte, msr uint32) int {
	for at := 8; at+16 <= len(arg); at += 16 {
		if binary.LittleEndian.Uint32(arg[at:]) == msr {
			return at + 8
		}
	}
	return 0
}

// registerBits are bits of every register that the ioctls set.
func registerBits() []registerBit {
	var bits []registerBit
	for i, name := range []string{"RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15", "RIP", "RFLAGS"} {
		bits = append(bits, registerBit{name, setRegs, 8 * i, 1, 0, name != "RFLAGS"}, registerBit{name + " bit 8", setRegs, 8*i + 1, 1, 0, true})
	}
	bits[34].mask = 4 // RFLAGS bit 1 is always one: bit 2
	bits[34].counts = true
	for i, seg := range []string{"CS", "DS", "ES", "FS", "GS", "SS", "TR", "LDT"} {
		for at, field := range []string{0: "base", 8: "limit", 12: "selector", 14: "type", 15: "present", 16: "DPL", 17: "DB", 18: "S", 19: "L", 20: "G", 21: "AVL", 22: "unusable"} {
			if field != "" {
				bits = append(bits, registerBit{seg + " " + field, setSregs, 24*i + at, 1, 0, true})
			}
		}
	}
	for at, name := range map[int]string{192: "GDT base", 200: "GDT limit", 208: "IDT base", 216: "IDT limit", 224: "CR0", 240: "CR3", 248: "CR4", 264: "EFER"} {
		bits = append(bits, registerBit{name, setSregs, at, 1, 0, true})
	}
	// What KVM keeps outside of the VMSA, or clears there.
	bits = append(bits, registerBit{"CR2", setSregs, 232, 1, 0, false}, registerBit{"CR8", setSregs, 256, 1, 0, false})
	for _, msr := range []uint32{0x277, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0x174, 0x175, 0x176} {
		bits = append(bits, registerBit{fmt.Sprintf("MSR %#x", msr), setMSRs, 0, 1, msr, true})
	}
	return append(bits,
		registerBit{"XCR0", setXCRS, 16, 2, 0, true}, registerBit{"DR6", setDebugRegs, 32, 0x10, 0, false}, registerBit{"DR6 bit 0", setDebugRegs, 32, 1, 0, true}, registerBit{"DR7", setDebugRegs, 40, 1, 0, true},
		registerBit{"FCW", setXSave, 0, 1, 0, true}, registerBit{"FSW", setXSave, 2, 1, 0, true}, registerBit{"FTW", setXSave, 4, 1, 0, true},
		registerBit{"FOP", setXSave, 6, 1, 0, true}, registerBit{"FIP", setXSave, 8, 1, 0, true}, registerBit{"FDP", setXSave, 16, 1, 0, true},
		registerBit{"MXCSR", setXSave, 24, 1, 0, true}, registerBit{"ST0", setXSave, 32, 1, 0, true}, registerBit{"ST7", setXSave, 32 + 7*16 + 9, 1, 0, true},
		registerBit{"XMM0", setXSave, 160, 1, 0, true}, registerBit{"XMM15", setXSave, 415, 1, 0, true})
}

// With an ID block the secure processor itself refuses a launch that was changed.
func TestIDBlockGuards(t *testing.T) {
	i := writeImages(t)
	for _, c := range launchCases(i) {
		if c.cfg.SNP != nil {
			continue
		}
		block, auth := signedBlock(t, c.predict(t), 0x30000)
		c.cfg.SNP = &vmm.SNP{IDBlock: block, IDAuth: auth, Policy: 0x30000}
		if got, err := c.launch(t, psp.Options{}, nil); err != nil {
			t.Errorf("%s: the ID block of the launch: %v (%s)", c.name, err, got)
		}
		for name, change := range map[string]func(k *meddler){
			"a bit of a page": func(k *meddler) { k.page = flip },
			"a register": func(k *meddler) {
				k.register = func(_ int, request uint32, arg []byte) {
					if request == setRegs {
						arg[0] ^= 1
					}
				}
			},
			"a vCPU more": func(k *meddler) { k.extraCPU = true },
			"a page less": func(k *meddler) {
				first := true
				k.page = func(*page) action {
					if first {
						first = false
						return drop
					}
					return pass
				}
			},
		} {
			if _, err := c.launch(t, psp.Options{}, change); err == nil || !strings.Contains(err.Error(), "BAD_MEASUREMENT") {
				t.Errorf("%s: %s under an ID block: %v", c.name, name, err)
			}
		}
		for name, want := range map[string]string{"policy": "POLICY_FAILURE", "signature": "BAD_SIGNATURE"} {
			b, a, p := block, slices.Clone(auth), uint64(0x30000)
			if name == "policy" {
				p |= 1 << 19
			} else {
				a[0x40] ^= 1
			}
			c.cfg.SNP = &vmm.SNP{IDBlock: b, IDAuth: a, Policy: p}
			if _, err := c.launch(t, psp.Options{}, nil); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: another %s: %v", c.name, name, err)
			}
		}
	}
}

// A firmware error is told by its name, and nothing is left open.
func TestFirmwareErrors(t *testing.T) {
	c := launchCases(writeImages(t))[0]
	for command, name := range map[uint32]string{100: "LAUNCH_START", 101: "LAUNCH_UPDATE", 102: "LAUNCH_FINISH"} {
		for code, want := range map[uint32]string{7: "POLICY_FAILURE", 0xb: "BAD_MEASUREMENT", 0x17: "RESOURCE_LIMIT", 0x99: "firmware error 0x99"} {
			if _, err := c.launch(t, psp.Options{Fail: map[uint32]uint32{command: code}}, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s, firmware error %#x: %v", name, code, err)
			}
		}
	}
}

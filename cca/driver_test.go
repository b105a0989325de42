package cca_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/cca/rmm"
	"github.com/gvmm/gvmm/cca/verify"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// launched is a realm under the model, made as the monitor makes one.
type launched struct {
	t      *testing.T
	k      *rmm.Kernel
	realm  *cca.Realm
	mem    *memory.Guest
	gmems  []*kvm.GuestMemFD
	cpus   []cpu
	plan   *boot.Plan
	launch *cca.Launch
	token  []byte
}

func image(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	binary.LittleEndian.PutUint64(b[8:], 0)
	binary.LittleEndian.PutUint64(b[16:], uint64(n)+8192)
	copy(b[56:], "ARM\x64")
	return b
}

func plan(t *testing.T, o boot.Options) *boot.Plan {
	t.Helper()
	b := image(50001)
	img, err := boot.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	o.ARM64.Realm = true
	o.Initrd = bytes.NewReader(image(9999))
	p, err := img.Plan(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open creates a realm's machine on a host.
func open(t *testing.T, o rmm.Options, c cca.Config, last memory.GPA) (*rmm.Kernel, *cca.Realm, error) {
	t.Helper()
	k, err := rmm.New(o)
	if err != nil {
		t.Fatal(err)
	}
	sys, err := kvm.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	r, err := cca.NewRealm(sys, c, last)
	return k, r, err
}

// prepare makes everything up to the launch.
func prepare(t *testing.T, o rmm.Options, c cca.Config, cpus int, p *boot.Plan) *launched {
	t.Helper()
	l := &launched{t: t, plan: p}
	o.Breakpoints, o.Watchpoints = c.Breakpoints, c.Watchpoints
	o.Token = func(b []byte) { l.token = b }
	ram := p.RAM[len(p.RAM)-1]
	var err error
	if l.k, l.realm, err = open(t, o, c, ram.End()-1); err != nil {
		t.Fatal(err)
	}
	if l.mem, err = memory.New(p.RAM...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.mem.Close(); err != nil {
			t.Error(err)
		}
	})
	l.mem.MakeConfidential()
	l.mem.SetAlias(l.realm.Shared())
	for i := range l.mem.Regions() {
		r := &l.mem.Regions()[i]
		fd, err := l.realm.CreateGuestMemFD(r.Size)
		if err == nil {
			l.gmems = append(l.gmems, fd)
			err = l.realm.SetPrivateMemory(uint32(i), uint64(r.Base), r.Size, r.HostAddr(), fd)
		}
		if err := errors.Join(err, l.mem.Convert(r.Range, false)); err != nil {
			t.Fatal(err)
		}
	}
	for id := range cpus {
		v, err := l.realm.CreateVCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		c := cpu{v, l.k}
		l.cpus = append(l.cpus, c)
		if err := l.realm.Init(c, 5, 1<<2); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(makeGIC(l.k, l.realm.FD()), p.Load(l.mem)); err != nil {
		t.Fatal(err)
	}
	c.ABI = l.realm.ABI()
	if l.launch, err = cca.PlanLaunch(p, &c); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *launched) start() error {
	var cpus []cca.VCPU
	for _, c := range l.cpus {
		cpus = append(cpus, c)
	}
	return l.realm.Launch(l.launch, l.mem, cpus)
}

// run runs vCPU 0 to its power-off and serves conversions as the monitor does.
func (l *launched) run() {
	l.t.Helper()
	for range 100 {
		ok, err := l.cpus[0].Run()
		if !ok || err != nil {
			l.t.Fatalf("KVM_RUN: %v, %v", ok, err)
		}
		switch l.cpus[0].ExitReason() {
		case kvm.ExitMemoryFault:
			gpa, size, private := l.cpus[0].MemoryFault()
			r := memory.Range{Base: memory.GPA(gpa), Size: size}
			i, err := l.mem.Find(r)
			if err != nil {
				l.t.Fatal(err)
			}
			a := uint64(0)
			if private {
				a = kvm.MemoryPrivate
			} else {
				err = l.gmems[i].Discard(gpa-uint64(l.mem.Regions()[i].Base), size)
			}
			if err := errors.Join(err, l.realm.SetMemoryAttributes(gpa, size, a), l.mem.Convert(r, private)); err != nil {
				l.t.Fatal(err)
			}
		case kvm.ExitSystemEvent:
			return
		default:
			l.t.Fatalf("exit %d", l.cpus[0].ExitReason())
		}
	}
	l.t.Fatal("the realm does not power off")
}

func (l *launched) close() {
	l.t.Helper()
	for _, c := range l.cpus {
		if err := c.Close(); err != nil {
			l.t.Error(err)
		}
	}
	for _, g := range l.gmems {
		if err := g.Close(); err != nil {
			l.t.Error(err)
		}
	}
	if err := l.realm.Close(); err != nil {
		l.t.Error(err)
	}
	if n := l.k.State().OpenFiles; n != 0 {
		l.t.Errorf("%d descriptors left open", n)
	}
	for _, err := range l.k.State().Faults {
		l.t.Error(err)
	}
}

// names are the model's kernels and what the driver calls their interface.
var names = map[string]string{"v5": "300", "v7": "300", "v8": "v8", "v9": "v9", "v10": "v10", "v12": "v12", "v13": "v13", "v14": "v14", "v15": "v15"}

// What is predicted from the plan is what the model's RMM measured of what was
// really populated, over every interface; and the token says it.
func TestPredictedIsLaunched(t *testing.T) {
	for kernel, name := range names {
		for what, c := range map[string]struct {
			cfg     cca.Config
			o       boot.Options
			cpus    int
			late    bool // of these interfaces too
			progres int
		}{
			"plain":             {cca.Config{}, boot.Options{Memory: 64 << 20}, 1, true, 0},
			"lkvm, three vCPUs": {cca.Config{Params: cca.Params{Breakpoints: 5, Watchpoints: 3}}, boot.Options{Memory: 256 << 20, Machine: boot.MachineLKVM, CPUs: 3}, 3, true, 7},
			"big, odd":          {cca.Config{Params: cca.Params{IPABits: 40}}, boot.Options{Memory: 3<<30 + 12288, Machine: boot.MachineMicroVM}, 1, true, 1},
			"44 bits":           {cca.Config{Params: cca.Params{IPABits: 44}}, boot.Options{Memory: 2 << 30}, 1, true, 0},
			"sha512, rpv":       {cca.Config{Params: cca.Params{Hash: cca.SHA512}, RPV: []byte("mine")}, boot.Options{Memory: 64 << 20}, 1, false, 0},
			"SVE, PMU":          {cca.Config{Params: cca.Params{SVE: 256, PMU: true, PMUCounters: 3}}, boot.Options{Memory: 64 << 20}, 2, true, 0},
		} {
			t.Run(kernel+" "+what, func(t *testing.T) {
				if name > "v11" && !c.late {
					return
				}
				l := prepare(t, rmm.Options{ABI: kernel, Progress: c.progres, Nonce: [64]byte{1, 2}}, c.cfg, c.cpus, plan(t, c.o))
				defer l.close()
				if l.realm.ABI() != name {
					t.Fatalf("taken for %s", l.realm.ABI())
				}
				if err := l.start(); err != nil {
					t.Fatal(err)
				}
				l.run()
				named := cca.Config{ABI: name}
				want, err := l.launch.Measure(named.Version(), nil)
				if err != nil || !bytes.Equal(want, l.k.State().RIM) {
					t.Fatalf("predicted %x, launched %x, %v", want, l.k.State().RIM, err)
				}
				pem, err := l.k.PlatformKey()
				if err != nil {
					t.Fatal(err)
				}
				key, err := verify.ParseKey(pem)
				if err != nil {
					t.Fatal(err)
				}
				p, err := verify.ParsePolicy(fmt.Appendf(nil, `{"rim": ["%x"], "rpv": "%x", "challenge": "0102"}`, want, append(c.cfg.RPV, make([]byte, 64-len(c.cfg.RPV))...)))
				if err != nil {
					t.Fatal(err)
				}
				if v := verify.Token(l.token, key, &p); !v.Held() {
					t.Errorf("token: %+v", v)
				}
			})
		}
	}
}

// Whatever differs from the plan shows in the measurement.
func TestMutationsShow(t *testing.T) {
	for _, kernel := range []string{"v5", "v10", "v12", "v15"} {
		for what, mutate := range map[string]func(l *launched){
			"a byte of the kernel":       func(l *launched) { l.flip(l.plan.Entry + 50000) },
			"the last byte of a granule": func(l *launched) { l.flip(l.plan.Entry + 4095) },
			"a byte behind the initrd":   func(l *launched) { l.flip(l.plan.Regions[1].Base + 10000) },
			"a byte of the device tree":  func(l *launched) { l.flip(l.plan.Regions[2].Base + 40) },
			"the first register":         func(l *launched) { l.op(cca.OpREC).REC.GPRs[0] ^= 1 << 12 },
			"the last register":          func(l *launched) { l.op(cca.OpREC).REC.GPRs[7]++ },
			"the entry":                  func(l *launched) { l.op(cca.OpREC).REC.PC += 4 },
			"a granule too many":         func(l *launched) { l.op(cca.OpPopulate).Size += cca.Granule },
			"the order": func(l *launched) {
				i := slices.IndexFunc(l.launch.Ops, func(o cca.Op) bool { return o.Kind == cca.OpPopulate })
				l.launch.Ops[i], l.launch.Ops[i+1] = l.launch.Ops[i+1], l.launch.Ops[i]
			},
		} {
			l := prepare(t, rmm.Options{ABI: kernel}, cca.Config{}, 1, plan(t, boot.Options{Memory: 64 << 20}))
			named := cca.Config{ABI: l.realm.ABI()}
			want, err := l.launch.Measure(named.Version(), nil)
			if err != nil {
				t.Fatal(err)
			}
			mutate(l)
			if err := l.start(); err != nil {
				t.Fatalf("%s, %s: %v", kernel, what, err)
			}
			l.run()
			if bytes.Equal(want, l.k.State().RIM) || len(l.k.State().RIM) != len(want) {
				t.Errorf("%s: %s does not show", kernel, what)
			}
			l.close()
		}
	}
}

func (l *launched) flip(at memory.GPA) {
	b, err := l.mem.Slice(at|l.realm.Shared(), 1) // by the alias, as a guest names it
	if err != nil {
		l.t.Fatal(err)
	}
	b[0] ^= 0x10
}

func (l *launched) op(kind cca.OpKind) *cca.Op {
	return &l.launch.Ops[slices.IndexFunc(l.launch.Ops, func(o cca.Op) bool { return o.Kind == kind })]
}

// A host without realms, and one whose numbers only look like it, are told apart
// from one with them, and say what is missing.
func TestRefusals(t *testing.T) {
	last := memory.GPA(1<<32 - 1)
	for _, c := range []struct {
		kernel string
		cfg    cca.Config
		limit  int
		say    string
	}{
		{"none", cca.Config{}, 0, "lacks the patches"},
		{"none", cca.Config{ABI: "v15"}, 0, "lacks the patches"},
		{"no-rmm", cca.Config{}, 0, "no RMM"},
		{"v10", cca.Config{}, 32, "needs 33 IPA bits"},
		{"v12", cca.Config{RPV: []byte{1}}, 0, "no personalization value"},
		{"v14", cca.Config{Params: cca.Params{Hash: cca.SHA512}}, 0, "sha256 only"},
	} {
		_, _, err := open(t, rmm.Options{ABI: c.kernel, IPALimit: c.limit}, c.cfg, last)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: got %v, want %q", c.kernel, err, c.say)
		}
	}
	for _, c := range []struct {
		cfg cca.Config
		say string
	}{
		{cca.Config{ABI: "v11"}, "give one of"}, {cca.Config{RPV: make([]byte, 65)}, "room for 64"},
		{cca.Config{ABI: "v13", RPV: []byte{0}}, "no personalization"}, {cca.Config{Params: cca.Params{SVE: 100}}, "multiple of 128"},
		{cca.Config{Params: cca.Params{IPABits: 20}}, "32 to 52"},
	} {
		if err := c.cfg.Check(); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%+v: got %v, want %q", c.cfg, err, c.say)
		}
	}
}

// The name that the user gives goes before what was found out.
func TestABIByName(t *testing.T) {
	_, r, err := open(t, rmm.Options{ABI: "v10"}, cca.Config{ABI: "v9"}, 1<<32-1)
	if err != nil || r.ABI() != "v9" {
		t.Fatalf("%v, %v", r, err)
	}
	l := prepare(t, rmm.Options{ABI: "v14"}, cca.Config{ABI: "v12"}, 1, plan(t, boot.Options{Memory: 64 << 20}))
	if err := l.start(); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("v12's call on a v14 kernel: %v", err)
	}
}

// The model holds to the kernel's order: the same calls at another time fail with
// the kernel's error.
func TestOrder(t *testing.T) {
	arg := func(base, size uint64, flags uint32) *[65]uint32 {
		return &[65]uint32{uint32(base), uint32(base >> 32), uint32(size), uint32(size >> 32), flags}
	}
	for kernel, early := range map[string]unix.Errno{"v5": unix.EINVAL, "v10": unix.EPERM} {
		l := prepare(t, rmm.Options{ABI: kernel}, cca.Config{}, 2, plan(t, boot.Options{Memory: 64 << 20}))
		base := uint64(l.plan.RAM[0].Base)
		number := map[string]uint32{"v5": 300, "v10": 244}[kernel]
		do := func(want unix.Errno, action uint64, a *[65]uint32) {
			t.Helper()
			err := kvm.EnableCapAction(l.realm.VM, number, action, a)
			if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
				t.Errorf("%s: action %d: got %v, want %v", kernel, action, err, want)
			}
		}
		rec := map[string]int32{"v5": 8, "v10": 9}[kernel]
		do(early, 2, arg(base, 4096, 0))
		do(early, 3, arg(base, 4096, 1))
		do(early, 4, nil)
		if err := l.cpus[0].Finalize(rec); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: REC before the realm: %v", kernel, err)
		}
		do(unix.EINVAL, 0, &[65]uint32{1, 2})
		do(unix.EINVAL, 0, &[65]uint32{7})
		do(0, 0, &[65]uint32{1, 1})
		do(0, 1, nil)
		do(unix.EEXIST, 1, nil)
		do(unix.EBUSY, 0, &[65]uint32{1, 0})
		do(unix.ENXIO, 2, arg(base+1, 4096, 0))
		do(unix.ENXIO, 2, arg(uint64(l.realm.Shared()), 4096, 0))
		do(unix.EINVAL, 3, arg(base, 4096, 2))
		do(unix.EFAULT, 3, arg(0x1000, 4096, 1))
		do(0, 3, arg(base, 8192, 1))
		do(unix.ENXIO, 3, arg(base+4096, 4096, 1)) // twice
		if err := l.cpus[1].Finalize(rec); !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s: REC out of order: %v", kernel, err)
		}
		if _, err := l.cpus[0].Run(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: run before activation: %v", kernel, err)
		}
		if err := errors.Join(l.cpus[0].Finalize(rec), l.cpus[1].Finalize(rec)); err != nil {
			t.Errorf("%s: %v", kernel, err)
		}
		do(0, 4, nil)
		do(early, 4, nil)
		do(early, 3, arg(base+8192, 4096, 1))
		if err := l.cpus[0].SetOneReg(0x6030_0000_0010_0042, 5); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: PSTATE can be set: %v", kernel, err)
		}
	}
	for _, kernel := range []string{"v12", "v13"} {
		l := prepare(t, rmm.Options{ABI: kernel}, cca.Config{}, 1, plan(t, boot.Options{Memory: 64 << 20}))
		ram := l.plan.RAM[0]
		p := kvm.RealmPopulate{Base: uint64(ram.Base), Size: 4096, Source: uint64(l.mem.Regions()[0].HostAddr()), Flags: 1}
		populate := func(want unix.Errno, edit func(*kvm.RealmPopulate)) {
			t.Helper()
			q := p
			edit(&q)
			if _, err := l.realm.PopulateRealm(&q, kernel != "v12"); want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", kernel, err, want)
			}
		}
		populate(unix.EINVAL, func(*kvm.RealmPopulate) {}) // not private yet
		if err := l.realm.VM.SetMemoryAttributes(uint64(ram.Base), ram.Size, kvm.MemoryPrivate); err != nil {
			t.Fatal(err)
		}
		populate(unix.EINVAL, func(q *kvm.RealmPopulate) { q.Flags = 2 })
		populate(unix.EINVAL, func(q *kvm.RealmPopulate) { q.Base++ })
		populate(unix.EINVAL, func(q *kvm.RealmPopulate) { q.Base = 0 })
		populate(0, func(*kvm.RealmPopulate) {})
		populate(unix.ENXIO, func(*kvm.RealmPopulate) {}) // twice
		if _, err := l.cpus[0].Run(); err != nil {
			t.Fatal(err)
		}
		populate(unix.EBUSY, func(q *kvm.RealmPopulate) { q.Base += 4096 }) // it runs
	}
}

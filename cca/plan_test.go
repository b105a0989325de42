package cca

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/boot"
)

func testPlan(t *testing.T, image []byte, o boot.Options) *boot.Plan {
	t.Helper()
	img, err := boot.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	o.ARM64.Realm = true
	p, err := img.Plan(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func measure(t *testing.T, l *Launch, err error, v Version) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	rim, err := l.Measure(v, nil)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(rim)
}

// gvmm's own plan of kvmtool's machine measures as kvmtool's launch with the
// device tree of that plan.
func TestPlanIsLKVM(t *testing.T) {
	image := testImage(700001, 0, 5<<20)
	for _, initrd := range []int{0, 5001, 4096} {
		for _, ram := range []uint64{128 << 20, 256 << 20, 3 << 30} {
			o := boot.Options{Machine: boot.MachineLKVM, Memory: ram, CPUs: 2, Params: "quiet", ARM64: boot.ARM64Options{Devices: 2}}
			l := &LKVM{Kernel: bytes.NewReader(image), Params: Params{Breakpoints: 5, Watchpoints: 3}}
			if initrd > 0 {
				o.Initrd = bytes.NewReader(pattern(initrd, 11))
				l.Initrd = o.Initrd
			}
			p := testPlan(t, image, o)
			for _, r := range p.Regions {
				if r.Name == "device tree" {
					l.DTB = r.Data
				}
			}
			own, err := PlanLaunch(p, &Config{Params: l.Params})
			theirs, err2 := l.Launch()
			if a, b := measure(t, own, err, RMM1), measure(t, theirs, err2, RMM1); a != b {
				t.Errorf("RAM %#x, initrd %d: own %s, kvmtool's %s", ram, initrd, a, b)
			}
		}
	}
}

// A kernel that sets RIPAS itself does it when data and REC are there.
func TestPlanOrder(t *testing.T) {
	p := testPlan(t, testImage(5000, 0, 0x3000), boot.Options{Memory: 128 << 20})
	for abi, want := range map[string]string{"": "ripas populate populate rec", "300": "ripas populate populate rec", "v10": "ripas populate populate rec", "v12": "populate populate rec ripas", "v15": "populate populate rec ripas"} {
		l, err := PlanLaunch(p, &Config{ABI: abi})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, op := range l.Ops {
			got = append(got, string(op.Kind))
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%q: %s, want %s", abi, g, want)
		}
	}
	// RIPAS behind data: two granules of kernel, then the rest of their 2 MiB, one
	// by one, then whole blocks up to the granules of the device tree.
	l, err := PlanLaunch(p, &Config{ABI: "v12"})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[uint64]int{}
	var first []uint64
	if _, err := l.Measure(RMM1, func(name string, s Step) {
		if s.Call == "RMI_RTT_INIT_RIPAS" {
			sizes[uint64(s.Top-s.Base)]++
			first = append(first, uint64(s.Base))
		}
	}); err != nil {
		t.Fatal(err)
	}
	tree := int((p.Regions[1].Data.Size() + Granule - 1) / Granule)
	if want := map[uint64]int{Granule: 512 - 2 + 512 - tree, 2 << 20: 62}; sizes[Granule] != want[Granule] || sizes[2<<20] != want[2<<20] || first[0] != uint64(p.RAM[0].Base)+2*Granule || !slices.IsSorted(first) {
		t.Errorf("RIPAS by size %v, want %v; from %#x", sizes, want, first[0])
	}
}

func TestPlanRefusals(t *testing.T) {
	if _, err := PlanLaunch(&boot.Plan{Arch: boot.AMD64}, &Config{}); err == nil || !strings.Contains(err.Error(), "amd64") {
		t.Errorf("got %v", err)
	}
	p := testPlan(t, testImage(5000, 0, 0x3000), boot.Options{Memory: 128 << 20})
	p.Regions[1].Base = p.Regions[0].Base + 0x1400
	if _, err := PlanLaunch(p, &Config{}); err == nil || !strings.Contains(err.Error(), "shares a granule") {
		t.Errorf("got %v", err)
	}
}

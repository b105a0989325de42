package cca

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// The published vector: the unit test of veraison/cca-realm-measurements
// (src/realm_config.rs, test_rim), a realm with parameters and nothing else.
func TestPublishedRIM(t *testing.T) {
	for h, want := range map[Hash]string{
		SHA256: "6739dfb22b75ee1268d08dfa8369f501bc0b066243553f069f560d1fa1172973",
		SHA512: "799e434048fb57eb9d4f0e2a2b98158720377252deab2bdfcd69b5a8f82237f434bd6bb1c75bf160a2d49382f733b3439a3ff769e4ea5dd9a6f72239d44bbbab",
	} {
		r, err := Create(RMM1, Params{Hash: h, IPABits: 48, Breakpoints: 1, Watchpoints: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(r.Value()); got != want {
			t.Errorf("hash %d: got %s, want %s", h, got, want)
		}
	}
}

func TestBlockSizes(t *testing.T) {
	const k4, m2, g1, g512 = 1 << 12, 1 << 21, 1 << 30, 1 << 39
	for bits, want := range map[uint8][]uint64{
		52: {g512, g1, m2, k4}, 49: {g512, g1, m2, k4}, 48: {g512, g1, m2, k4}, 44: {g512, g1, m2, k4},
		43: {g1, m2, k4}, 39: {g1, m2, k4}, 35: {g1, m2, k4},
		34: {m2, k4}, 33: {m2, k4}, 26: {m2, k4}, 25: {k4}, 20: {k4},
	} {
		if got := blockSizes(bits); !reflect.DeepEqual(got, want) {
			t.Errorf("%d IPA bits: got %#x, want %#x", bits, got, want)
		}
	}
}

// ripas returns the ranges that the steps of one InitRIPAS cover.
func ripas(t *testing.T, ipaBits uint8, base, top memory.GPA) (got []memory.Range) {
	t.Helper()
	r, err := Create(RMM1, Params{IPABits: ipaBits}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Trace = func(s Step) { got = append(got, memory.Range{Base: s.Base, Size: uint64(s.Top - s.Base)}) }
	if err := r.InitRIPAS(base, top); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRIPASSplit(t *testing.T) {
	for _, c := range []struct {
		bits      uint8
		base, top memory.GPA
		want      []uint64 // sizes
	}{
		{33, 0x80000000, 0x80400000, []uint64{1 << 21, 1 << 21}},
		{33, 0x801ff000, 0x80401000, []uint64{1 << 12, 1 << 21, 1 << 12}},
		{36, 0x7fe00000, 0xc0200000, []uint64{1 << 21, 1 << 30, 1 << 21}},
		{48, 0, 1 << 40, []uint64{1 << 39, 1 << 39}},
	} {
		at := c.base
		for i, r := range ripas(t, c.bits, c.base, c.top) {
			if i >= len(c.want) || r.Base != at || r.Size != c.want[i] {
				t.Errorf("%d bits, %#x-%#x: step %d is %v", c.bits, c.base, c.top, i, r)
			}
			at = r.End()
		}
		if at != c.top {
			t.Errorf("%d bits, %#x-%#x: steps end at %#x", c.bits, c.base, c.top, at)
		}
	}
}

func TestRIPASUnmeasuredInRMM2(t *testing.T) {
	r, err := Create(RMM2, Params{IPABits: 33}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := r.Value()
	if err := r.InitRIPAS(0x80000000, 0x90000000); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, r.Value()) {
		t.Error("RMI_RTT_INIT_RIPAS of RMM 2.0 extended the RIM")
	}
}

func TestOnlyRunnableRECsMeasured(t *testing.T) {
	r, _ := Create(RMM1, Params{IPABits: 33}, nil)
	before := r.Value()
	r.REC(REC{PC: 1})
	if !bytes.Equal(before, r.Value()) {
		t.Error("a REC that is not runnable extended the RIM")
	}
	r.REC(REC{PC: 1, Runnable: true})
	if bytes.Equal(before, r.Value()) {
		t.Error("a runnable REC did not extend the RIM")
	}
}

// Every parameter and the order of steps are part of the measurement.
func TestParametersAndOrderMatter(t *testing.T) {
	page := make([]byte, Granule)
	seen := map[string]string{}
	for name, p := range map[string]Params{
		"plain": {IPABits: 33}, "ipa": {IPABits: 34}, "bps": {IPABits: 33, Breakpoints: 1}, "wps": {IPABits: 33, Watchpoints: 1},
		"sve": {IPABits: 33, SVE: 128}, "sve 256": {IPABits: 33, SVE: 256}, "pmu": {IPABits: 33, PMU: true},
		"counters": {IPABits: 33, PMU: true, PMUCounters: 1}, "lpa2": {IPABits: 33, LPA2: true}, "hash": {IPABits: 33, Hash: SHA512},
	} {
		for _, order := range []string{"ab", "ba", "aB"} {
			r, err := Create(RMM1, p, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range order {
				content := page
				if c == 'B' {
					content = nil
				}
				ipa := memory.GPA(c|0x20) * Granule
				if err := r.Data(ipa, content); err != nil {
					t.Fatal(err)
				}
			}
			v := string(r.Value())
			if old, dup := seen[v]; dup {
				t.Errorf("%s %s measures like %s", name, order, old)
			}
			seen[v] = name + " " + order
		}
	}
}

func TestRefusals(t *testing.T) {
	for say, p := range map[string]Params{
		"IPA bits": {IPABits: 31}, "LPA2": {IPABits: 49}, "hash": {IPABits: 33, Hash: 2},
		"SVE": {IPABits: 33, SVE: 100}, "PMU": {IPABits: 33, PMUCounters: 1}, "breakpoints": {IPABits: 33, Breakpoints: 64},
	} {
		if _, err := Create(RMM1, p, nil); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%+v: %v, want %q", p, err, say)
		}
	}
	if _, err := Create(3, Params{IPABits: 33}, nil); err == nil {
		t.Error("RMM version 3 accepted")
	}
	r, _ := Create(RMM1, Params{IPABits: 33}, nil)
	for _, b := range [][2]memory.GPA{{0x1000, 0x1000}, {0x1001, 0x2000}, {0x1000, 0x1801}, {0xfffff000, 0x100001000}, {^memory.GPA(0xfff), 0}} {
		if r.InitRIPAS(b[0], b[1]) == nil {
			t.Errorf("RIPAS %#x accepted", b)
		}
	}
	if r.Data(0x1000, make([]byte, 100)) == nil || r.Data(1<<32, nil) == nil {
		t.Error("data granule of 100 bytes, or in the unprotected half, accepted")
	}
}

// Populate on all processors is Data page after page.
func TestPopulateIsData(t *testing.T) {
	for _, c := range []struct{ size, offset, data int }{
		{Granule, 0, Granule}, {3 * Granule, 100, 2*Granule + 1}, {40 * chunkSize, 4095, 40*chunkSize - 8191}, {2 * Granule, 0, 0},
	} {
		data := pattern(c.data, 13)
		rng := memory.Range{Base: 0x1000, Size: uint64(c.size)}
		serial, _ := Create(RMM1, Params{IPABits: 33}, nil)
		flat := make([]byte, c.size)
		copy(flat[c.offset:], data)
		for i := 0; i < c.size; i += Granule {
			if err := serial.Data(rng.Base+memory.GPA(i), flat[i:i+Granule]); err != nil {
				t.Fatal(err)
			}
		}
		parallel, _ := Create(RMM1, Params{IPABits: 33}, nil)
		if err := parallel.Populate(rng, bytes.NewReader(data), uint64(c.offset)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(serial.Value(), parallel.Value()) {
			t.Errorf("%+v: Populate and Data differ", c)
		}
	}
	r, _ := Create(RMM1, Params{IPABits: 33}, nil)
	if r.Populate(memory.Range{Base: 0, Size: Granule}, bytes.NewReader(make([]byte, Granule)), 1) == nil {
		t.Error("data beyond its range accepted")
	}
}

// short is a file that is cut off while it is read.
type short struct{ *bytes.Reader }

var errShort = errors.New("cut off")

func (s short) ReadAt(p []byte, off int64) (int, error) {
	if off >= 3*chunkSize {
		return 0, errShort
	}
	return s.Reader.ReadAt(p, off)
}

func TestPopulateReadError(t *testing.T) {
	r, _ := Create(RMM1, Params{IPABits: 33}, nil)
	data := short{bytes.NewReader(make([]byte, 20*chunkSize))}
	if err := r.Populate(memory.Range{Size: 20 * chunkSize}, data, 0); !errors.Is(err, errShort) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkPopulate(b *testing.B) {
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		r, _ := Create(RMM1, Params{IPABits: 33}, nil)
		if err := r.Populate(memory.Range{Size: uint64(len(data))}, bytes.NewReader(data), 0); err != nil {
			b.Fatal(err)
		}
	}
}

package boot

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// FuzzOpen: no file panics or hangs the parsers, none has them allocate more
// than the file and the guest's memory together, and what they accept can be
// laid out, printed and loaded.
func FuzzOpen(f *testing.F) {
	pvh32 := testELF{machine: emI386, kind: elfExec, entry: 0x100000, segments: []testSegment{
		load(0x100000, testCode, 300), note(elfNote("Xen", noteXenPhys32, []byte{4, 0, 0x10, 0}))}}
	for _, b := range [][]byte{
		goodMultiboot(".uk_inittab", ".uk_libparam_params").build(),
		goodELF64(".uk_inittab").build(),
		goodVmlinux().build(),
		goodBzImage(),
		goodARM64(),
		pvh32.build(),
		append(mbHeader(multibootAddresses, 0x200000, 0x200000, 0, 0x300000, 0x200020), testCode...),
		gz(f, goodVmlinux().build()),
		gz(f, goodELF64(".uk_inittab").build()),
		[]byte("\xfd7zXZ\x00"),
	} {
		f.Add(b)
	}
	const limit = 32 * mib
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		img, err := OpenLimit(bytes.NewReader(b), int64(len(b)), limit)
		if err == nil {
			err = planFuzzed(t, img)
		}
		runtime.ReadMemStats(&after)
		// What every parser may take besides: one chunk, names, tables, errors.
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(len(b))*4+limit+8*mib {
			t.Errorf("%d bytes allocated for a file of %d (%v)", n, len(b), err)
		}
	})
}

func planFuzzed(t *testing.T, img *Image) error {
	o := Options{Memory: min(img.MinMemory(100), 32*mib), Name: "app", Params: "a.b=1", Args: []string{"x"}, MMIO: slots(2), Initrd: initrd(100)}
	p, err := img.Plan(o)
	if err != nil {
		return err
	}
	m, err := memory.New(p.RAM...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := p.Load(m); err != nil {
		t.Fatalf("accepted and not loaded: %v", err)
	}
	if _, err := p.WriteTo(&bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	_, err = img.WriteTo(&bytes.Buffer{})
	return err
}

package sev

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

type vector struct {
	Name, Firmware, VMM, Append string
	VCPUs                       int
	VCPUType                    string  `json:"vcpu_type"`
	Kernel                      *string // "empty file" or null
	GuestFeatures               uint64  `json:"guest_features"`
	FirmwareDigestGiven         bool    `json:"firmware_digest_given"`
	Digest                      *string
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseFirmware(t testing.TB, name string) *Firmware {
	t.Helper()
	f, err := ParseFirmware(blob(readFile(t, name)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPublishedDigests(t *testing.T) {
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(readFile(t, "published.json"), &file); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, v := range file.Vectors {
		if v.Firmware == "" {
			continue // a test of the other program's file output
		}
		t.Run(v.Name, func(t *testing.T) {
			l := FirmwareLaunch{VMM: VMM(strings.ToLower(v.VMM)), Firmware: parseFirmware(t, v.Firmware), VCPUs: v.VCPUs, Features: v.GuestFeatures}
			if v.VCPUType != "None" {
				sig, err := TypeSignature(v.VCPUType)
				if err != nil {
					t.Fatal(err)
				}
				l.Sig = sig
			}
			if v.Kernel != nil {
				h, err := HashKernel(strings.NewReader(""), strings.NewReader(""), v.Append)
				if err != nil {
					t.Fatal(err)
				}
				l.Kernel = h
			}
			if v.FirmwareDigestGiven {
				var c Chain
				data := readFile(t, v.Firmware)
				if err := c.Add(Range{PageNormal, fourGiB - uint64(len(data)), uint64(len(data)), "", blob(data)}); err != nil {
					t.Fatal(err)
				}
				d := c.Digest()
				l.FirmwareDigest = &d
			}
			got, err := l.Digest(nil)
			switch {
			case v.Digest == nil:
				if err == nil {
					t.Errorf("digest %s, want an error", got)
				}
			case err != nil:
				t.Error(err)
			case got.String() != *v.Digest:
				t.Errorf("digest %s, want %s", got, *v.Digest)
			}
		})
		ran++
	}
	if ran < 17 {
		t.Errorf("%d vectors", ran)
	}
}

// The digests are those that sev-snp-measure's tests expect of the same inputs.
func TestLegacyDigests(t *testing.T) {
	for _, c := range []struct {
		firmware, cmdline string
		kernel, es        bool
		vcpus             int
		want              string
	}{
		{"ovmf_AmdSev_suffix.bin", "", true, true, 1, "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c"},
		{"ovmf_AmdSev_suffix.bin", "", true, true, 4, "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91"},
		{"ovmf_AmdSev_suffix.bin", "console=ttyS0 loglevel=7", true, false, 1, "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff"},
		{"ovmf_AmdSev_suffix.bin", "", true, false, 1, "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898"},
		{"ovmf_OvmfX64_suffix.bin", "", false, false, 1, "b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da"},
		{"ovmf_OvmfX64_suffix.bin", "", true, false, 1, ""},
		{"ovmf_OvmfX64_suffix.bin", "", true, true, 1, ""},
	} {
		l := FirmwareLaunch{VMM: QEMU, Firmware: parseFirmware(t, c.firmware), VCPUs: c.vcpus, Sig: Signature(23, 1, 2), Features: 0x21}
		if c.kernel {
			h, err := HashKernel(strings.NewReader(""), nil, c.cmdline)
			if err != nil {
				t.Fatal(err)
			}
			l.Kernel = h
		}
		got, err := l.Legacy(c.es)
		if (err != nil) != (c.want == "") {
			t.Errorf("%+v: error %v", c, err)
		} else if hex.EncodeToString(got) != c.want {
			t.Errorf("%+v: digest %x", c, got)
		}
	}
}

// Every register lands at the offset that the published table gives for it.
func TestPageOffsets(t *testing.T) {
	var offsets map[string]int
	if err := json.Unmarshal(readFile(t, "vmsa_offsets.json"), &offsets); err != nil {
		t.Fatal(err)
	}
	rename := map[string]string{"PAT": "g_pat", "FEATURES": "sev_features", "KERNELGSBASE": "kernel_gs_base", "SYSENTERCS": "sysenter_cs",
		"SYSENTERESP": "sysenter_esp", "SYSENTEREIP": "sysenter_eip", "UCET": "u_cet", "SCET": "s_cet", "ISSTADDR": "isst_addr",
		"DBGCTL": "dbgctrl", "FCW": "x87_fcw", "FSW": "x87_fsw", "FTW": "x87_ftw", "FOP": "x87_fop", "FIP": "x87_rip", "FDP": "x87_dp",
		"ST": "fpreg_x87", "XMM": "fpreg_xmm", "YMM": "fpreg_ymm"}
	kind := reflect.TypeFor[Registers]()
	for i := range kind.NumField() {
		var r Registers
		f := reflect.ValueOf(&r).Elem().Field(i)
		switch f.Kind() {
		case reflect.Struct:
			f.Set(reflect.ValueOf(Segment{Selector: 0xa5}))
		case reflect.Array:
			f.Index(0).SetUint(0xa5)
		default:
			f.SetUint(0xa5)
		}
		name := strings.ToUpper(kind.Field(i).Name)
		if n, ok := rename[name]; ok {
			name = n
		}
		want, ok := offsets[strings.ToLower(name)]
		if !ok {
			t.Errorf("%s: no offset known", name)
		}
		if at := bytes.IndexByte(r.Page(), 0xa5); at != want {
			t.Errorf("%s is at %#x, want %#x", name, at, want)
		}
	}
}

func TestKVM(t *testing.T) {
	r := ResetRegisters(QEMU, resetVector, 0x600, 0)
	r.CR0, r.CR4, r.EFER = 0x80050033|cr0CD|cr0NW, 0x20, 0x500
	r.CS.Attrib = Attrib(0xb, true, 0, true, false, true, false, true)
	r.SS.Attrib = Attrib(3, true, 3, true, false, false, true, true)
	got, err := r.KVM()
	if err != nil {
		t.Fatal(err)
	}
	if got.CR0 != 0x80050033 || got.CR4 != 0x60 || got.EFER != 0x1500 || got.CPL != 3 || got.Features != 1 {
		t.Errorf("CR0 %#x CR4 %#x EFER %#x CPL %d features %#x", got.CR0, got.CR4, got.EFER, got.CPL, got.Features)
	}
	if got.CS.Attrib != 0xa9b || got.SS.Attrib != 0xcf3 {
		t.Errorf("attributes %#x, %#x", got.CS.Attrib, got.SS.Attrib)
	}
	r.DR7 = 0x401
	if _, err := r.KVM(); err == nil {
		t.Error("a breakpoint was accepted")
	}
	// Firmware under QEMU is what KVM builds of QEMU's registers.
	reset := ResetRegisters(QEMU, resetVector, 0x800f12, 1)
	if kvm, err := reset.KVM(); err != nil || kvm != reset {
		t.Errorf("QEMU's reset registers change under KVM: %+v, %v", kvm, err)
	}
}

func TestTypeSignature(t *testing.T) {
	for name, want := range map[string]uint32{"EPYC": 0x800f12, "EPYC-v4": 0x800f12, "Naples": 0x800f12, "EPYC-IBPB": 0x800f12,
		"EPYC-Rome-v3": 0x830f10, "EPYC-Milan": 0xa00f11, "milan": 0xa00f11, "EPYC-Genoa-v1": 0xa10f10, "EPYC-Turin": 0xb00f00} {
		if got, err := TypeSignature(name); err != nil || got != want {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "EPYC-", "EPYC-v", "Skylake", "v4"} {
		if got, err := TypeSignature(name); err == nil {
			t.Errorf("%q: %#x", name, got)
		}
	}
}

// A range measures as its pages one by one, however many cores hash it, and any
// change of a page, its type, its place or the order changes the digest.
func TestChain(t *testing.T) {
	data := make([]byte, 300*PageSize+123)
	for i := range data {
		data[i] = byte(i >> 12 * 7)
	}
	r := Range{PageNormal, 0x100000, 302 * PageSize, "test", blob(data)}
	padded := make([]byte, r.Size)
	copy(padded, data)
	var one, all Chain
	for off := 0; off < len(padded); off += PageSize {
		if err := one.Update(PageNormal, r.GPA+uint64(off), padded[off:off+PageSize]); err != nil {
			t.Fatal(err)
		}
	}
	if err := all.Add(r); err != nil {
		t.Fatal(err)
	}
	if one.Digest() != all.Digest() {
		t.Errorf("pages: %s, range: %s", one.Digest(), all.Digest())
	}
	seen := map[Digest]string{all.Digest(): "unchanged"}
	for name, change := range map[string]func(*Range){
		"type": func(r *Range) { r.Type = PageZero }, "place": func(r *Range) { r.GPA += PageSize },
		"fewer": func(r *Range) { r.Size -= PageSize; r.Data = blob(data[:r.Size-PageSize]) },
		"bit":   func(r *Range) { b := bytes.Clone(data); b[len(b)-1] ^= 1; r.Data = blob(b) },
		"order": func(r *Range) {
			b := bytes.Clone(data)
			copy(b, data[PageSize:2*PageSize])
			copy(b[PageSize:], data[:PageSize])
			r.Data = blob(b)
		},
	} {
		changed := r
		change(&changed)
		var c Chain
		if err := c.Add(changed); err != nil {
			t.Fatal(err)
		}
		if was, ok := seen[c.Digest()]; ok {
			t.Errorf("%s: same digest as %s", name, was)
		}
		seen[c.Digest()] = name
	}
	for name, bad := range map[string]Range{
		"part of a page": {PageNormal, 0, 100, "", nil}, "misaligned": {PageNormal, 1, PageSize, "", nil},
		"too much data": {PageNormal, 0, PageSize, "", blob(data)}, "no type": {0, 0, PageSize, "", nil},
		"wrapping": {PageZero, 1<<64 - PageSize, 2 * PageSize, "", nil},
	} {
		if err := new(Chain).Add(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Conventions of other monitors that the digest must show.
func TestConventions(t *testing.T) {
	f := parseFirmware(t, "ovmf_AmdSev_suffix.bin")
	zero := uint64(0)
	ec2 := FirmwareLaunch{VMM: EC2, Firmware: f, VCPUs: 1, Features: 1}
	newer, err := ec2.Digest(nil)
	if err != nil {
		t.Fatal(err)
	}
	ec2.RDX = &zero
	if older, err := ec2.Digest(nil); err != nil || older == newer {
		t.Errorf("RDX does not show: %v", err)
	}
	ranges, err := ec2.Ranges()
	if err != nil {
		t.Fatal(err)
	}
	if r := ranges[len(ranges)-2]; r.Type != PageCPUID {
		t.Errorf("last section on EC2 is %s", r.Type)
	}
}

// testFirmware builds a firmware tail with one metadata section and entries.
func testFirmware(section Section, table ...string) []byte {
	b := make([]byte, 2*PageSize)
	le := binary.LittleEndian
	copy(b, "ASEV")
	for i, v := range []uint32{28, 1, 1, section.GPA, section.Size, uint32(section.Type)} {
		le.PutUint32(b[4+4*i:], v)
	}
	footer := len(b) - tableEnd - entryHeader
	end, size := footer, entryHeader
	for _, guid := range append(table, guidMetadata) {
		copy(b[end-16:], guidBytes(guid))
		le.PutUint16(b[end-18:], entryHeader+4)
		le.PutUint32(b[end-22:], 0x1000)
		if guid == guidMetadata {
			le.PutUint32(b[end-22:], uint32(len(b)))
		}
		end -= entryHeader + 4
		size += entryHeader + 4
	}
	le.PutUint16(b[footer:], uint16(size))
	copy(b[footer+2:], guidBytes(guidFooter))
	return b
}

func TestFirmwareErrors(t *testing.T) {
	good := testFirmware(Section{0x1000, 0x1000, SectionCPUID}, guidReset)
	if f, err := ParseFirmware(blob(good)); err != nil || len(f.Sections) != 1 || *f.resetEIP != 0x1000 {
		t.Fatalf("%+v, %v", f, err)
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":        {nil, "size 0"},
		"odd":          {good[1:], "size 8191"},
		"no table":     {make([]byte, PageSize), "offset 0xfce: no OVMF table footer"},
		"misaligned":   {testFirmware(Section{0x1001, 0x1000, SectionMemory}), "offset 0x10: section 0: 0x1001+0x1000"},
		"above 4 GiB":  {testFirmware(Section{0xfffff000, 0x2000, SectionMemory}), "4 GiB"},
		"two cpuids":   {testFirmware(Section{0, 0x2000, SectionCPUID}), "want one page"},
		"unknown":      {testFirmware(Section{0, 0x1000, 9}), "type 0x9"},
		"listed twice": {testFirmware(Section{0, 0x1000, SectionCPUID}, guidMetadata), "second list"},
	} {
		if _, err := ParseFirmware(blob(c.data)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		data  []byte
		vcpus int
		want  string
	}{
		"no reset block": {testFirmware(Section{0, 0x1000, SectionCPUID}), 2, "reset block"},
		"overlap":        {testFirmware(Section{0xffffe000, 0x1000, SectionMemory}), 1, "overlaps"},
		"no vCPU":        {good, 0, "0 vCPUs"},
	} {
		f, err := ParseFirmware(blob(c.data))
		if err != nil {
			t.Fatal(name, err)
		}
		l := FirmwareLaunch{VMM: QEMU, Firmware: f, VCPUs: c.vcpus}
		if _, err := l.Digest(nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParseFirmware(f *testing.F) {
	f.Add(readFile(f, "ovmf_AmdSev_suffix.bin"))
	f.Add(readFile(f, "ovmf_OvmfX64_suffix.bin"))
	f.Add(testFirmware(Section{0x1000, 0x1000, SectionCPUID}, guidReset, guidSVSM, guidHashes))
	f.Fuzz(func(t *testing.T, data []byte) {
		fw, err := ParseFirmware(blob(data))
		if err != nil {
			return
		}
		l := FirmwareLaunch{VMM: QEMU, Firmware: fw, VCPUs: 2, Kernel: new(Hashes)}
		ranges, err := l.Ranges()
		if err != nil {
			return
		}
		for _, r := range ranges {
			if r.GPA%PageSize != 0 || r.Size%PageSize != 0 || r.GPA+r.Size > VMSAGPA+PageSize {
				t.Errorf("range %+v", r)
			}
		}
	})
}

func benchmarkBytes() []byte {
	b := make([]byte, 4<<20)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	return b
}

// BenchmarkChain measures 4 MiB of firmware; BenchmarkSHA384 is the floor. With
// -cpu 1 the promise is at most 1.3 times the floor.
func BenchmarkChain(b *testing.B) {
	data := benchmarkBytes()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := new(Chain).Add(Range{PageNormal, 0xffc00000, uint64(len(data)), "", blob(data)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSHA384(b *testing.B) {
	data := benchmarkBytes()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		sha512.Sum384(data)
	}
}

// BenchmarkOneCore gives the chain's time on one core as a multiple of that of
// SHA-384 over the same bytes, in turn: at most 1.3 is the promise.
func BenchmarkOneCore(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	data := benchmarkBytes()
	var chain, floor time.Duration
	for b.Loop() {
		start := time.Now()
		if err := new(Chain).Add(Range{PageNormal, 0xffc00000, uint64(len(data)), "", blob(data)}); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		sha512.Sum384(data)
		chain, floor = chain+middle.Sub(start), floor+time.Since(middle)
	}
	b.ReportMetric(float64(chain)/float64(floor), "of-SHA-384")
}

// Eight pages at a time hash as one by one, equal or not, in any number.
func TestHashChunk(t *testing.T) {
	buf := benchmarkBytes()[:chunkPages*PageSize]
	for _, equal := range []int{3, 4, 17, 18, 19, 31} {
		copy(buf[equal*PageSize:(equal+1)*PageSize], buf[(equal-1)*PageSize:])
	}
	for n := 1; n <= chunkPages; n++ {
		out := make([]Digest, n)
		hashChunk(buf[:n*PageSize], out)
		for i := range out {
			if want := sha512.Sum384(buf[i*PageSize : (i+1)*PageSize]); out[i] != want {
				t.Errorf("page %d of %d: %s, want %x", i, n, out[i], want)
			}
		}
	}
}

// numbered is a blob whose pages start with their number.
type numbered struct {
	size    int64
	failsAt int64
}

func (n numbered) Size() int64 { return n.size }

func (n numbered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := 0; i < len(p); i += PageSize {
		if off+int64(i) == n.failsAt {
			return i, errors.New("bad sector")
		}
		binary.LittleEndian.PutUint64(p[i:], uint64(off)+uint64(i))
	}
	return len(p), nil
}

// A range longer than a batch measures as its pages one by one; a page that
// cannot be read is named.
func TestChainBatches(t *testing.T) {
	const pages = batchPages + chunkPages + 3
	r := Range{PageNormal, 0, pages * PageSize, "big", numbered{pages * PageSize, -1}}
	var one, all Chain
	page := make([]byte, PageSize)
	for i := range uint64(pages) {
		binary.LittleEndian.PutUint64(page, i*PageSize)
		if err := one.Update(PageNormal, i*PageSize, page); err != nil {
			t.Fatal(err)
		}
	}
	if err := all.Add(r); err != nil || one.Digest() != all.Digest() {
		t.Errorf("pages: %s, range: %s, %v", one.Digest(), all.Digest(), err)
	}
	r.Data = numbered{pages * PageSize, (batchPages + 1) * PageSize}
	if err := all.Add(r); err == nil || !strings.Contains(err.Error(), `range "big": reading at offset 0x4000000: bad sector`) {
		t.Errorf("error %v", err)
	}
}

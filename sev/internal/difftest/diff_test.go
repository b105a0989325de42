package difftest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha512"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/gce-tcb-verifier/ovmf"
	pb "github.com/google/gce-tcb-verifier/proto/sev"
	gce "github.com/google/gce-tcb-verifier/sev"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	testsev "github.com/google/go-sev-guest/testing"
	sevguest "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/idauth"
	"github.com/gvmm/gvmm/sev/verify"
)

func random(n int, r *rand.Rand) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Random chains of pages have the same digest.
func TestChain(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		var ours sev.Chain
		theirs := gce.SnpMeasurement{Product: spb.SevProduct_SEV_PRODUCT_GENOA}
		for range 20 {
			typ, gpa, n := sev.PageType(1+r.IntN(6)), r.Uint64N(1<<36)*sev.PageSize, (1+r.IntN(5))*sev.PageSize
			data := random(n, r)
			if r.IntN(3) == 0 {
				data = make([]byte, n)
			}
			if err := ours.Add(sev.Range{Type: typ, GPA: gpa, Size: uint64(n), Data: bytes.NewReader(data)}); err != nil {
				t.Fatal(err)
			}
			var err error
			if typ == sev.PageNormal || typ == sev.PageVMSA {
				err = theirs.Update(gpa, data, gce.PageType(typ))
			} else {
				err = theirs.ZeroContentUpdate(gpa, uint32(n), gce.PageType(typ))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := ours.Digest(); got != theirs.Digest {
			t.Errorf("seed %d: %s, want %x", seed, got, theirs.Digest)
		}
	}
}

// GCE's launches of firmware of random contents have the same digest.
func TestLaunch(t *testing.T) {
	tail, err := os.ReadFile("../../testdata/ovmf_OvmfX64_suffix.bin")
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		image := append(random(r.IntN(64)*sev.PageSize, r), tail...)
		fw, err := sev.ParseFirmware(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		launch := sev.FirmwareLaunch{VMM: sev.GCE, Firmware: fw, VCPUs: 1 + r.IntN(64), Features: sev.FeatureSNP}
		got, err := launch.Digest(nil)
		if err != nil {
			t.Fatal(err)
		}
		want, err := gce.LaunchDigest(&gce.LaunchOptions{Vcpus: launch.VCPUs, Product: spb.SevProduct_SEV_PRODUCT_MILAN}, image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:], want) {
			t.Errorf("seed %d, %d vCPUs: %s, want %x", seed, launch.VCPUs, got, want)
		}
	}
}

// What one parser accepts of damaged metadata, the other reads likewise.
func TestMetadata(t *testing.T) {
	tail, err := os.ReadFile("../../testdata/ovmf_OvmfX64_suffix.bin")
	if err != nil {
		t.Fatal(err)
	}
	both := 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 2))
		image := bytes.Clone(tail)
		for range r.IntN(3) {
			image[len(image)-1024+r.IntN(1024)] ^= 1 << r.IntN(8)
		}
		fw, err := sev.ParseFirmware(bytes.NewReader(image))
		if err != nil {
			continue
		}
		theirs := ovmf.SevData{SevEs: true, SevSnp: true}
		if theirs.ExtractFromFirmware(image) != nil {
			continue
		}
		sections, err := theirs.SnpMetadataSections()
		if err != nil {
			continue
		}
		both++
		for i, s := range sections {
			if i >= len(fw.Sections) || s.Address != fw.Sections[i].GPA || s.Length != fw.Sections[i].Size || s.Kind != uint32(fw.Sections[i].Type) {
				t.Errorf("seed %d: sections %+v, want %+v", seed, fw.Sections, sections)
				break
			}
		}
	}
	if both < 100 {
		t.Errorf("only %d images that both accept", both)
	}
}

// Random registers make the same VMSA page, as far as the other program knows them.
func TestVMSA(t *testing.T) {
	rename := map[string]string{"GPat": "PAT", "SevFeatures": "Features", "Dbgctl": "DbgCtl"}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		var ours sev.Registers
		theirs := new(pb.VmcbSaveArea)
		to := reflect.ValueOf(&ours).Elem()
		from := reflect.ValueOf(theirs).Elem()
		set := 0
		for i := range from.NumField() {
			name := from.Type().Field(i).Name
			if n, ok := rename[name]; ok {
				name = n
			}
			f := to.FieldByNameFunc(func(s string) bool { return strings.EqualFold(s, name) })
			if !f.IsValid() {
				continue
			}
			if _, ok := from.Field(i).Interface().(*pb.VmcbSeg); ok {
				s := &pb.VmcbSeg{Selector: r.Uint32N(1 << 16), Attrib: r.Uint32N(1 << 12), Limit: r.Uint32(), Base: r.Uint64()}
				from.Field(i).Set(reflect.ValueOf(s))
				f.Set(reflect.ValueOf(sev.Segment{Selector: uint16(s.Selector), Attrib: uint16(s.Attrib), Limit: s.Limit, Base: s.Base}))
			} else {
				v := r.Uint64() >> (64 - f.Type().Bits())
				from.Field(i).SetUint(v)
				f.SetUint(v)
			}
			set++
		}
		if set < 45 {
			t.Fatalf("only %d registers are known to both", set)
		}
		want := make([]byte, sev.PageSize)
		if err := gce.PutVmsa(theirs, want); err != nil {
			t.Fatal(err)
		}
		if got := ours.Page(); !bytes.Equal(got, want) {
			t.Errorf("seed %d: the pages differ", seed)
		}
	}
}

// The digests by which reports name the keys of an ID block.
func TestKeyDigests(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := (&sev.IDBlock{Policy: sev.DefaultPolicy}).Bytes()
	auth, err := idauth.Sign(block, key, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := idauth.Check(block, auth)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := abi.EcdsaPublicKeyToBytes(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if want := sev.Digest(sha512.Sum384(raw)); got.ID != want || *got.Author != want {
		t.Errorf("%s, want %s", got.ID, want)
	}
}

// Reports signed by a fake AMD are accepted by both, and refused by both with any
// byte changed.
func TestReports(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, product := range []string{"Milan-B1", "Genoa-B1"} {
		signer, err := testsev.DefaultTestOnlyCertChain(product, now)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(product, "-")
		for _, version := range []uint32{2, 3, 5} {
			for _, key := range []abi.ReportSigner{abi.VcekReportSigner, abi.VlekReportSigner} {
				fms := map[string]uint32{"Milan": 0xa00f11, "Genoa": 0xa10f11}[line]
				raw := testsev.CreateRawReport(&testsev.TestReportOptions{Version: version, FMS: fms, SignerInfo: abi.SignerInfo{SigningKey: key}})
				report := raw[:abi.ReportSize]
				r, s, err := signer.Sign(abi.SignedComponent(report))
				if err != nil {
					t.Fatal(err)
				}
				if err := abi.SetSignature(r, s, report); err != nil {
					t.Fatal(err)
				}
				check := func(name string, report []byte, want bool) {
					ours, theirs := acceptOurs(t, signer, report, now), acceptTheirs(signer, line, report, now)
					if ours != theirs || ours != want {
						t.Errorf("%s version %d %v %s: we accept %v, go-sev-guest %v", product, version, key, name, ours, theirs)
					}
				}
				check("unchanged", report, true)
				for at := 0; at < len(report); at += 37 {
					bad := bytes.Clone(report)
					bad[at] ^= 0x10
					check("changed", bad, false)
				}
			}
		}
	}
}

func acceptOurs(t *testing.T, s *testsev.AmdSigner, report []byte, now time.Time) bool {
	roots, err := verify.ParseRoots(verify.File{Data: s.Ark.Raw}, verify.File{Data: s.Ask.Raw}, verify.File{Data: s.Asvk.Raw})
	if err != nil {
		t.Fatal(err)
	}
	in := verify.Input{Report: report, Roots: roots, Now: now.Add(time.Hour)}
	for _, der := range [][]byte{s.Vcek.Raw, s.Vlek.Raw} {
		if err := in.Certs.Add(verify.File{Data: der}); err != nil {
			t.Fatal(err)
		}
	}
	return in.Check().Held()
}

func acceptTheirs(s *testsev.AmdSigner, line string, report []byte, now time.Time) bool {
	p, err := abi.ReportToProto(report)
	if err != nil {
		return false
	}
	root := trust.AMDRootCertsProduct(line)
	root.ProductCerts = &trust.ProductCerts{Ark: s.Ark, Ask: s.Ask, Asvk: s.Asvk}
	return sevguest.SnpAttestation(&spb.Attestation{Report: p, CertificateChain: &spb.CertificateChain{
		ArkCert: s.Ark.Raw, AskCert: s.Ask.Raw, VcekCert: s.Vcek.Raw, VlekCert: s.Vlek.Raw,
	}}, &sevguest.Options{DisableCertFetching: true, Now: now.Add(time.Hour), TrustedRoots: map[string][]*trust.AMDRootCerts{line: {root}}}) == nil
}

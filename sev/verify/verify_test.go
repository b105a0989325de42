package verify

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// failed returns the first clause that failed, "" if all held.
func failed(v Verdict) string {
	for _, c := range v {
		if !c.Held {
			return c.Name + ": " + c.Detail
		}
	}
	return ""
}

func wantFailed(t *testing.T, v Verdict, want string) {
	t.Helper()
	if got := failed(v); v.Held() || !strings.Contains(got, want) {
		t.Errorf("failed %q, want %q", got, want)
	}
}

// realReports are the public reports of Milan machines with their certificates.
func realReports(t testing.TB) map[string][2][]byte {
	t.Helper()
	read := func(name string) []byte { return must[[]byte](t)(os.ReadFile("../testdata/" + name)) }
	hexed := must[[]byte](t)(hex.DecodeString(strings.TrimSpace(string(read("report_milan.hex")))))
	return map[string][2][]byte{
		"go-sev-guest": {read("attestation.bin"), read("vcek.testcer")},
		"virtee":       {hexed, read("vcek_milan.der")},
	}
}

func realInput(t testing.TB, report, vcek []byte) (*Input, error) {
	t.Helper()
	in := &Input{Report: report, Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Roots: must[Roots](t)(AMDRoots())}
	return in, in.Certs.Add(File{"vcek", vcek})
}

func TestRealReports(t *testing.T) {
	for name, r := range realReports(t) {
		in, err := realInput(t, r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		if v := in.Check(); !v.Held() {
			t.Errorf("%s: %s", name, failed(v))
		}
		in.Now = time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC)
		wantFailed(t, in.Check(), "chain: vcek: x509: certificate has expired")
	}
}

// A flipped bit in any byte of a report or of its certificate is found.
func TestRealBitFlips(t *testing.T) {
	r := realReports(t)["virtee"]
	in, err := realInput(t, nil, r[1])
	if err != nil {
		t.Fatal(err)
	}
	for i := range r[0] {
		in.Report = bytes.Clone(r[0])
		in.Report[i] ^= 1 << (i % 8)
		if in.Check().Held() {
			t.Errorf("report: verified with byte %d changed", i)
		}
	}
	for i := range r[1] {
		vcek := bytes.Clone(r[1])
		vcek[i] ^= 1 << (i % 8)
		in, err := realInput(t, r[0], vcek)
		if err == nil && in.Check().Held() {
			t.Errorf("certificate: verified with byte %d changed", i)
		}
	}
}

func TestProductsVersionsSigners(t *testing.T) {
	for _, line := range []string{"Milan", "Genoa", "Turin"} {
		p := newPKI(t, line)
		for _, version := range []uint32{2, 3, 5} {
			for _, signer := range []Signer{VCEK, VLEK} {
				in := p.input(t, p.report(t, version, signer, nil))
				if v := in.Check(); !v.Held() {
					t.Errorf("%s version %d %s: %s", line, version, signer, failed(v))
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	p, other := newPKI(t, "Milan"), newPKI(t, "Milan")
	good := p.report(t, 3, VCEK, nil)
	set := func(at int, b ...byte) func([]byte) { return func(r []byte) { copy(r[at:], b) } }
	for want, in := range map[string]*Input{
		"report: 1183 bytes":                      p.input(t, good[:ReportSize-1]),
		"report: version 6":                       p.input(t, p.report(t, 6, VCEK, nil)),
		"report: guest policy":                    p.input(t, p.report(t, 3, VCEK, set(8, 0, 0, 1))),
		"report: signature algorithm":             p.input(t, p.report(t, 3, VCEK, set(0x34, 2))),
		"report: reserved bytes 0x4c":             p.input(t, p.report(t, 3, VCEK, set(0x4c, 1))),
		"report: 1185 bytes":                      p.input(t, append(bytes.Clone(good), 1)),
		"chain: the report is not signed":         p.input(t, p.report(t, 3, Unsigned, nil)),
		"chain: vcek: x509: certificate signed":   p.input(t, good).with(flipLast(bytes.Clone(p.vcek.Raw)), t),
		"certificate: report of a Genoa":          p.input(t, p.report(t, 3, VCEK, set(0x189, 0x11))),
		"certificate: report of a family 0x17":    p.input(t, p.report(t, 3, VCEK, set(0x188, 0x17))),
		"certificate: report says":                p.input(t, p.report(t, 3, VCEK, set(0x187, 116))),
		"certificate: certificate of chip c1c1c1": p.input(t, p.report(t, 3, VCEK, set(0x1a0, 1))),
		"signature: the report was changed":       p.input(t, append(bytes.Clone(good[:offSignature]), other.report(t, 3, VCEK, nil)[offSignature:]...)),
	} {
		t.Run(want, func(t *testing.T) { wantFailed(t, in.Check(), want) })
	}
	in := &Input{Report: good, Now: p.now, Roots: must[Roots](t)(AMDRoots())}
	wantFailed(t, in.Check(), "chain: no VCEK certificate")
	if err := in.Certs.Add(File{"vcek", p.vcek.Raw}); err != nil {
		t.Fatal(err)
	}
	wantFailed(t, in.Check(), "chain: vcek: x509")
	in = p.input(t, good, File{"ark", newPKI(t, "Genoa").ark.Raw})
	wantFailed(t, in.Check(), "no root for \"Genoa\"")
	in = p.input(t, good, File{"ark", other.ark.Raw})
	wantFailed(t, in.Check(), "not the root that is trusted")
	if err := in.Certs.Add(File{"x", []byte("x")}); err == nil {
		t.Error("a file that is no certificate was accepted")
	}
}

// with replaces the VCEK by the given one.
func (in *Input) with(vcek []byte, t testing.TB) *Input {
	t.Helper()
	in.Certs.vcek = nil
	if err := in.Certs.Add(File{"vcek", vcek}); err != nil {
		t.Fatal(err)
	}
	return in
}

func TestRevocation(t *testing.T) {
	p := newPKI(t, "Milan")
	other := newPKI(t, "Genoa")
	good := p.report(t, 3, VCEK, nil)
	const day = 24 * time.Hour
	for want, list := range map[string][]byte{
		"":                         p.list(t, 2, -day, day),
		"list: expired":            p.list(t, 2, -2*day, -day),
		"list: not valid before":   p.list(t, 2, day, 2*day),
		"SEV-VCEK, serial 7":       p.list(t, 2, -day, day, 99, 7),
		"SEV-Milan, serial 10001":  p.list(t, 2, -day, day, 65537),
		"ARK-Milan, serial 10000":  p.list(t, 2, -day, day, 65536),
		"list: list of \"ARK-Gen":  other.list(t, 2, -day, day),
		"list: not signed by ARK-": flipLast(p.list(t, 2, -day, day)),
	} {
		cache := Cache(filepath.Join(t.TempDir(), "cache"))
		in := p.input(t, good, File{"list", list})
		in.Cache = cache
		v := in.Check()
		_, err := os.Stat(cache.path("Milan"))
		if want == "" {
			if !v.Held() || v[len(v)-1].Name != "revocation" || err != nil {
				t.Errorf("good list: %+v, %v", v, err)
			}
			continue
		}
		wantFailed(t, v, "revocation: ")
		wantFailed(t, v, want)
		if err == nil && !strings.Contains(want, "serial") {
			t.Errorf("%s: the list was stored", want)
		}
	}
	in := p.input(t, good)
	in.Policy.Revocation = true
	wantFailed(t, in.Check(), "no list given")
}

func flipLast(b []byte) []byte {
	b[len(b)-1] ^= 1
	return b
}

func TestCache(t *testing.T) {
	p := newPKI(t, "Milan")
	good := p.report(t, 3, VCEK, nil)
	const day = 24 * time.Hour
	cache := Cache(t.TempDir())
	check := func(after time.Duration, lists ...[]byte) Verdict {
		in := p.input(t, good)
		in.Cache, in.Now = cache, in.Now.Add(after)
		for i, l := range lists {
			if err := in.Certs.Add(File{fmt.Sprint("list ", i), l}); err != nil {
				t.Fatal(err)
			}
		}
		return in.Check()
	}
	if v := check(0, p.list(t, 5, -day, 30*day)); !v.Held() {
		t.Fatal(failed(v))
	}
	if v := check(day); !v.Held() || v[len(v)-1].Name != "revocation" {
		t.Errorf("kept list not used: %+v", v)
	}
	wantFailed(t, check(31*day), "expired")
	wantFailed(t, check(0, p.list(t, 4, -day, 30*day)), "older than the list kept")
	wantFailed(t, check(0, p.list(t, 6, -day, 30*day, 7)), "serial 7")
	wantFailed(t, check(0), "serial 7") // the newer one was kept
	if v := check(31*day, p.list(t, 7, 30*day, 60*day)); !v.Held() {
		t.Error(failed(v))
	}
	if err := os.WriteFile(cache.path("Milan"), flipLast(p.list(t, 9, -day, 30*day)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFailed(t, check(0), "Milan.crl")
	if left, err := filepath.Glob(string(cache) + "/.new-*"); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

func TestPolicy(t *testing.T) {
	p := newPKI(t, "Turin")
	in := p.input(t, p.report(t, 5, VCEK, nil))
	m := make([]byte, 48)
	for i := range m {
		m[i] = byte(i)
	}
	all := fmt.Sprintf(`{"measurement": "%x", "host_data": ["%064x", "%064x"], "report_data": "%x", "family_id": "%032x", "image_id": "%032x",
	"chip_id": "%s", "id_key_digest": "%s", "author_key_digest": "%s", "vmpl": [0], "min_report_version": 5, "min_guest_svn": 5,
	"min_tcb": {"fmc": 2, "bootloader": 3, "tee": 1, "snp": 8, "microcode": 115}, "min_committed_tcb": {"snp": 8}, "min_launch_tcb": {"snp": 8},
	"min_firmware": [1, 55, 29], "guest_policy": {"debug": false, "smt": true}, "platform": {"smt": true, "tsme": false},
	"launch_mitigations": "0000000000000003", "current_mitigations": "0000000000000005", "product": ["Turin"], "signer": ["VCEK"], "csp": [""]}`,
		m, 1, 0, "nonce", 0, 0, strings.Repeat("c1", 8)+strings.Repeat("00", 56), strings.Repeat("a1", 48), strings.Repeat("b2", 48))
	policy, err := ParsePolicy([]byte(all))
	if err != nil {
		t.Fatal(err)
	}
	in.Policy = *policy
	v := in.Check()
	if !v.Held() || len(v) != 4+24 {
		t.Fatalf("%d clauses, failed %q", len(v), failed(v))
	}
	for clause, text := range map[string]string{
		"measurement":         `{"measurement": "` + strings.Repeat("00", 48) + `"}`,
		"report_data":         `{"report_data": "00"}`,
		"vmpl":                `{"vmpl": [1, 2]}`,
		"min_guest_svn":       `{"min_guest_svn": 6}`,
		"min_tcb":             `{"min_tcb": {"fmc": 3}}`,
		"min_launch_tcb":      `{"min_launch_tcb": {"microcode": 116}}`,
		"min_firmware":        `{"min_firmware": [1, 55, 30]}`,
		"guest_policy.debug":  `{"guest_policy": {"debug": true}}`,
		"platform.tsme":       `{"platform": {"tsme": true}}`,
		"current_mitigations": `{"current_mitigations": "0000000000000008"}`,
		"product":             `{"product": ["Milan", "Genoa"]}`,
		"signer":              `{"signer": ["VLEK"]}`,
		"author_key_digest":   `{"author_key_digest": "` + strings.Repeat("00", 48) + `"}`,
	} {
		policy, err := ParsePolicy([]byte(text))
		if err != nil {
			t.Fatal(clause, err)
		}
		in.Policy = *policy
		v := in.Check()
		if v.Held() || !strings.HasPrefix(failed(v), clause+": ") || !strings.Contains(failed(v), "want") {
			t.Errorf("%s: failed %q", clause, failed(v))
		}
	}
	old := p.input(t, p.report(t, 3, VCEK, func(b []byte) { b[0x48] = 0 }))
	old.Policy = Policy{LaunchMitigations: make(Hex, 8), AuthorKey: OneOf{make(Hex, 48)}}
	wantFailed(t, old.Check(), "without an author key")
	old.Policy.AuthorKey = nil
	wantFailed(t, old.Check(), "version 3 does not say")
}

func TestPolicyErrors(t *testing.T) {
	for want, text := range map[string]string{
		"unexpected end":               ``,
		"unknown field":                `{"mesurement": "00"}`,
		"asks for nothing":             `{"measurement": []}`,
		"\"revocation\":false asks":    `{"revocation": false}`,
		"\"guest_policy\":null asks":   `{"guest_policy": null}`,
		"null asks for nothing":        `null`,
		"\"min_tcb\":{} asks":          `{"min_tcb": { }}`,
		"\"debug\":null asks":          `{"guest_policy": {"debug": null}}`,
		"\"vmpl\":[null asks":          `{"vmpl": [null]}`,
		"\"csp\":[] asks":              "{\"csp\": [\n]}",
		"after top-level value":        `{} {}`,
		"measurement: 1 bytes":         `{"measurement": "00"}`,
		"is not hex":                   `{"host_data": ["zz"]}`,
		"\"dbug\" is none of aes_256_": `{"guest_policy": {"dbug": false}}`,
		"report_data: 65":              `{"report_data": "` + strings.Repeat("00", 65) + `"}`,
		"three numbers":                `{"min_firmware": [1, 55]}`,
		"launch_mitigations: 1":        `{"launch_mitigations": "00"}`,
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzReport(f *testing.F) {
	for _, r := range realReports(f) {
		f.Add(r[0], r[1])
		f.Add(append(bytes.Clone(r[0]), make([]byte, 48)...), r[1])
	}
	roots := must[Roots](f)(AMDRoots())
	genuine := realReports(f)
	f.Fuzz(func(t *testing.T, report, cert []byte) {
		in := Input{Report: report, Roots: roots, Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		if err := in.Certs.Add(File{"cert", cert}); err != nil {
			return
		}
		if !in.Check().Held() {
			return
		}
		for _, r := range genuine {
			if bytes.HasPrefix(report, r[0]) {
				return
			}
		}
		t.Error("a report was forged")
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"measurement": "00", "min_tcb": {"snp": 8}, "guest_policy": {"debug": false}}`))
	f.Add([]byte(`{"vmpl": [0], "report_data": "00"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if err != nil {
			return
		}
		var v Verdict
		r := &Report{raw: make([]byte, ReportSize)}
		v.policy(p, r, extensions{}, "Milan")
	})
}

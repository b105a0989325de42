package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	snpData = "../../sev/testdata/"
	snpAt   = "--at=2026-01-01T00:00:00Z"
)

func TestVerifySNP(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	vcek, err := os.ReadFile(snpData + "vcek_milan.der")
	if err != nil {
		t.Fatal(err)
	}
	write("vcek", string(vcek))
	write("README", "not a certificate")
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "broken.crl"), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	report := []string{"snp", snpAt, "--report", snpData + "report_milan.hex"}
	report = slices.Clip(report)
	withKey := slices.Clip(append(report, "--vcek", snpData+"vcek_milan.der"))
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{withKey, 0, "held    signature"},
		{append(report, "--certs", dir), 0, "verdict: held"},
		{append(report, "--certs", broken), 125, "broken.crl: neither a certificate"},
		{append(withKey, "--json"), 0, `"held": true`},
		{append(withKey, "--measurement", strings.Repeat("00", 48)), 1, "FAILED  measurement"},
		{append(withKey, "--report-data", "00"), 1, "FAILED  report_data"},
		{append(withKey, "--policy", write("p", `{"guest_policy": {"debug": false}, "product": ["Milan"]}`)), 0, "held    guest_policy.debug"},
		{append(withKey, "--policy", write("q", `{"revocation": true}`)), 1, "no list given"},
		{append(withKey, "--roots", snpData+"../verify/roots/ask_ark_genoa.pem"), 1, "FAILED  chain"},
		{report, 1, "no VCEK certificate"},
		{append(withKey, "--measurement", "00"), 125, "measurement: 1 bytes"},
		{append(withKey, "--measurement", "zz"), 125, "is not hex"},
		{append(withKey, "--crl", snpData+"report_milan.hex"), 125, "neither a certificate"},
		{append(withKey, "--at", "noon"), 125, "--at: "},
		{append(withKey, "x"), 125, `unexpected "x"`},
		{[]string{"snp"}, 125, "no --report"},
		{[]string{"snp", "--report", "nowhere"}, 125, "--report: open nowhere"},
	} {
		var out, errs bytes.Buffer
		status := dispatch(c.args, &out, &errs)
		if status != c.status || !strings.Contains(out.String()+errs.String(), c.want) {
			t.Errorf("%q: status %d, want %d and %q:\n%s%s", c.args, status, c.status, c.want, out.String(), errs.String())
		}
	}
}

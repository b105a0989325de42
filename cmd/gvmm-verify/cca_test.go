package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const samples = "../../cca/verify/testdata/"

func TestVerifyCCA(t *testing.T) {
	const rim = "310314aa73ad8cae0afbff4b5cf55cbd0b8bc5fef36fd6c0a6bf2da4ce6b1e6d"
	policy := func(text string) string {
		path := filepath.Join(t.TempDir(), "policy.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := []string{"--token", samples + "tf-rmm.cbor", "--platform-key=" + samples + "tf-rmm.pub"}
	with := func(more ...string) []string { return append(good[:len(good):len(good)], more...) }
	for _, c := range []struct {
		args   []string
		status int
		say    string // on standard output for 0 and 1, on standard error else
	}{
		{good, 0, "verdict: held"},
		{with("--policy", policy(`{"lifecycle":["secured"]}`)), 0, "verdict: held"},
		{with("--rim", rim), 1, "FAILED  RIM"},
		{with("--rpv", "0x00"), 1, "FAILED  personalization value"},
		{with("--nonce=00ff"), 1, "FAILED  challenge"},
		{with("--policy", policy(`{"lifecycle":["unknown"]}`)), 1, "FAILED  lifecycle"},
		{[]string{"--token", samples + "bug-33.cbor", "--platform-key", samples + "tf-rmm.pub"}, 1, "FAILED  binding"},
		{[]string{"--token", samples + "README.md", "--platform-key", samples + "tf-rmm.pub"}, 1, "FAILED  token"},
		{with("--rim", rim, "--policy", policy(`{"rim":"`+strings.Repeat("00", 32)+`"}`)), 1, "not " + rim},
		{with("--rim", "00"), 125, "rim: 1 bytes"},
		{with("--rim", ""), 125, "rim: 0 bytes"},
		{with("--policy", policy(`{`)), 125, "--policy"},
		{with("extra"), 125, "unexpected"},
		{good[:2], 125, "--platform-key"},
		{good[2:], 125, "--token"},
		{[]string{"--token", "nothing", good[2]}, 125, "no such file"},
		{[]string{"--token", samples + "tf-rmm.cbor", "--platform-key", samples + "tf-rmm.cbor"}, 125, "PEM"},
		{[]string{"--help"}, 0, "usage: gvmm verify cca"},
	} {
		var out, errs bytes.Buffer
		status := dispatch(append([]string{"cca"}, c.args...), &out, &errs)
		text := out.String()
		if c.status == 125 {
			text = errs.String()
		}
		if status != c.status || !strings.Contains(text, c.say) {
			t.Errorf("%q: status %d, want %d with %q\n%s%s", c.args, status, c.status, c.say, out.String(), errs.String())
		}
	}
	var out bytes.Buffer
	var verdict struct {
		Held    bool
		Clauses []struct{ Held bool }
	}
	if status := dispatch(append([]string{"cca", "--json"}, good...), &out, &out); status != 0 {
		t.Errorf("--json: status %d", status)
	}
	if err := json.Unmarshal(out.Bytes(), &verdict); err != nil || !verdict.Held || len(verdict.Clauses) != 7 {
		t.Errorf("--json: %+v, %v", verdict, err)
	}
}

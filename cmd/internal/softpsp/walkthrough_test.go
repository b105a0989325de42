package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const docPage = "../../../docs/sev-snp.md"

// The commands of docs/sev-snp.md do what the page says, as they stand there. Only
// `make build` has its programs built elsewhere.
func TestWalkThrough(t *testing.T) {
	page, err := os.ReadFile(docPage)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 2 || !strings.HasPrefix(blocks[0][1], "make build\n") {
		t.Fatalf("%s: %d blocks of commands, of which the first does not begin with make build", docPage, len(blocks))
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	sh := func(script string) string {
		cmd := exec.Command("sh", "-e", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	hex := regexp.MustCompile(`\b[0-9a-f]{96}\b`)
	out := hex.ReplaceAllString(sh(strings.TrimPrefix(blocks[0][1], "make build\n")), "DIGEST")
	verdicts := regexp.MustCompile(`(?m)^(held|FAILED) +measurement .*$|^verdict: .*$|^refused.*$|^softpsp: measured DIGEST`).FindAllString(out, -1)
	want := `softpsp: measured DIGEST
held    measurement            DIGEST
verdict: held
softpsp: measured DIGEST
FAILED  measurement            DIGEST, want [DIGEST]
verdict: FAILED
refused, as it must be`
	if got := strings.Join(verdicts, "\n"); got != want {
		t.Errorf("%s\nwant\n%s\nof\n%s", got, want, out)
	}
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skipf("NOT TESTED: the ID block of the page: %v", err)
	}
	out = sh(blocks[1][1])
	if strings.Count(out, "softpsp: measured") != 1 || strings.Count(out, "BAD_MEASUREMENT") != 1 || !strings.HasSuffix(out, "refused, as it must be\n") {
		t.Errorf("ID block:\n%s", out)
	}
}

// Reports of every kind that softpsp issues verify, whatever the host does to the
// launch, and only under the root they were made with.
func TestReports(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/gvmm-verify")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	image := filepath.Join(dir, "image")
	if status := run([]string{"-sample", image}, os.Stdout, os.Stderr); status != 0 {
		t.Fatalf("-sample: status %d", status)
	}
	report, certs := filepath.Join(dir, "report"), filepath.Join(dir, "certs")
	for _, c := range []struct{ flags, snp string }{
		{"-report-version 2", "--sev-snp"}, {"-product genoa -key vlek -report-version 5", "--sev-snp=vcek-disabled"},
		{"-product turin -fault eagain=3,partial=9,cpuid", "--sev-snp"},
	} {
		var said strings.Builder
		args := append(strings.Fields(c.flags), "-report", report, "-certs", certs, "run", c.snp, "-q", "-M", "4M", image)
		if status := run(args, &said, &said); status != 0 {
			t.Fatalf("%q: status %d\n%s", args, status, said.String())
		}
		for roots, want := range map[string]string{filepath.Join(certs, "ark.der"): "verdict: held", "": "verdict: FAILED"} {
			verify := exec.Command(filepath.Join(dir, "gvmm-verify"), "snp", "--report", report, "--certs", certs)
			if roots != "" {
				verify.Args = append(verify.Args, "--roots", roots)
			}
			out, _ := verify.CombinedOutput() // its status is in the verdict
			if !strings.Contains(string(out), want) {
				t.Errorf("%q, roots %q: want %s\n%s", c.flags, roots, want, out)
			}
		}
	}
	for _, args := range [][]string{{"-guest", "nobody"}, {"-product", "rome"}, {"-key", "x"}, {"-report-version", "4"}, {"-fault", "x"}, {"-report-data", "0"}, {"-fault", "fail=1"}} {
		var said strings.Builder
		if status := run(append(args, "version"), &said, &said); status != 125 {
			t.Errorf("%q: status %d\n%s", args, status, said.String())
		}
	}
}

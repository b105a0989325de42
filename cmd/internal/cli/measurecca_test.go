package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm/kvm"
)

// A realm whose parts are all there; package cca has the vectors.
func TestMeasureCCA(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	image := make([]byte, 5000)
	binary.LittleEndian.PutUint64(image[16:], 16384) // the last two pages are BSS
	copy(image[56:], "ARM\x64")
	kernel := write("Image", image)
	var tree []byte // a tree with nothing in it
	for _, w := range []uint32{0xd00dfeed, 72, 56, 72, 40, 17, 16, 0, 0, 16, 0, 0, 0, 0, 1, 0, 2, 9} {
		tree = binary.BigEndian.AppendUint32(tree, w)
	}
	args := []string{"cca", "--machine=lkvm", "-M", "128M", "--dtb", write("dtb", tree)}
	rim := strings.TrimSuffix(measured(t, append(args, kernel)...), "\n")
	if len(rim) != 64 {
		t.Fatalf("got %q", rim)
	}
	lines := strings.Split(measured(t, append(args, "--explain", kernel)...), "\n")
	if lines[0] != rim || !strings.HasSuffix(lines[len(lines)-2], rim+" (vCPU 0)") || len(lines) != 1+1+64+2+16+1+1 {
		t.Errorf("--explain: %d lines, the last %q", len(lines), lines[len(lines)-2])
	}
	var asJSON struct {
		RIM     string
		IPABits int `json:"ipa_bits"`
	}
	if err := json.Unmarshal([]byte(measured(t, append(args, "--json", kernel)...)), &asJSON); err != nil || asJSON.RIM != rim || asJSON.IPABits != 33 {
		t.Errorf("--json: %+v, %v", asJSON, err)
	}
	seen := map[string]string{rim: "nothing"}
	for _, flag := range []string{"--hash=sha512", "--ipa-bits=40", "--bps=1", "--wps=1", "--sve-vl=256", "--pmu-counters=0", "--pmu-counters=6", "--lpa2", "--rmm=2", "--ripas=bss"} {
		got := measured(t, append(args, flag, kernel)...)
		if old, dup := seen[got]; dup {
			t.Errorf("%s changes no more than %s", flag, old)
		}
		seen[got] = flag
	}
	// Realms of gvmm's own: the device tree has the command line and the devices.
	own := []string{"cca", "-M", "128M"}
	for _, flags := range [][]string{
		nil, {"--machine=lkvm"}, {"-a", "quiet"}, {"-c", "2"}, {"--realm=hash=sha512"}, {"--realm=abi=v12"}, {"--realm=abi=v14"}, {"--no-rng"}, {"-i", kernel}, {"--machine=microvm"},
	} {
		got := measured(t, append(append(own, flags...), kernel)...)
		if old, dup := seen[got]; dup {
			t.Errorf("own: %q changes no more than %s", flags, old)
		}
		seen[got] = fmt.Sprint(flags)
	}
	for _, flags := range [][]string{{"--realm"}, {"--realm=rpv=00,abi=300"}, {"--realm=hash=sha256", "--rmm=1"}} {
		if got := measured(t, append(append(own, flags...), kernel)...); seen[got] != "[]" {
			t.Errorf("%q changes the RIM: %s", flags, got)
		}
	}
	for say, args := range map[string][]string{
		"--dtb goes with": {"cca", "--dtb=x", kernel}, "v12 measures": append(args, "--hash=sha512", "--realm=abi=v12", kernel), "abi \"v11\"": append(args, "--realm=abi=v11", kernel),
		"--pmu: it is measured with": append(args, "--pmu", kernel), "only with --dtb": {"cca", "--ripas=bss", kernel}, "sha384": append(args, "--hash=sha384", kernel),
		"give all or bss": append(args, "--ripas=none", kernel), "RMM version 3": append(args, "--rmm=3", kernel), "regular": append(args, dir),
		"no ELF, bzImage, arm64 Image": append(args, filepath.Join(dir, "dtb")), "no such file": append(args, "-i", "nothing", kernel),
	} {
		var out, errs bytes.Buffer
		if status := Main(append([]string{"measure"}, args...), &out, &errs, kvm.Host{}); status != 125 || !strings.Contains(errs.String(), say) {
			t.Errorf("%q: status %d, %q; want %q", args, status, errs.String(), say)
		}
	}
}

func TestVerifyWithoutVerifier(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out, errs bytes.Buffer
	if status := Main([]string{"verify", "cca"}, &out, &errs, kvm.Host{}); status != 125 || !strings.Contains(errs.String(), "neither beside cli.test nor in PATH") {
		t.Errorf("status %d, %q", status, errs.String())
	}
}

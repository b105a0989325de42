package integration

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// What gvmm launches of Debian's own firmware and kernel, on the software PSP, is
// what it measures: by firmware with fw_cfg and kernel hashes, and directly.
func TestSNPDebian(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	firmware, err := lab.DebianFile(ctx, "forky", "ovmf-amdsev", "usr/share/ovmf/OVMF.amdsev.fd")
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := lab.DebianKernel(ctx, "linux-image-amd64")
	if err != nil {
		t.Fatal(err)
	}
	softpsp := filepath.Join(t.TempDir(), "softpsp")
	if err := lab.Build(ctx, "./cmd/internal/softpsp", softpsp); err != nil {
		t.Fatal(err)
	}
	measured := regexp.MustCompile(`softpsp: measured ([0-9a-f]{96}): \d+ pages, (\d+) of them`)
	for _, c := range []struct {
		flags string
		cpus  string
	}{
		{"--firmware " + firmware + " -M 256M", "1"},
		{"--firmware " + firmware + " -M 256M -c 4 -i " + firmware + " -a quiet", "4"},
		{"-M 192M -c 2 -a console=ttyS0", "2"},
	} {
		flags := append(strings.Fields(c.flags), kernel.Image)
		out, err := exec.CommandContext(ctx, binary, append([]string{"measure", "snp"}, flags...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", c.flags, err, out)
		}
		digest, _, _ := strings.Cut(string(out), "\n")
		out, err = exec.CommandContext(ctx, softpsp, append([]string{"run", "--sev-snp"}, flags...)...).CombinedOutput()
		if m := measured.FindSubmatch(out); err != nil || m == nil || string(m[1]) != digest || string(m[2]) != c.cpus {
			t.Errorf("%s: measured %s: %v\n%s", c.flags, digest, err, out)
		}
	}
}

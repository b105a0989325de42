package integration

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestRealm runs the arm64 gvmm on the software host for realms, under qemu-user,
// over every version of the kernel's interface: what gvmm on this machine
// predicts is what the token says that gvmm-verify accepts.
func TestRealm(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		lab.BuildARM64(ctx, "./cmd/internal/softrmm", path("softrmm")),
		lab.Build(ctx, "./cmd/gvmm", path("gvmm")),
		lab.Build(ctx, "./cmd/gvmm-verify", path("gvmm-verify")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	host := []string{path("softrmm")}
	if runtime.GOARCH != "arm64" {
		qemu, err := lab.Program(ctx, "qemu-aarch64-static", "qemu-user-static")
		if err != nil {
			t.Fatal(err)
		}
		host = []string{qemu, path("softrmm")}
	}
	image := make([]byte, 300<<10) // nothing runs it
	for i := range image {
		image[i] = byte(i * 5 >> 3)
	}
	copy(image[8:], make([]byte, 16))
	image[18] = 2 << 20 >> 16 // of the size; it lies at the start of RAM
	copy(image[56:], "ARM\x64")
	for name, b := range map[string][]byte{"Image": image, "initrd": image[1000:20001], "disk": make([]byte, 1<<20)} {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := func(argv ...string) (out, errs string, status int) {
		t.Helper()
		var o, e strings.Builder
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = &o, &e
		if err := cmd.Run(); err != nil {
			exit := new(exec.ExitError)
			if !errors.As(err, &exit) {
				t.Fatal(err)
			}
			status = exit.ExitCode()
		}
		return o.String(), e.String(), status
	}
	machines := map[string]struct{ flags, console string }{
		"virt":    {"--machine=virt --virtio-transport=pci", "0x9000000"},
		"lkvm":    {"--machine=lkvm", "0x1000000"},
		"microvm": {"--machine=microvm", "0x40002000"},
	}
	for kernel, c := range map[string]struct{ abi, machine, realm string }{
		"v5": {"300", "lkvm", ",hash=sha512,rpv=c0ffee"}, "v7": {"300", "virt", ",rpv=c0ffee,ipa-bits=40"}, "v8": {"v8", "microvm", ",rpv=c0ffee"},
		"v9": {"v9", "lkvm", ",rpv=c0ffee,sve-vl=256"}, "v10": {"v10", "virt", ",rpv=c0ffee,pmu-counters=3"},
		"v12": {"v12", "virt", ""}, "v13": {"v13", "lkvm", ",sve-vl=128"}, "v14": {"v14", "microvm", ""}, "v15": {"v15", "virt", ",ipa-bits=44"},
	} {
		t.Run(kernel, func(t *testing.T) {
			m := machines[c.machine]
			flags := append(strings.Fields(m.flags), "-M", "64M", "-c", "2", "-i", path("initrd"), "-d", path("disk"), "-a", "quiet", path("Image"))
			argv := append(slices.Clone(host), "-abi", kernel, "-token", path("token"), "-key", path("key"), "-nonce", "0a0b0c", "-console", m.console, "-alias", "-progress", "30",
				"run", "--timeout", "1m", "--realm=on"+c.realm)
			out, errs, status := command(append(argv, flags...)...)
			if out != "realm\r\n" || status != 0 || !strings.Contains(errs, "powered off") {
				t.Fatalf("status %d, %q, %q", status, out, errs)
			}
			rim, errs, status := command(append([]string{path("gvmm"), "measure", "cca", "--realm=abi=" + c.abi + c.realm}, flags...)...)
			if status != 0 {
				t.Fatalf("measure: %s", errs)
			}
			verify := []string{path("gvmm-verify"), "cca", "--token", path("token"), "--platform-key", path("key"), "--nonce", "0a0b0c", "--rim", strings.TrimSpace(rim)}
			if strings.Contains(c.realm, "rpv=") {
				verify = append(verify, "--rpv", "c0ffee")
			}
			if out, errs, status := command(verify...); status != 0 || strings.Count(out, "\nheld") < 7 {
				t.Errorf("status %d\n%s%s", status, out, errs)
			}
			if kernel == "v5" { // one realm's token for another
				if out, _, status := command(append(verify, "--rpv", "c0ffed")...); status != 1 || !strings.Contains(out, "FAILED  personalization") {
					t.Errorf("another realm's value: status %d\n%s", status, out)
				}
			}
		})
	}
	for kernel, why := range map[string]string{"none": "lacks the patches for Arm CCA", "no-rmm": "no RMM"} {
		if _, errs, status := command(append(slices.Clone(host), "-abi", kernel, "run", "--realm", path("Image"))...); status != 126 || !strings.Contains(errs, why) {
			t.Errorf("%s: status %d, %q", kernel, status, errs)
		}
		if out, _, _ := command(append(slices.Clone(host), "-abi", kernel, "probe")...); !strings.Contains(out, "no   realm ") || !strings.Contains(out, why) {
			t.Errorf("%s: probe: %q", kernel, out)
		}
	}
	if _, errs, status := command(append(slices.Clone(host), "-abi", "v13", "run", "--realm=hash=sha512", path("Image"))...); status != 126 || !strings.Contains(errs, "sha256 only") {
		t.Errorf("sha512 on v13: status %d, %q", status, errs)
	}
	if runtime.GOARCH != "arm64" {
		if _, errs, status := command(path("gvmm"), "run", "--realm", path("Image")); status != 126 || !strings.Contains(errs, "arm64 host") {
			t.Errorf("here: status %d, %q", status, errs)
		}
	}
}

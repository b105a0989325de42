package uapi

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// The software PSP knows the kernel's structures by numbers of its own, so that an
// error of vmm/kvm's would show there. They too are the headers'.
func TestSoftwarePSP(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	include, err := lab.KernelHeaders(ctx, "amd64")
	if err != nil {
		t.Fatalf("NOT CHECKED against the kernel's headers: %v", err)
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "^TestHeaders$", "./sev/psp")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GVMM_KERNEL_HEADERS="+strings.Join(include, string(filepath.ListSeparator)))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "NOT TESTED") || !strings.Contains(string(out), "--- PASS: TestHeaders") {
		t.Errorf("%v\n%s", err, out)
	}
}

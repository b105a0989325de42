package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/vmm"
)

// TestFirmware plans boots by firmware as a user asks for them.
func TestFirmware(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rom := make([]byte, 1<<20)
	copy(rom[len(rom)-16:], "\x90\x90\xe9")
	firmware, vars := file("OVMF.fd", rom), file("OVMF_VARS.fd", bytes.Repeat([]byte{0xff}, 4096))
	kernel, initrd := file("app.efi", []byte("MZ an EFI program")), file("initrd", []byte("initrd"))
	for _, c := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"--firmware", firmware, "-M", "256M", "-i", initrd, "-a", "a b", kernel}, vmm.StatusOK,
			[]string{"firmware on amd64 pc, entered by reset at 0xfffffff0", "0x0000fff00000   0x100000 bytes", "command line: a b\n", "0x000000000011       0x11 bytes,       0x11 in all, fw_cfg", "in all, fw_cfg, sha256 09e6c018d2c8c490: initrd"}},
		{[]string{"--firmware", firmware, "-d", file("disk", nil)}, vmm.StatusOK, []string{"RAM 0x0-0x1fffffff (512 MiB)"}},
		{[]string{"--firmware", firmware, kernel, initrd}, vmm.StatusCannotStart, []string{"more than one IMAGE"}},
		{[]string{"--firmware", filepath.Join(dir, "none")}, vmm.StatusCannotStart, []string{"no such file"}},
		{[]string{"--firmware", vars}, vmm.StatusCannotStart, []string{"--firmware " + vars, "no firmware"}},
		{[]string{"--firmware", kernel}, vmm.StatusCannotStart, []string{"whole 4 KiB pages"}},
		{[]string{"--firmware", firmware, dir}, vmm.StatusCannotStart, []string{"kernel:", "not a regular file"}},
		{[]string{"--firmware", firmware, "-a", "quiet"}, vmm.StatusCannotStart, []string{firmware, "without a kernel"}},
		{[]string{"--firmware", firmware, "--machine", "microvm", kernel}, vmm.StatusCannotStart, []string{"pc only"}},
		{[]string{"--firmware", firmware, "--cet-preset", "ibt", kernel}, vmm.StatusCannotStart, []string{"--cet-preset ibt"}},
	} {
		var out, errs strings.Builder
		code := Main(append([]string{"run", "--dry-run"}, c.args...), &out, &errs, nil)
		for _, s := range c.says {
			if !strings.Contains(out.String()+errs.String(), s) {
				t.Errorf("%q does not say %q: %s%s", c.args, s, &out, &errs)
			}
		}
		if code != c.code {
			t.Errorf("%q: status %d, want %d: %s", c.args, code, c.code, &errs)
		}
	}
}

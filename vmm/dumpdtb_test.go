package vmm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/boot"
)

// TestDumpDTB takes the way of `gvmm inspect --dump-dtb`, which must give what
// kvmtool's option gives (boot's tests say where the sum is from), on any host.
func TestDumpDTB(t *testing.T) {
	dir := t.TempDir()
	image := make([]byte, 128)
	binary.LittleEndian.PutUint64(image[16:], 0x10000)
	copy(image[56:], "ARM\x64")
	kernel, disk, tree := filepath.Join(dir, "Image"), filepath.Join(dir, "disk"), filepath.Join(dir, "dtb")
	for _, f := range []string{kernel, disk} {
		if err := os.WriteFile(f, image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Image: kernel, Machine: boot.MachineLKVM, Memory: 512 << 20, Params: "earlycon", Disks: []Disk{{Path: disk}}, DumpDTB: tree}
	in, err := Inspect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	b, err := os.ReadFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	const want = "28b1a466df5c0e5857348c93317685639215decd6519678e434a257bf73aa9d3"
	if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != want {
		t.Errorf("device tree of %d bytes, %s: kvmtool's is %s", len(b), got, want)
	}
	cfg.Image, cfg.DumpDTB = filepath.Join(dir, "multiboot"), filepath.Join(dir, "none")
	flat := make([]byte, 64)
	for i, v := range []uint32{0x1badb002, 1 << 16, -(0x1badb002 + 1<<16) & (1<<32 - 1), 0x200000, 0x200000, 0, 0, 0x200000} {
		binary.LittleEndian.PutUint32(flat[4*i:], v)
	}
	if err := os.WriteFile(cfg.Image, flat, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Machine = boot.MachineAuto
	if _, err := Inspect(cfg); err == nil || !strings.Contains(err.Error(), "--dump-dtb: an amd64 guest gets no device tree") {
		t.Errorf("device tree of an x86 guest: %v", err)
	}
}

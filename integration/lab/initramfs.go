package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// GuestModules are the modules a Linux guest of ours loads.
var GuestModules = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng",
	"9pnet_virtio", "9p", "button", "pvpanic", "pvpanic_mmio"}

// ARM64GuestModules are those of an arm64 guest with Debian's generic kernel.
var ARM64GuestModules = append([]string{"crc32c_generic", "ext4"}, GuestModules...)

var hostModules = []string{"kvm_amd", "tun", "vhost_net", "virtio_pci", "virtio_console"}

// Initramfs writes an archive with our init and the named modules to path, and
// with extra files: their paths here by their paths there.
func (k *Kernel) Initramfs(ctx context.Context, path string, extra map[string]string, modules ...string) error {
	dir, err := os.MkdirTemp("", "lab-init")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program := filepath.Join(dir, "init")
	if err := build(ctx, k.arch, "./integration/lab/init", program, "build"); err != nil {
		return err
	}
	files, err := k.moduleFiles(modules...)
	if err != nil {
		return err
	}
	var records []cpio.Record
	for _, d := range []string{"dev", "proc", "sys", "tmp", "lib", "etc", "bin"} {
		records = append(records, cpio.Directory(d, 0o755))
	}
	add := func(name, file string) error {
		b, err := os.ReadFile(file)
		records = append(records, cpio.StaticFile(name, string(b), 0o755))
		return err
	}
	if err := add("init", program); err != nil {
		return err
	}
	made := map[string]bool{}
	for there, here := range extra {
		there = strings.TrimPrefix(there, "/")
		for i, c := range there {
			if c == '/' && !made[there[:i]] {
				made[there[:i]] = true
				records = append(records, cpio.Directory(there[:i], 0o755))
			}
		}
		if err := add(there, here); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, f := range files {
		if err := add("lib/"+filepath.Base(f), f); err != nil {
			return err
		}
		fmt.Fprintln(&list, filepath.Base(f))
	}
	records = append(records, cpio.Directory("lib/modules", 0o755), cpio.StaticFile("lib/modules.list", list.String(), 0o644))
	cpio.MakeAllReproducible(records)

	out, err := os.Create(path)
	if err != nil {
		return err
	}
	w := cpio.Newc.Writer(out)
	err = errors.Join(cpio.WriteRecords(w, records), cpio.WriteTrailer(w), out.Close())
	if err != nil {
		return fmt.Errorf("initramfs %s: %w", path, err)
	}
	return nil
}

// Build builds one of this repository's programs, static and stripped as they
// are released.
func Build(ctx context.Context, pkg, out string) error {
	return build(ctx, runtime.GOARCH, pkg, out, "build")
}

// BuildARM64 is [Build] for the arm64 lab.
func BuildARM64(ctx context.Context, pkg, out string) error {
	return build(ctx, "arm64", pkg, out, "build")
}

// BuildTest builds the tests of one of this repository's packages.
func BuildTest(ctx context.Context, pkg, out string) error {
	return build(ctx, runtime.GOARCH, pkg, out, "test", "-c")
}

func build(ctx context.Context, arch, pkg, out string, args ...string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "-trimpath", "-ldflags=-s -w", "-o", out, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

// Root returns the repository's folder.
func Root() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); !ok || err != nil {
		return "", errors.New("the repository is not where this program was built from (built with -trimpath?)")
	}
	return root, nil
}

// Guests builds our small guests (integration/guests) and returns the folder
// they are in.
func Guests(ctx context.Context) (string, error) { return guests(ctx, "all") }

// ARM64Guests is [Guests] for the arm64 lab.
func ARM64Guests(ctx context.Context) (string, error) {
	if _, err := needProgram(ctx, "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"); err != nil {
		return "", err
	}
	return guests(ctx, "arm64")
}

func guests(ctx context.Context, target string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "guests")
	cmd := exec.CommandContext(ctx, "make", "-s", "-C", filepath.Join(root, "integration", "guests"), target, "OUT="+out)
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guests (gcc and make are needed): %w\n%s", err, b)
	}
	return out, nil
}

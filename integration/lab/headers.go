package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// headersSuite has the headers of the newest kernel that Debian knows.
const headersSuite = "sid"

// KernelHeaders fetches the headers that the newest Debian kernel has for user
// space, or takes them from the cache. It returns the folders to include for a
// Go architecture, x86's or arm64's.
func KernelHeaders(ctx context.Context, arch string) ([]string, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := filepath.Join(cache, "kernel-headers")
	if _, err := os.Stat(dir); err != nil {
		if err := fetchHeaders(ctx, cache, dir); err != nil {
			return nil, err
		}
	}
	name, ok := map[string]string{"amd64": "x86", "arm64": "arm64"}[arch]
	if !ok {
		return nil, errors.New("no kernel headers for " + arch)
	}
	asm := filepath.Join(dir, "usr/lib/linux/uapi", name)
	if _, err := os.Stat(filepath.Join(asm, "asm/kvm.h")); err != nil {
		return nil, fmt.Errorf("%w: linux-libc-dev of %s: %w", ErrUnavailable, headersSuite, err)
	}
	return []string{asm, filepath.Join(dir, "usr/include")}, nil
}

func fetchHeaders(ctx context.Context, cache, dir string) error {
	tmp, err := os.MkdirTemp(cache, ".fetch")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	d, err := newDebs(ctx, tmp, "amd64", headersSuite)
	if err != nil {
		return err
	}
	if err := d.apt(ctx, tmp, "download", "linux-libc-dev"); err != nil {
		return err
	}
	if err := unpack(ctx, tmp, filepath.Join(tmp, "ready")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(tmp, "ready"), dir)
}

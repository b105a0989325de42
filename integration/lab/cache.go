package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// ErrUnavailable is wrapped when something a lab is made of cannot be had here.
var ErrUnavailable = errors.New("lab unavailable")

// CacheDir returns the folder that keeps what the labs fetched: $GVMM_CACHE, or
// gvmm in the user's cache folder. It is made when missing.
func CacheDir() (string, error) {
	dir := os.Getenv("GVMM_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("cache folder: %w (set GVMM_CACHE)", err)
		}
		dir = filepath.Join(base, "gvmm")
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// lock waits for the only turn at a folder, of all processes.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// apt runs apt-get quietly, three times at most.
func apt(ctx context.Context, dir string, args ...string) error {
	var err error
	for try := range 3 {
		if try > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Second): // somebody else's apt, or the network
			}
		}
		args := append([]string{"-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3",
			"-o", "APT::Sandbox::User=root", "-o", "APT::Cmd::Disable-Script-Warning=1"}, args...)
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		var out []byte
		if out, err = cmd.CombinedOutput(); err == nil {
			return nil
		}
		err = fmt.Errorf("%w: apt-get %q: %w: %s", ErrUnavailable, args[len(args)-1], err, tail(out))
	}
	return err
}

// Program is where a test of a package gets a tool of Debian's from: its path,
// after it was installed where it was missing.
func Program(ctx context.Context, name, pkg string) (string, error) {
	return needProgram(ctx, name, pkg)
}

// needProgram returns the path of a program, installing the Debian package that
// holds it when it is missing and this process may.
func needProgram(ctx context.Context, name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: %s is missing: install it (as root: apt-get install %s)", ErrUnavailable, name, pkg)
	}
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if path, err := exec.LookPath(name); err == nil {
		return path, nil // somebody else did
	}
	install := []string{"install", "-y", "--no-install-recommends", pkg}
	if err := apt(ctx, "", install...); err != nil {
		if err := apt(ctx, "", "update"); err != nil {
			return "", err
		}
		if err := apt(ctx, "", install...); err != nil {
			return "", err
		}
	}
	return exec.LookPath(name)
}

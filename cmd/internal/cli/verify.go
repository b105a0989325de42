package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const verifier = "gvmm-verify"

// verify is `gvmm verify`: it becomes gvmm-verify, which is a program of its
// own so that what reads tokens and certificates is not in the monitor. It
// returns only where it could not.
func verify(args []string) error {
	path, err := findVerifier()
	if err != nil {
		return err
	}
	if err := unix.Exec(path, append([]string{verifier}, args...), os.Environ()); err != nil {
		return fmt.Errorf("verify: %s: %w", path, err)
	}
	return nil
}

func findVerifier() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("%s: %w", verifier, err)
	}
	path := filepath.Join(filepath.Dir(self), verifier)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if path, err = exec.LookPath(verifier); err != nil {
		return "", errors.New(verifier + " is neither beside gvmm nor in PATH: `go build ./cmd/" + verifier + "` builds it")
	}
	return path, nil
}

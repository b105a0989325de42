package cli

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/internal/sibling"
)

const verifier = "gvmm-verify"

// verify is `gvmm verify`: it becomes gvmm-verify, which is a program of its
// own so that what reads tokens and certificates is not in the monitor. It
// returns only where it could not.
func verify(args []string) error {
	path, err := sibling.Find(verifier)
	if err != nil {
		return err
	}
	if err := unix.Exec(path, append([]string{verifier}, args...), os.Environ()); err != nil {
		return fmt.Errorf("verify: %s: %w", path, err)
	}
	return nil
}

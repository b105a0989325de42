// Package beside finds the programs of this project that work together.
package beside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Find returns the path of a program: beside the running one, where its links
// lead to, or else in PATH.
func Find(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if path, err = exec.LookPath(name); err != nil {
		return "", errors.New(name + " is neither beside " + filepath.Base(self) + " nor in PATH: `go build ./cmd/" + name + "` builds it")
	}
	return path, nil
}

package lkvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// What a root file system is made of: directories, and links to the host's
// files, which the guest has at /host.
var (
	rootDirs  = []string{"dev", "etc", "home", "host", "proc", "root", "sys", "tmp", "var", "var/lib", "virt", "virt/home"}
	rootLinks = []string{"bin", "lib", "lib64", "sbin", "usr", "etc/ld.so.conf"}
)

// makeRoot makes the root file system of a name in the directory of lkvm.
func (t *tool) makeRoot(name string) error {
	if !filepath.IsLocal(name) || strings.Contains(name, "/") {
		return fmt.Errorf("%q: give a name without slashes", name)
	}
	root := filepath.Join(t.dir, name)
	if err := os.Mkdir(root, 0o777); err != nil {
		return err
	}
	for _, d := range rootDirs {
		if err := os.Mkdir(filepath.Join(root, d), 0o777); err != nil {
			return err
		}
	}
	for _, l := range rootLinks {
		if err := os.Symlink("/host/"+l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o666); err != nil {
		return err
	}
	return makeInit(root)
}

// makeInit puts the guest's init into a root file system that has none.
func makeInit(root string) error {
	f, err := os.OpenFile(filepath.Join(root, "virt/init"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(guestInit(runtime.GOARCH))
	return errors.Join(err, f.Close())
}

// prepareRoot readies a root file system for a start: name servers, init, and
// what the sandbox is to run: a script of the host's, or a command, or nothing.
func prepareRoot(root, script string, command []string) error {
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		_ = os.WriteFile(filepath.Join(root, "etc/resolv.conf"), b, 0o666) // names are a convenience
	}
	at := filepath.Join(root, "virt/sandbox.sh")
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case len(command) > 0:
		if err := os.WriteFile(at, []byte(shellScript(command)), 0o777); err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	case script != "":
		path, err := realPath(script)
		if err == nil {
			err = os.Symlink("/host"+path, at)
		}
		if err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
	}
	return makeInit(root)
}

// shellScript runs a command with exactly these arguments. A program that is a
// file here is run from the host's files.
func shellScript(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		if i == 0 {
			if st, err := os.Stat(w); err == nil && st.Mode().IsRegular() {
				if path, err := realPath(w); err == nil {
					w = "/host" + path
				}
			}
		}
		words[i] = "'" + strings.ReplaceAll(w, "'", `'"'"'`) + "'"
	}
	return "#!/bin/sh\n" + strings.Join(words, " ") + "\n"
}

// realPath is the absolute path without symbolic links.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

func setupOptions(t *tool) ([]option, func([]string) (int, error)) {
	return nil, func(args []string) (int, error) {
		rest, err := parse(nil, args)
		if err == nil && len(rest) != 1 {
			fmt.Fprintf(t.stdout, "\nlkvm setup makes a root file system in %s, for 'lkvm run -d NAME'.\n", t.dir)
			err = misuse{}
		}
		if err != nil {
			return 0, err
		}
		if err := t.makeRoot(rest[0]); err != nil {
			t.say(levelError, "Unable to create rootfs in %s/%s: %v", t.dir, rest[0], err)
			return 255, nil
		}
		t.say(levelInfo, "A new rootfs '%s' has been created in '%s/%[1]s'.", rest[0], t.dir)
		t.say(levelInfo, "Start it: lkvm run -d %s", rest[0])
		return 0, nil
	}
}

package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// The Debian packages that stand for the current kernel.
const (
	CloudKernel   = "linux-image-cloud-amd64" // for clouds: the lab's host, and the usual guest
	GenericKernel = "linux-image-amd64"       // for all machines: it has 9p, which the other has not

	ARM64CloudKernel   = "linux-image-cloud-arm64"
	ARM64GenericKernel = "linux-image-arm64"
)

// arm64Suite has kernels that are plain Images with plain modules.
const arm64Suite = "bookworm"

// Kernel is a Debian kernel in the cache.
type Kernel struct {
	Image   string // vmlinuz
	modules string // the folder of its modules
	arch    string // as Go names it
}

// DebianKernel fetches the kernel of this machine's suite that a package stands
// for, or takes it from the cache.
func DebianKernel(ctx context.Context, pkg string) (*Kernel, error) {
	return kernel(func(cache string) (*Kernel, error) {
		return new(debs).fetchPackage(ctx, cache, pkg, "amd64")
	})
}

// ARM64Kernel is [DebianKernel] for arm64, which this machine need not know of.
func ARM64Kernel(ctx context.Context, pkg string) (*Kernel, error) {
	return kernel(func(cache string) (*Kernel, error) {
		if k := cached(cache, pkg, "arm64"); k != nil {
			return k, nil
		}
		tmp, err := os.MkdirTemp(cache, ".fetch")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(tmp) }()
		d, err := newDebs(ctx, tmp, "arm64", arm64Suite)
		if err != nil {
			return nil, err
		}
		return d.fetchPackage(ctx, cache, pkg, "arm64")
	})
}

func kernel(fetch func(cache string) (*Kernel, error)) (*Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return fetch(cache)
}

func kernelIn(dir, arch string) *Kernel {
	return &Kernel{Image: filepath.Join(dir, "vmlinuz"), modules: filepath.Join(dir, "modules"), arch: arch}
}

// cached returns the newest kernel that a meta package stood for so far, or nil.
func cached(cache, meta, arch string) *Kernel {
	if old, _ := filepath.Glob(filepath.Join(cache, meta, "*", "vmlinuz")); len(old) > 0 {
		return kernelIn(filepath.Dir(old[len(old)-1]), arch)
	}
	return nil
}

// debs is where packages come from: the machine's own apt, or ([newDebs]) a
// Debian release beside it, with its own lists and cache and nothing installed.
type debs struct{ options []string }

func newDebs(ctx context.Context, dir, arch string, suites ...string) (*debs, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	var sources strings.Builder
	for _, suite := range suites {
		_, _ = fmt.Fprintf(&sources, "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, suite)
	}
	d := &debs{}
	for option, name := range map[string]string{"Dir::State": "state", "Dir::Cache": "cache", "Dir::State::Lists": "lists",
		"Dir::State::status": "status", "Dir::Etc::SourceList": "sources.list", "Dir::Etc::SourceParts": "none"} {
		d.options = append(d.options, "-o", option+"="+filepath.Join(dir, name))
	}
	d.options = append(d.options, "-o", "Acquire::Languages=none", "-o", "APT::Architecture="+arch, "-o", "APT::Architectures::="+arch)
	for _, sub := range []string{"state", "cache/archives/partial", "lists/partial", "none"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	err = errors.Join(os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644))
	if err != nil {
		return nil, err
	}
	return d, d.apt(ctx, "", "update")
}

// debianMirror is where the machine's own apt gets Debian from.
func debianMirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("%w: apt-get indextargets: %w", ErrUnavailable, err)
	}
	for line := range strings.Lines(string(out)) {
		if uri, release, _ := strings.Cut(strings.TrimSpace(line), " "); release != "" && !strings.Contains(release, "-") {
			return uri, nil // not -security or -updates, which lie elsewhere
		}
	}
	return "", fmt.Errorf("%w: apt has no Debian archive among its sources", ErrUnavailable)
}

func (d *debs) apt(ctx context.Context, dir string, args ...string) error {
	return apt(ctx, dir, append(d.options[:len(d.options):len(d.options)], args...)...)
}

var imagePackage = regexp.MustCompile(`(?m)^ *Depends: (linux-image-[0-9][^ \n]*)$`)

// fetchPackage returns the kernel that a meta package stands for. What the cache
// has is good enough when apt knows nothing.
func (d *debs) fetchPackage(ctx context.Context, cache, meta, arch string) (*Kernel, error) {
	resolve := func() (string, error) {
		out, err := exec.CommandContext(ctx, "apt-cache", append(d.options[:len(d.options):len(d.options)], "depends", meta)...).Output()
		m := imagePackage.FindSubmatch(out)
		if m == nil {
			return "", errors.Join(fmt.Errorf("%w: apt does not know %s (a Debian machine is needed)", ErrUnavailable, meta), err)
		}
		return string(m[1]), nil
	}
	pkg, err := resolve()
	if err != nil {
		if k := cached(cache, meta, arch); k != nil {
			return k, nil
		}
		if err := d.apt(ctx, "", "update"); err != nil {
			return nil, err
		}
		if pkg, err = resolve(); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(cache, meta, pkg)
	if _, err := os.Stat(dir); err == nil {
		return kernelIn(dir, arch), nil
	}
	return kernelIn(dir, arch), d.fetch(ctx, pkg, dir)
}

// fetch downloads and unpacks a kernel package; dir appears when all is there.
func (d *debs) fetch(ctx context.Context, pkg, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".fetch")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := d.download(ctx, tmp, pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("%w: apt-get download %s left %q", ErrUnavailable, pkg, debs)
	}
	x := filepath.Join(tmp, "x")
	if out, err := exec.CommandContext(ctx, "dpkg", "-x", debs[0], x).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg -x %s: %w: %s", debs[0], err, tail(out))
	}
	// The package's folders are named by its version; ours are not.
	ready := filepath.Join(tmp, "ready")
	if err := os.Mkdir(ready, 0o755); err != nil {
		return err
	}
	for pattern, name := range map[string]string{"boot/vmlinuz-*": "vmlinuz", "lib/modules/*/kernel": "modules", "boot/config-*": "config"} {
		found, err := filepath.Glob(filepath.Join(x, pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%w: package %s: %d files like %s", ErrUnavailable, pkg, len(found), pattern)
		}
		if err := os.Rename(found[0], filepath.Join(ready, name)); err != nil {
			return err
		}
	}
	return os.Rename(ready, dir)
}

// download downloads a package into a folder.
func (d *debs) download(ctx context.Context, dir, pkg string) error {
	if d.apt(ctx, dir, "download", pkg) == nil {
		return nil
	}
	if err := d.apt(ctx, dir, "update"); err != nil {
		return err
	}
	return d.apt(ctx, dir, "download", pkg)
}

// DebianFile fetches one file of a package of a suite, "" for this machine's, or
// takes it from the cache. It returns the file's path here.
func DebianFile(ctx context.Context, suite, pkg, name string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	unlock, err := lock(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(cache, "files", suite, pkg, filepath.Base(name))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(cache, ".fetch")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	d := new(debs)
	if suite != "" {
		if d, err = newDebs(ctx, tmp, "amd64", suite); err != nil {
			return "", err
		}
	}
	x := filepath.Join(tmp, "x")
	err = d.download(ctx, tmp, pkg)
	if err == nil {
		err = unpack(ctx, tmp, x)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return "", err
	}
	return path, os.Rename(filepath.Join(x, name), path)
}

// moduleFiles returns the files of the named modules and all they depend on, in
// the order they must be loaded. A module that is built in or missing is left
// out: whoever needs it will say so.
func (k *Kernel) moduleFiles(names ...string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(k.modules, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(moduleName(filepath.Base(path)), ".ko"); ok {
			files[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	taken := map[string]bool{}
	var take func(name string) error
	take = func(name string) error {
		name = moduleName(name)
		path := files[name]
		if path == "" || taken[name] {
			return nil
		}
		taken[name] = true
		deps, err := moduleDepends(path)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := take(d); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, n := range names {
		if err := take(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleDepends reads the "depends" line of a module's .modinfo section.
func moduleDepends(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w (compressed modules are not supported)", path, err)
	}
	defer func() { _ = f.Close() }()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("module %s: no .modinfo", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if d, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(d) > 0 {
			return strings.Split(string(d), ","), nil
		}
	}
	return nil, nil
}

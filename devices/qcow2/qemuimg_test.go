package qcow2_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/devices/qcow2"
	"github.com/gvmm/gvmm/devices/virtio"
	"github.com/gvmm/gvmm/integration/lab"
)

// img runs qemu-img, which is the judge of what the package reads and writes.
func img(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// clean fails unless qemu-img check finds nothing at all.
func clean(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", "--output=json", path).Output()
	var found struct {
		CheckErrors, Corruptions, Leaks int
	}
	if err == nil {
		err = json.Unmarshal(out, &found)
	}
	if err != nil || found.CheckErrors+found.Corruptions+found.Leaks != 0 {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
}

const diskSize = 9 << 20

// pattern is a disk's worth of bytes, most of which do not compress.
func pattern(r *rand.Rand) []byte {
	b := make([]byte, diskSize)
	for at := 0; at < len(b); at += 4096 {
		switch r.IntN(4) {
		case 0: // a hole
		case 1:
			copy(b[at:], bytes.Repeat([]byte{byte(r.Uint32())}, 4096))
		default:
			for i := range 4096 {
				b[at+i] = byte(r.Uint32())
			}
		}
	}
	return b
}

func TestQcow2(t *testing.T) {
	if _, err := lab.Program(t.Context(), "qemu-img", "qemu-utils"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, options, backing string }{
		{"plain", "", ""},
		{"v2", "compat=0.10", ""},
		{"v2 backing", "compat=0.10", "qcow2"},
		{"clusters 512", "cluster_size=512", ""},
		{"clusters 4K, 1 bit", "cluster_size=4096,refcount_bits=1", ""},
		{"clusters 2M, 64 bit", "cluster_size=2M,refcount_bits=64", ""},
		{"2 bit", "refcount_bits=2", ""},
		{"4 bit", "refcount_bits=4,cluster_size=1024", ""},
		{"8 bit", "refcount_bits=8", ""},
		{"32 bit", "refcount_bits=32,cluster_size=2048", ""},
		{"lazy refcounts", "lazy_refcounts=on", ""},
		{"preallocated metadata", "preallocation=metadata", ""},
		{"preallocated", "preallocation=falloc", ""},
		{"on raw", "", "raw"},
		{"on qcow2", "cluster_size=8192", "qcow2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(len(c.name))))
			dir := t.TempDir()
			path, want := filepath.Join(dir, "disk.qcow2"), make([]byte, diskSize)
			args := []string{"create", "-q", "-f", "qcow2"}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			if c.backing != "" {
				copy(want, pattern(r))
				base := filepath.Join(dir, "base.raw")
				if err := os.WriteFile(base, want[:diskSize-5*4096], 0o600); err != nil {
					t.Fatal(err)
				}
				clear(want[diskSize-5*4096:])
				if c.backing == "qcow2" {
					img(t, "convert", "-c", "-f", "raw", "-O", "qcow2", base, filepath.Join(dir, "base.qcow2"))
					base = filepath.Join(dir, "base.qcow2")
				}
				args = append(args, "-b", filepath.Base(base), "-F", c.backing)
			}
			img(t, append(args, path, fmt.Sprint(diskSize))...)
			scribble(t, r, path, want, 80)
			if !strings.Contains(c.options, "refcount_bits=1,") && !strings.HasSuffix(c.options, "refcount_bits=1") {
				img(t, "snapshot", "-c", "one", path)
				before := bytes.Clone(want)
				scribble(t, r, path, want, 30)
				img(t, "snapshot", "-a", "one", path)
				copy(want, before)
				scribble(t, r, path, want, 30)
				img(t, "snapshot", "-d", "one", path)
				clean(t, path)
			}
			packed := filepath.Join(dir, "packed.qcow2")
			img(t, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zlib", path, packed)
			scribble(t, r, packed, want, 50)
			if c.options == "" || strings.HasPrefix(c.options, "cluster_size") { // versions of qemu-img without it are older than ours
				img(t, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", path, packed)
				copy(want, readBack(t, path))
				scribble(t, r, packed, want, 50)
			}
		})
	}
}

// readBack is the image's contents as qemu-img sees them.
func readBack(t *testing.T, path string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "back")
	img(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// scribble reads and writes the image at random beside want, has qemu-img
// compare, and checks.
func scribble(t *testing.T, r *rand.Rand, path string, want []byte, rounds int) {
	t.Helper()
	m, err := qcow2.Open(path, false, false)
	if err != nil {
		t.Fatal(err)
	}
	for range rounds {
		off := r.IntN(diskSize/512) * 512
		n := min((1+r.IntN(1<<r.IntN(10)))*512, diskSize-off)
		b := make([]byte, n)
		cut := r.IntN(n/512+1) * 512
		v := virtio.Buffers{b[:cut], b[cut:]}
		switch r.IntN(8) {
		case 0:
			if err := m.WriteZeroes(uint64(off), uint64(n)); err != nil {
				t.Fatal(err)
			}
			clear(want[off : off+n])
		case 1, 2, 3:
			if err := m.ReadVec(v, int64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, want[off:off+n]) {
				t.Fatalf("%d bytes at %#x read differ", n, off)
			}
		default:
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if err := m.WriteVec(v, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], b)
		}
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	clean(t, path)
	raw := filepath.Join(t.TempDir(), "raw")
	img(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("qemu-img reads something else: %v", err)
	}
}

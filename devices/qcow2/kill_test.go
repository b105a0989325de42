package qcow2_test

import (
	"bufio"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/devices/qcow2"
	"github.com/gvmm/gvmm/devices/virtio"
	"github.com/gvmm/gvmm/integration/lab"
)

var kills = flag.Int("kills", 16, "rounds of TestKill for each image")

const writerEnv = "GVMM_TEST_QCOW2_WRITER"

// disk is what both kinds of image can do.
type disk interface {
	virtio.Disk
	Close() error
}

func openDisk(path string) (disk, error) {
	if strings.HasSuffix(path, ".raw") {
		return virtio.OpenRaw(path, false, false)
	}
	return qcow2.Open(path, false, false)
}

// op is one write of the killed writer: n sectors that hold its number.
type op struct {
	at, n int // sectors
	zero  bool
}

func nextOp(r *rand.Rand) op {
	o := op{at: r.IntN(diskSize / 512), zero: r.IntN(8) == 0}
	o.n = min(1+r.IntN(1<<r.IntN(9)), diskSize/512-o.at)
	return o
}

// TestMain is also the writer, in a process of its own.
func TestMain(m *testing.M) {
	if arg := os.Getenv(writerEnv); arg != "" {
		fmt.Fprintln(os.Stderr, write(arg))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// write writes for ever. It says on standard output what was flushed.
func write(arg string) error {
	path, seedText, _ := strings.Cut(arg, "|")
	seed, err := strconv.ParseUint(seedText, 10, 64)
	if err != nil {
		return err
	}
	d, err := openDisk(path)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	base := seed << 32
	for i := uint64(1); ; i++ {
		o := nextOp(r)
		if z, ok := d.(*qcow2.Image); ok && o.zero {
			err = z.WriteZeroes(uint64(o.at)*512, uint64(o.n)*512)
		} else {
			b := make([]byte, o.n*512)
			for at := 0; at < len(b) && !o.zero; at += 8 {
				binary.LittleEndian.PutUint64(b[at:], base+i)
			}
			err = d.WriteVec(virtio.Buffers{b}, int64(o.at)*512)
		}
		if err == nil && i%16 == 0 {
			if err = d.Flush(); err == nil {
				_, err = fmt.Println(i)
			}
		}
		if err != nil {
			return err
		}
	}
}

// TestKill kills a writer at any moment: what it flushed is there, and
// qemu-img check finds nothing.
func TestKill(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes the few nanoseconds between two stores many")
	}
	if _, err := lab.Program(t.Context(), "qemu-img", "qemu-utils"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, options string }{
		{"raw", ""}, {"plain", "cluster_size=64k"}, {"small clusters", "cluster_size=512"}, {"v2", "compat=0.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			held := make([]uint64, diskSize/512) // what each sector must hold, or something newer
			for round := range *kills {
				path := filepath.Join(dir, "disk."+strings.ReplaceAll(c.name, " ", "-"))
				if round%8 == 0 { // a new image, whose metadata grows
					_ = os.Remove(path)
					clear(held)
					if c.name == "raw" {
						img(t, "create", "-q", "-f", "raw", path, fmt.Sprint(diskSize))
					} else {
						img(t, "create", "-q", "-f", "qcow2", "-o", c.options, path, fmt.Sprint(diskSize))
					}
				}
				seed := uint64(round + 1)
				flushed := killed(t, path, seed, time.Duration(rand.IntN(30000))*time.Microsecond)
				if c.name != "raw" {
					clean(t, path)
				}
				verify(t, path, seed, flushed, held)
			}
		})
	}
}

// killed has a writer run until some time after its first flush, and returns the
// number of the last write it said was flushed.
func killed(t *testing.T, path string, seed uint64, after time.Duration) (flushed uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", writerEnv, path, seed))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		if flushed == 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
		if flushed, err = strconv.ParseUint(s.Text(), 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() >= 0 {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	if flushed == 0 {
		t.Fatal("nothing was flushed")
	}
	return flushed
}

// verify compares the image with what the writer did.
func verify(t *testing.T, path string, seed, flushed uint64, held []uint64) {
	t.Helper()
	d, err := openDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, diskSize)
	if err := d.ReadVec(virtio.Buffers{got}, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	r, base := rand.New(rand.NewPCG(seed, 0)), seed<<32
	later := map[int]map[uint64]bool{} // by sector: what unflushed writes left there
	for i := uint64(1); i <= flushed+64; i++ {
		o, v := nextOp(r), base+i
		if o.zero {
			v = 0
		}
		for s := o.at; s < o.at+o.n; s++ {
			if i <= flushed {
				held[s] = v
			} else {
				if later[s] == nil {
					later[s] = map[uint64]bool{}
				}
				later[s][v] = true
			}
		}
	}
	for s := range held {
		v := binary.LittleEndian.Uint64(got[s*512:])
		for at := 0; at < 512; at += 8 {
			if w := binary.LittleEndian.Uint64(got[s*512+at:]); w != v {
				t.Fatalf("sector %d: torn: %#x and %#x", s, v, w)
			}
		}
		if v != held[s] && !later[s][v] {
			t.Fatalf("sector %d holds %#x, want %#x: write %d was flushed", s, v, held[s], flushed)
		}
		held[s] = v
	}
}

// Bench prints what gvmm promises as figures, with kvmtool and QEMU beside
// them where they are installed: start-up against a bare Go program, memory of
// the idle monitor, binary size, and in the x86 lab the boot of Debian's kernel.
// Runs of what is compared are interleaved, and each figure is a minimum and a
// median.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

func main() {
	runs := flag.Int("n", 40, "runs of each start-up measurement")
	inLab := flag.Bool("lab", true, "measure Debian's boot in the x86 lab too")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bench [flags] [IMAGE...]: images whose run from exec to exit is timed too")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *runs, *inLab, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// tools are the programs and images that are measured.
type tools struct {
	dir         string // scratch
	gvmm, floor string
	images      string // folder of our guests
	flat        string // code of the guest "first", and its entry
	entry       uint64
	disk        string // an image of 1 MiB
	lkvm, qemu  string // "" where not installed
}

func bench(ctx context.Context, runs int, inLab bool, images []string) error {
	dir, err := os.MkdirTemp("", "gvmm-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	t, err := newTools(ctx, dir)
	if err != nil {
		return err
	}
	if err := lab.HaveKVM(); err != nil {
		fmt.Println("NOT MEASURED: start-up and memory: ", err)
	} else if err := startUp(t, runs, images); err != nil {
		return err
	} else if err := idleMemory(t); err != nil {
		return err
	} else if err := firecrackerAPI(t, runs); err != nil {
		return err
	}
	if err := binarySize(t); err != nil {
		return err
	}
	if inLab {
		return linuxBoot(ctx, t)
	}
	return nil
}

func newTools(ctx context.Context, dir string) (*tools, error) {
	t := &tools{dir: dir, gvmm: filepath.Join(dir, "gvmm"), floor: filepath.Join(dir, "floor"), flat: filepath.Join(dir, "first.bin")}
	if err := lab.Build(ctx, "./cmd/gvmm", t.gvmm); err != nil {
		return nil, err
	}
	if err := lab.Build(ctx, "./cmd/gvmm-net", t.gvmm+"-net"); err != nil {
		return nil, err
	}
	if err := lab.Build(ctx, "./integration/bench/floor", t.floor); err != nil {
		return nil, err
	}
	t.disk = filepath.Join(dir, "disk.img")
	err := os.WriteFile(t.disk, make([]byte, 1<<20), 0o644)
	if err != nil {
		return nil, err
	}
	if t.images, err = lab.Guests(ctx); err != nil {
		return nil, err
	}
	if t.entry, err = flatten(t.guest("first.multiboot"), t.flat); err != nil {
		return nil, err
	}
	t.lkvm, t.qemu = lookPath("lkvm"), lookPath("qemu-system-x86_64")
	return t, nil
}

func (t *tools) guest(name string) string { return filepath.Join(t.images, name) }

// sample is a measured quantity, smallest first.
type sample []time.Duration

func (s sample) min() time.Duration    { return slices.Min(s) }
func (s sample) median() time.Duration { s = slices.Sorted(slices.Values(s)); return s[len(s)/2] }

// row prints one line: the figures, and how they compare with the base's.
func row(name string, s, base sample) {
	ratio := ""
	if base != nil {
		ratio = fmt.Sprintf("  %5.2f x  %5.2f x", float64(s.min())/float64(base.min()), float64(s.median())/float64(base.median()))
	}
	fmt.Printf("  %-46s %9.2f %9.2f%s\n", name, ms(s.min()), ms(s.median()), ratio)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func head(title, base string) {
	if base != "" {
		base = "   ratios to " + base
	}
	fmt.Printf("\n%-48s %9s %9s%s\n", title, "min ms", "median", base)
}

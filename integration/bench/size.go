package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// idleMemory prints the resident memory of a monitor whose guest sleeps for
// ever, without the guest's own pages.
func idleMemory(t *tools) error {
	const mib = 300
	var kib []int
	for range 5 {
		vm, err := lab.New(lab.Local{}, []string{t.gvmm, "run", "-q", "-M", strconv.Itoa(mib), "-d", t.disk, "-n", "user", "-a", "how=hlt", t.guest("exits.linux")})
		if err != nil {
			return err
		}
		if err = vm.Console().Expect(">", 10*time.Second); err == nil {
			time.Sleep(300 * time.Millisecond) // idle: what start-up left has settled
			var n int
			n, err = monitorRSS(vm.PID(), mib<<10)
			kib = append(kib, n)
		}
		_ = vm.Signal(syscall.SIGTERM)
		if _, e := vm.Wait(10 * time.Second); err != nil || e != nil {
			return errors.Join(err, e)
		}
	}
	slices.Sort(kib)
	fmt.Printf("\nidle monitor with a disk and a user network: %.2f MiB RSS without guest pages (min; median %.2f; promised: 6)\n",
		float64(kib[0])/1024, float64(kib[len(kib)/2])/1024)
	return nil
}

// monitorRSS returns the resident KiB of a process, leaving out mappings of at
// least guest KiB: nothing but guest memory is writable and that large.
func monitorRSS(pid, guest int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	total, size, left := 0, 0, false
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			return 0, err
		}
		switch f[0] {
		case "Size:":
			size = n
		case "Rss:":
			if size >= guest && size < 2*guest {
				left = true
			} else {
				total += n
			}
		}
	}
	if !left {
		return 0, fmt.Errorf("process %d: no mapping of %d KiB: where is the guest's memory?", pid, guest)
	}
	return total, nil
}

// binarySize prints the size of the released binary.
func binarySize(t *tools) error {
	info, err := os.Stat(t.gvmm)
	if err != nil {
		return err
	}
	fmt.Printf("\ngvmm binary: %.2f MB (promised: 8)\n", float64(info.Size())/1e6)
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// apiVM is a VM that was started through Firecracker's API.
type apiVM struct {
	front  *exec.Cmd
	stdout io.Reader
}

// startAPI has gvmm-firecracker start a guest of mib MiB by three calls, as
// Firecracker's SDK does. sock must be free.
func startAPI(program, sock, image, params string, mib int) (*apiVM, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	v := &apiVM{front: exec.Command(program, "--api-sock", sock, "--level", "Error"), stdout: r}
	v.front.Stdout = w
	err = v.front.Start()
	_ = w.Close()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		for c, err = net.Dial("unix", sock); err != nil && ctx.Err() == nil; c, err = net.Dial("unix", sock) {
			time.Sleep(200 * time.Microsecond) // until it listens
		}
		return c, err
	}}}
	defer client.CloseIdleConnections()
	for _, c := range [][2]string{
		{"machine-config", fmt.Sprintf(`{"vcpu_count": 1, "mem_size_mib": %d}`, mib)},
		{"boot-source", fmt.Sprintf(`{"kernel_image_path": %q, "boot_args": %q}`, image, params)},
		{"actions", `{"action_type": "InstanceStart"}`},
	} {
		q, err := http.NewRequestWithContext(ctx, "PUT", "http://localhost/"+c[0], strings.NewReader(c[1]))
		if err != nil {
			return nil, err
		}
		a, err := client.Do(q)
		if err == nil && a.StatusCode != http.StatusNoContent {
			b, _ := io.ReadAll(a.Body)
			err = fmt.Errorf("%s: %s: %s", c[0], a.Status, b)
		}
		if err != nil {
			return nil, errors.Join(err, v.front.Process.Kill(), v.front.Wait())
		}
		_ = a.Body.Close()
	}
	return v, nil
}

// firecrackerAPI prints what a VM costs that is started through Firecracker's
// API, beside one of `gvmm run`: time from exec to exit, VMs a second when all
// are started together, memory.
func firecrackerAPI(t *tools, n int) error {
	program := filepath.Join(t.dir, "gvmm-firecracker")
	if err := lab.Build(context.Background(), "./cmd/gvmm-firecracker", program); err != nil {
		return err
	}
	config := filepath.Join(t.dir, "fc.json")
	image := t.guest("first.linux")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"boot-source": {"kernel_image_path": %q}, "drives": []}`, image), 0o644); err != nil {
		return err
	}
	kinds := []struct {
		name string
		run  func(i int) error
	}{
		{"gvmm run", func(int) error { return exec.Command(t.gvmm, "run", "-q", "-M", "128", "--no-rng", image).Run() }},
		{"gvmm-firecracker, configuration file", func(int) error {
			return exec.Command(program, "--no-api", "--config-file", config, "--level", "Error").Run()
		}},
		{"gvmm-firecracker, API", func(i int) error {
			v, err := startAPI(program, filepath.Join(t.dir, fmt.Sprint(i, ".sock")), image, "", 128)
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, v.stdout)
			return v.front.Wait()
		}},
	}
	times := make([]sample, len(kinds))
	for round := range n {
		for i := range kinds {
			k := (round + i) % len(kinds)
			start := time.Now()
			if err := kinds[k].run(0); err != nil {
				return fmt.Errorf("%s: %w", kinds[k].name, err)
			}
			times[k] = append(times[k], time.Since(start))
		}
	}
	head("Firecracker's API: exec to exit, 128 MiB", kinds[0].name)
	for k := range kinds {
		var base sample
		if k > 0 {
			base = times[0]
		}
		row(kinds[k].name, times[k], base)
	}
	const together = 50
	for _, k := range kinds {
		errs := make([]error, together)
		var wg sync.WaitGroup
		start := time.Now()
		for i := range together {
			wg.Go(func() { errs[i] = k.run(i) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		fmt.Printf("  %-46s %9.1f VMs a second, %d started together\n", k.name, together/time.Since(start).Seconds(), together)
	}
	return apiMemory(t, program)
}

// apiMemory prints the resident memory of the two processes of an idle VM.
func apiMemory(t *tools, program string) error {
	const mib = 300
	v, err := startAPI(program, filepath.Join(t.dir, "m.sock"), t.guest("exits.linux"), "how=hlt", mib)
	if err != nil {
		return err
	}
	defer func() { _, _ = v.front.Process.Signal(os.Interrupt), v.front.Wait() }()
	time.Sleep(300 * time.Millisecond) // idle: what start-up left has settled
	var child []byte
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", v.front.Process.Pid))
	for _, path := range threads { // any thread may be the parent
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		child = append(child, b...)
	}
	pid, err := strconv.Atoi(strings.Fields(string(child) + " 0")[0])
	if err != nil {
		return err
	}
	monitor, err := monitorRSS(pid, mib<<10)
	if err != nil {
		return err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.front.Process.Pid))
	if err != nil {
		return err
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	front, err := strconv.Atoi(strings.Fields(rss + " x")[0])
	if err != nil {
		return err
	}
	fmt.Printf("  idle: gvmm %.2f MiB RSS without guest pages, gvmm-firecracker in front of it %.2f MiB\n", float64(monitor)/1024, float64(front)/1024)
	return nil
}

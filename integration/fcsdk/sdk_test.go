package fcsdk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/integration/lab"
)

// console collects what the guest prints; said is told of it.
type console struct {
	mu   sync.Mutex
	b    bytes.Buffer
	said chan struct{}
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b.Write(p)
	select {
	case c.said <- struct{}{}:
	default:
	}
	return len(p), nil
}

// expect waits until the guest has printed text.
func (c *console) expect(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	for {
		c.mu.Lock()
		got := c.b.String()
		c.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-c.said:
		case <-ctx.Done():
			t.Fatalf("the console has no %q: %q", text, got)
		}
	}
}

// vm is a machine of the SDK's, not started.
type vm struct {
	*firecracker.Machine
	dir     string
	console *console
	stdin   *os.File
}

var programs struct {
	once                sync.Once
	firecracker, guests string
	err                 error
}

func newVM(ctx context.Context, t *testing.T, guest string, cfg firecracker.Config) *vm {
	t.Helper()
	if err := lab.HaveKVM(); err != nil {
		t.Skip("NOT TESTED: this machine's KVM cannot be used: ", err)
	}
	programs.once.Do(func() {
		dir, err := os.MkdirTemp("", "fcsdk") // removed by TestMain
		programs.firecracker, programs.err = filepath.Join(dir, "firecracker"), err
		for name, out := range map[string]string{"./cmd/gvmm": "gvmm", "./cmd/gvmm-firecracker": "firecracker"} {
			if programs.err == nil {
				programs.err = lab.Build(context.Background(), name, filepath.Join(dir, out))
			}
		}
		if programs.err == nil {
			programs.guests, programs.err = lab.Guests(context.Background())
		}
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	v := &vm{dir: t.TempDir(), console: &console{said: make(chan struct{}, 1)}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	v.stdin = w
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	cfg.SocketPath = filepath.Join(v.dir, "api.sock")
	cfg.KernelImagePath = filepath.Join(programs.guests, guest)
	cfg.MachineCfg.VcpuCount, cfg.MachineCfg.MemSizeMib = firecracker.Int64(1), firecracker.Int64(64)
	log := logrus.New()
	log.SetOutput(t.Output())
	cmd := firecracker.VMCommandBuilder{}.WithBin(programs.firecracker).WithSocketPath(cfg.SocketPath).
		WithStdin(r).WithStdout(v.console).WithStderr(t.Output()).Build(ctx)
	v.Machine, err = firecracker.NewMachine(ctx, cfg, firecracker.WithProcessRunner(cmd), firecracker.WithLogger(logrus.NewEntry(log)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.firecracker != "" {
		_ = os.RemoveAll(filepath.Dir(programs.firecracker))
	}
	os.Exit(code)
}

// TestSDK starts, watches, pauses and stops VMs.
func TestSDK(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, append([]byte("sector zero"), make([]byte, 1<<20-11)...), 0o644); err != nil {
		t.Fatal(err)
	}
	v := newVM(ctx, t, "demo.linux", firecracker.Config{
		KernelArgs: "word0 a=b -- c", Drives: firecracker.NewDrivesBuilder(disk).Build(), MetricsPath: filepath.Join(t.TempDir(), "metrics"),
	})
	if err := v.Start(ctx); err != nil {
		t.Fatal(err)
	}
	v.console.expect(ctx, t, "Good night.")
	if err := v.Wait(ctx); err != nil {
		t.Error("the end of the demo guest: ", err)
	}
	v.console.expect(ctx, t, `sector 0 starts "sector zero"`)
	if b, err := os.ReadFile(v.Cfg.MetricsPath); err != nil || !bytes.Contains(b, []byte(`"utc_timestamp_ms":`)) {
		t.Errorf("metrics: %v, %q", err, b)
	}
	if _, err := os.Stat(v.Cfg.SocketPath); !os.IsNotExist(err) {
		t.Error("the socket is still there: ", err)
	}
}

func TestSDKWatch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := newVM(ctx, t, "exits.linux", firecracker.Config{
		KernelArgs: "how=echo", VMID: "watched", LogPath: filepath.Join(t.TempDir(), "log"), LogLevel: "Debug",
	})
	v.Handlers.FcInit = v.Handlers.FcInit.AppendAfter(firecracker.CreateMachineHandlerName, firecracker.NewCreateBalloonHandler(8, true, 1))
	if err := v.Start(ctx); err != nil {
		t.Fatal(err)
	}
	v.console.expect(ctx, t, ">")
	state := func(want string) {
		t.Helper()
		info, err := v.DescribeInstanceInfo(ctx)
		if err != nil || *info.State != want || *info.AppName != "Firecracker" {
			t.Errorf("instance: %+v, %v, want state %s", info, err, want)
		}
	}
	state(models.InstanceInfoStateRunning)
	if err := v.PauseVM(ctx); err != nil {
		t.Error(err)
	}
	state(models.InstanceInfoStatePaused)
	if err := v.ResumeVM(ctx); err != nil {
		t.Error(err)
	}
	if _, err := v.stdin.WriteString("typed"); err != nil {
		t.Error(err)
	}
	v.console.expect(ctx, t, "typed")
	if b, err := v.GetBalloonConfig(ctx); err != nil || *b.AmountMib != 8 {
		t.Errorf("balloon: %+v, %v", b, err)
	}
	if err := v.UpdateBalloon(ctx, 16); err != nil {
		t.Error(err)
	}
	if s, err := v.GetBalloonStats(ctx); err != nil || *s.TargetMib != 16 || *s.TargetPages != 4096 {
		t.Errorf("balloon statistics: %+v, %v", s, err)
	}
	if err := v.SetMetadata(ctx, map[string]string{"a": "b"}); err == nil || !strings.Contains(err.Error(), "MMDS") {
		t.Errorf("metadata: %v, want to be told that there is none", err)
	}
	if err := v.CreateSnapshot(ctx, "mem", "snap"); err == nil || !strings.Contains(err.Error(), "snapshots") {
		t.Errorf("snapshot: %v, want to be told that there are none", err)
	}
	if version, err := v.GetFirecrackerVersion(ctx); err != nil || version == "" {
		t.Errorf("version %q, %v", version, err)
	}
	if err := v.StopVMM(); err != nil {
		t.Error(err)
	}
	if err := v.Wait(ctx); err == nil {
		t.Error("a VM that was stopped ended in order")
	}
	if b, err := os.ReadFile(v.Cfg.LogPath); err != nil || !bytes.Contains(b, []byte(`PUT request on "/actions"`)) {
		t.Errorf("log: %v, %q", err, b)
	}
	if out, err := exec.Command("pgrep", "-f", v.Cfg.SocketPath).Output(); err == nil {
		t.Errorf("still running: %s", out)
	}
}

// TestKraft makes the calls of KraftKit's Firecracker driver
// (machine/firecracker/v1alpha1.go), in its order and through its client.
func TestKraft(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := newVM(ctx, t, "demo.multiboot", firecracker.Config{})
	out, err := os.Create(filepath.Join(v.dir, "machine.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	sock := filepath.Join(v.dir, "firecracker.sock")
	cmd := exec.CommandContext(ctx, programs.firecracker, "--id", "0e8c3c5e-8f3e-4b9c-9d0a-2f6f1d7c5a11", "--api-sock", sock)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat(sock); err != nil && ctx.Err() == nil; _, err = os.Stat(sock) {
		time.Sleep(time.Millisecond) // kraft watches the folder
	}
	c := firecracker.NewClient(sock, logrus.NewEntry(logrus.New()), false)
	if _, err := c.PutMachineConfiguration(ctx, &models.MachineConfiguration{VcpuCount: firecracker.Int64(1), MemSizeMib: firecracker.Int64(64)}); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(programs.guests, "demo.multiboot")
	if _, err := c.PutGuestBootSource(ctx, &models.BootSource{KernelImagePath: &kernel, BootArgs: `app vfs.fstab=[ "initrd0:/:extract::ramfs=1:" ] -- hello world `}); err != nil {
		t.Fatal(err)
	}
	if info, err := c.GetInstanceInfo(ctx); err != nil || *info.Payload.State != models.InstanceInfoStateNotStarted {
		t.Errorf("before the start: %+v, %v", info, err)
	}
	start := models.InstanceActionInfoActionTypeInstanceStart
	if _, err := c.CreateSyncAction(ctx, &models.InstanceActionInfo{ActionType: &start}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil || !strings.Contains(string(b), `command line: app vfs.fstab=[ "initrd0:/:extract::ramfs=1:" ] -- hello world`) || !strings.Contains(string(b), "Good night.") {
		t.Errorf("machine.log: %v\n%s", err, b)
	}
}

// TestKill kills either process of a VM; nothing is left running.
func TestKill(t *testing.T) {
	for _, front := range []bool{true, false} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		v := newVM(ctx, t, "exits.linux", firecracker.Config{KernelArgs: "how=spin"})
		if err := v.Start(ctx); err != nil {
			t.Fatal(err)
		}
		v.console.expect(ctx, t, ">")
		pid, err := v.PID()
		if err != nil {
			t.Fatal(err)
		}
		gvmm := 0
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, path := range threads {
			b, _ := os.ReadFile(path)
			_, _ = fmt.Sscan(string(b), &gvmm)
		}
		fd, err := unix.PidfdOpen(gvmm, 0)
		if err != nil {
			t.Fatal(err)
		}
		victim := gvmm
		if front {
			victim = pid
		}
		if err := unix.Kill(victim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := v.Wait(ctx); err == nil {
			t.Errorf("killed (front %t), it ended in order", front)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000); n != 1 {
			t.Errorf("killed (front %t), gvmm still runs: %v", front, err)
		}
		_ = unix.Close(fd)
	}
}

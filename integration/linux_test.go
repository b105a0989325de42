package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestLab does everything that wants a full-fidelity KVM in one lab: our guests
// again, and Debian's kernels with all their devices.
func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	start := time.Now()
	x86, err := lab.StartX86(ctx, 4096)
	if err != nil {
		t.Fatal(err) // not a skip: the lab fetches what it needs
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the lab's own kernel:\n%s", x86.Console())
		}
		if err := x86.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("the lab was up after %v", time.Since(start).Round(time.Millisecond))
	b := newBench(t, x86, 2*time.Minute)
	t.Run("guests", func(t *testing.T) { testGuests(t, b) })
	t.Run("audit", func(t *testing.T) { testAudit(t, b, "linux") })
	t.Run("linux", func(t *testing.T) { testLinux(ctx, t, b, x86) })
}

// linux is a Debian kernel with our init, on the host.
type linux struct{ kernel, initrd, params string }

func newLinux(ctx context.Context, t *testing.T, b *bench, pkg string) linux {
	t.Helper()
	k, err := lab.DebianKernel(ctx, pkg)
	if err != nil {
		t.Fatal(err)
	}
	return linuxOf(ctx, t, b, k, "console=ttyS0 quiet panic=-1", lab.GuestModules)
}

func linuxOf(ctx context.Context, t *testing.T, b *bench, k *lab.Kernel, params string, modules []string) linux {
	t.Helper()
	initrd := filepath.Join(t.TempDir(), "linux.cpio")
	if err := k.Initramfs(ctx, initrd, nil, modules...); err != nil {
		t.Fatal(err)
	}
	return linux{b.file(t, k.Image), b.file(t, initrd), params}
}

func (l linux) args(params string, flags ...string) []string {
	return append(flags, "-M", "512", "-i", l.initrd, "-a", l.params+" "+params, l.kernel)
}

func testLinux(ctx context.Context, t *testing.T, b *bench, x86 *lab.Machine) {
	cloud := newLinux(ctx, t, b, lab.CloudKernel)
	web := lab.Start(t, b, []string{"/init", "http", "127.0.0.1:0", "hello", "from", "the", "host"})
	m, err := web.Console().ExpectMatch(regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`), b.slow)
	if err != nil {
		t.Fatal(err)
	}
	port := m[1]

	for _, machine := range []string{"microvm", "pc"} {
		for cpus := 1; cpus <= 2; cpus++ {
			t.Run(fmt.Sprintf("%s %d", machine, cpus), func(t *testing.T) {
				disk := b.file(t, ext4(t))
				vm := b.run(t, cloud.args("lab.disk=/dev/vda lab.raw=/dev/vdb lab.dhcp=eth0 lab.get=http://10.0.2.2:"+port+"/ lab.http=:80 lab.end=poweroff",
					"--machine", machine, "-c", fmt.Sprint(cpus), "-d", disk, "-d", b.temp(t, "raw.img", "raw disk\n"+strings.Repeat("\x00", 4<<20-9)),
					"-n", "user,hostfwd=tcp:127.0.0.1:8080-:80")...)
				online := map[int]string{1: "0", 2: "0-1"}[cpus]
				b.expect(t, vm, "lab: userspace after", "cpus "+online,
					"lab: disk=/dev/vda ok: hello on ext4", "lab: raw=/dev/vdb ok: raw disk",
					"lab: dhcp=eth0 ok: 10.0.2.15 mask 255.255.255.0", "ok: hello from the host", "lab: listening on")
				if out, err := lab.Run(ctx, b, "/init", "get", "http://127.0.0.1:8080/"); err != nil || out != "hello from the guest\n" {
					t.Errorf("published port: %q, %v", out, err)
				}
				b.expect(t, vm, "lab: http=:80 ok", "lab: end poweroff")
				b.ends(t, vm, 0, "")
				if got := fromExt4(t, b.contents(t, disk), "written"); got != "by the guest\n" {
					t.Errorf("the guest's file on the disk holds %q", got)
				}
			})
		}
	}
	for _, c := range []struct {
		end  string
		code int
		says string
	}{{"reboot", 0, ""}, {"panic", 139, "panic"}} {
		t.Run(c.end, func(t *testing.T) {
			vm := b.run(t, cloud.args("lab.end="+c.end)...)
			b.expect(t, vm, "lab: end "+c.end)
			b.ends(t, vm, c.code, c.says)
		})
	}
	t.Run("firecracker", func(t *testing.T) { testFirecracker(ctx, t, b, cloud) })
	t.Run("share", func(t *testing.T) {
		// Debian's cloud kernel has no 9p; its sister for all machines has. It is
		// packed by xz, which takes a while to unpack in here, so once is enough.
		generic := newLinux(ctx, t, b, lab.GenericKernel)
		dir := "/tmp/share"
		if err := x86.Copy(dir+"/hello", strings.NewReader("hello by 9p\n")); err != nil {
			t.Fatal(err)
		}
		vm := b.run(t, generic.args("lab.share=fs0", "-v", dir)...)
		b.expect(t, vm, "lab: share=fs0 ok: hello by 9p")
		b.ends(t, vm, 0, "")
		if got := b.contents(t, dir+"/written"); got != "by the guest\n" {
			t.Errorf("the guest's file in the share holds %q", got)
		}
	})
}

// ext4 makes a file system with a file "hello".
func ext4(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("hello on ext4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "ext4.img")
	if out, err := exec.Command(sbin("mkfs.ext4"), "-q", "-d", dir, image, "2M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return image
}

// fromExt4 reads one file of a file system.
func fromExt4(t *testing.T, image, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte(image), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(sbin("debugfs"), "-R", "cat "+name, path).Output()
	if err != nil {
		t.Fatalf("debugfs: %v", err)
	}
	return string(out)
}

// sbin finds a program where a user's PATH does not look.
func sbin(name string) string {
	if _, err := exec.LookPath(name); err != nil {
		return filepath.Join("/sbin", name)
	}
	return name
}

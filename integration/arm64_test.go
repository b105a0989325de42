package integration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestARM64 runs the arm64 gvmm on an arm64 KVM: our guests and Debian's kernel,
// over MMIO and PCI, in a lab with either interrupt controller.
func TestARM64(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	gvmm := filepath.Join(t.TempDir(), "gvmm")
	if err := errors.Join(lab.BuildARM64(ctx, "./cmd/gvmm", gvmm), lab.BuildARM64(ctx, "./cmd/gvmm-net", gvmm+"-net")); err != nil {
		t.Fatal(err)
	}
	guests, err := lab.ARM64Guests(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := lab.ARM64Kernel(ctx, lab.ARM64GenericKernel)
	if err != nil {
		t.Fatal(err) // not a skip: the lab fetches what it needs
	}
	for _, gic := range []lab.GIC{lab.GICv3, lab.GICv2} {
		t.Run("gic "+string(gic), func(t *testing.T) {
			start := time.Now()
			arm, err := lab.StartARM64(ctx, gic, 2048)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("console of the lab's own kernel:\n%s", arm.Console())
				}
				if err := arm.Close(); err != nil {
					t.Error(err)
				}
			})
			t.Logf("the lab was up after %v", time.Since(start).Round(time.Millisecond))
			b := &bench{Host: arm, slow: 2 * time.Minute}
			b.programs(t, gvmm)
			testARM64Probe(ctx, t, b, gic)
			testARM64Guests(t, b, gic, guests)
			l := linuxOf(ctx, t, b, kernel, "quiet", lab.ARM64GuestModules)
			testARM64Linux(ctx, t, b, arm, l, gic)
		})
	}
}

func testARM64Probe(ctx context.Context, t *testing.T, b *bench, gic lab.GIC) {
	out, err := lab.Run(ctx, b, b.gvmm, "probe")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"yes  kvm ", "yes  gicv" + string(gic), "yes  sve", "yes  pointer-auth", "yes  stolen-time", "no   realm"} {
		if !strings.Contains(out, want) {
			t.Errorf("probe does not say %q:\n%s", want, out)
		}
	}
}

// testARM64Guests runs our own guest in the places of Unikraft's two kinds.
func testARM64Guests(t *testing.T, b *bench, gic lab.GIC, guests string) {
	compatible := map[lab.GIC]string{lab.GICv2: "arm,cortex-a15-gic", lab.GICv3: "arm,gic-v3"}[gic]
	initrd := b.temp(t, "initrd", "the initrd\n")
	disk := b.temp(t, "disk", strings.Repeat("\x00", 1<<20))
	for _, kind := range []string{"qemu-arm64", "fc-arm64"} {
		image := b.file(t, filepath.Join(guests, "guest."+kind))
		run := func(how string, flags ...string) *lab.VM {
			return b.run(t, append(append([]string{"-M", "8M"}, flags...), "-a", "how="+how, image)...)
		}
		for _, c := range []struct {
			how    string
			flags  []string
			prints string
			code   int
			says   string
		}{
			{"poweroff", []string{"-d", disk, "-i", initrd, "-c", "3"}, "gic " + compatible + " cpus 0x3 virtio 0x1 seeded initrd the initrd sve pauth stolen-time\n", 0, "powered off"},
			{"reset", nil, "virtio 0x0 seeded sve", 0, "reset"},
			{"smp", []string{"-c", "2"}, "second vCPU ok\n", 0, ""},
			{"hole", nil, "hole 0xffffffff\n", 0, ""},
			{"pair", nil, "hello", 139, "esr_el1"},
			{"spin", []string{"--timeout", "300ms", "-c", "2"}, "hello", 124, "time"},
			{"poweroff", []string{"-M", "1M"}, "", 125, "need"},
			{"poweroff", []string{"--cet", "require"}, "", 126, "CET"},
			{"poweroff", []string{"--irqchip", map[lab.GIC]string{lab.GICv2: "gicv3", lab.GICv3: "gicv2"}[gic], "-c", "2"}, "", 126, "KVM here gives guests no gic"},
			{"poweroff", []string{"--irqchip", "gicv2"}, "gic arm,cortex-a15-gic cpus 0x1 ", 0, ""}, // gvmm's own on GICv3
			{"poweroff", []string{"--realm"}, "", 126, "realm"},
		} {
			t.Run(strings.Join(append([]string{kind, c.how}, c.flags[:min(len(c.flags), 2)]...), " "), func(t *testing.T) {
				vm := run(c.how, c.flags...)
				b.expect(t, vm, c.prints)
				b.ends(t, vm, c.code, c.says)
			})
		}
		t.Run(kind+" echo", func(t *testing.T) {
			vm := run("echo")
			b.expect(t, vm, "stolen-time\n")
			text := "all bytes: \x00\x01\x03\x1b\x7f\x80\xff\r\n"
			if _, err := vm.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			b.expect(t, vm, text)
			b.ends(t, vm, 0, "")
		})
		t.Run(kind+" terminated", func(t *testing.T) {
			vm := run("spin", "-c", "2")
			b.expect(t, vm, "hello")
			if err := vm.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			b.ends(t, vm, 143, "")
		})
	}
}

// testARM64Linux boots Debian's kernel with all its devices on two vCPUs.
func testARM64Linux(ctx context.Context, t *testing.T, b *bench, arm *lab.Machine, l linux, gic lab.GIC) {
	web := lab.Start(t, b, []string{"/init", "http", "127.0.0.1:0", "hello", "from", "the", "host"})
	m, err := web.Console().ExpectMatch(regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`), b.slow)
	if err != nil {
		t.Fatal(err)
	}
	type machine struct {
		flags []string
		end   string // of the machine
		code  int
		says  string
		irqs  string // how /proc/interrupts names those of the network card
	}
	softGIC := []string{"--machine", "virt", "--irqchip", "gicv2"} // on GICv3: gvmm's own, for one vCPU
	machines := []machine{
		{[]string{"--machine", "virt"}, "poweroff", 0, "powered off", `Edge +virtio\d\b`},
		{[]string{"--machine", "virt", "--virtio-transport", "pci"}, "reboot", 0, "reset", `Level +virtio\d\b`},
	}
	if gic == lab.GICv3 {
		machines[1].irqs = `MSI \d+ Edge +virtio\d-input`
		machines = append(machines,
			machine{[]string{"--machine", "microvm"}, "panic", 139, "panic", `Edge +virtio\d\b`},
			machine{[]string{"--machine", "lkvm", "--irqchip", "gicv3"}, "poweroff", 0, "powered off", `Level +virtio\d\b`},
			machine{softGIC, "reboot", 0, "reset", `GIC-0 +\d+ Edge +virtio\d\b`})
	}
	for i, c := range machines {
		t.Run("linux "+strings.Join(c.flags, " "), func(t *testing.T) {
			cpus, online := "2", "0-1"
			if slices.Equal(c.flags, softGIC) {
				cpus, online = "1", "0"
			}
			start := time.Now()
			disk := b.file(t, ext4(t))
			dir := fmt.Sprintf("/tmp/share%d", i)
			if err := arm.Copy(dir+"/hello", strings.NewReader("hello by 9p\n")); err != nil {
				t.Fatal(err)
			}
			vm := b.run(t, l.args("lab.disk=/dev/vda lab.share=fs0 lab.dhcp=eth0 lab.get=http://10.0.2.2:"+m[1]+"/ lab.http=:80 lab.print=/proc/interrupts lab.end="+c.end,
				append(c.flags, "-c", cpus, "-d", disk, "-v", dir, "-n", "user,hostfwd=tcp:127.0.0.1:8080-:80")...)...)
			b.expect(t, vm, "lab: userspace after")
			t.Logf("userspace after %v", time.Since(start).Round(time.Millisecond))
			b.expect(t, vm, "cpus "+online, "lab: disk=/dev/vda ok: hello on ext4", "lab: share=fs0 ok: hello by 9p",
				"lab: dhcp=eth0 ok: 10.0.2.15 mask 255.255.255.0", "ok: hello from the host", "lab: listening on")
			if out, err := lab.Run(ctx, b, "/init", "get", "http://127.0.0.1:8080/"); err != nil || out != "hello from the guest\n" {
				t.Errorf("published port: %q, %v", out, err)
			}
			b.expect(t, vm, "lab: http=:80 ok")
			if _, err := vm.Console().ExpectMatch(regexp.MustCompile(c.irqs), b.slow); err != nil {
				t.Error(err)
			}
			b.expect(t, vm, "lab: end "+c.end)
			b.ends(t, vm, c.code, c.says)
			if got := fromExt4(t, b.contents(t, disk), "written"); got != "by the guest\n" {
				t.Errorf("the guest's file on the disk holds %q", got)
			}
			if got := b.contents(t, dir+"/written"); got != "by the guest\n" {
				t.Errorf("the guest's file in the share holds %q", got)
			}
			t.Logf("all took %v", time.Since(start).Round(time.Millisecond))
		})
	}
}

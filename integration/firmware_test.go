package integration

import (
	"context"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestFirmware boots Debian's kernel by Debian's OVMF, which gets it by fw_cfg:
// the release of this machine's suite, and the build for SEV-SNP, which refuses
// what the hashes in guest memory do not vouch for.
func TestFirmware(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	ovmf, err := lab.DebianFile(ctx, "", "ovmf", "usr/share/ovmf/OVMF.fd")
	if err != nil {
		t.Fatal(err)
	}
	amdsev, err := lab.DebianFile(ctx, "forky", "ovmf-amdsev", "usr/share/ovmf/OVMF.amdsev.fd")
	if err != nil {
		t.Fatal(err)
	}
	x86, err := lab.StartX86(ctx, 4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the lab's own kernel:\n%s", x86.Console())
		}
		if err := x86.Close(); err != nil {
			t.Error(err)
		}
	})
	b := newBench(t, x86, 3*time.Minute)
	cloud := newLinux(ctx, t, b, lab.CloudKernel)
	args := func(firmware, params string, flags ...string) []string { // not "quiet": the EFI stub speaks
		return append(flags, "--firmware", b.file(t, firmware), "-M", "512M", "-i", cloud.initrd,
			"-a", "console=ttyS0 panic=-1 loglevel=3 "+params, cloud.kernel)
	}
	const efi = "EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path"
	t.Run("OVMF", func(t *testing.T) {
		disk := b.file(t, ext4(t))
		vm := b.run(t, args(ovmf, "lab.disk=/dev/vda lab.dhcp=eth0 lab.end=poweroff", "-c", "2", "-d", disk, "-n", "user")...)
		b.expect(t, vm, efi, "lab: userspace after", "cpus 0-1",
			"lab: disk=/dev/vda ok: hello on ext4", "lab: dhcp=eth0 ok: 10.0.2.15", "lab: end poweroff")
		b.ends(t, vm, 0, "")
		if got := fromExt4(t, b.contents(t, disk), "written"); got != "by the guest\n" {
			t.Errorf("the guest's file on the disk holds %q", got)
		}
	})
	t.Run("AmdSev", func(t *testing.T) {
		vm := b.run(t, args(amdsev, "lab.end=reboot")...)
		b.expect(t, vm, efi, "lab: userspace after", "lab: end reboot")
		b.ends(t, vm, 0, "")
	})
}

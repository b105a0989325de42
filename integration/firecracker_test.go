package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/integration/lab"
)

// testFirecracker boots Linux from a configuration file of Firecracker's. Its
// API on this machine's KVM is tested with Firecracker's SDK, in fcsdk.
func testFirecracker(ctx context.Context, t *testing.T, b *bench, l linux) {
	program := filepath.Join(filepath.Dir(binary), "gvmm-firecracker")
	if err := lab.Build(ctx, "./cmd/gvmm-firecracker", program); err != nil {
		t.Fatal(err)
	}
	disk := b.temp(t, "raw.img", "raw disk\n"+strings.Repeat("\x00", 4<<20-9))
	config := b.temp(t, "vm.json", fmt.Sprintf(`{
		"boot-source": {"kernel_image_path": %q, "initrd_path": %q, "boot_args": %q},
		"drives": [{"drive_id": "rootfs", "is_root_device": true, "is_read_only": false, "path_on_host": %q}],
		"machine-config": {"vcpu_count": 2, "mem_size_mib": 512, "smt": true}, "entropy": {}
	}`, l.kernel, l.initrd, l.params+" reboot=k pci=off lab.raw=/dev/vda lab.end=reboot", disk))
	vm := lab.Start(t, b, []string{b.file(t, program), "--no-api", "--config-file", config}, lab.WithEnv("XDG_RUNTIME_DIR=/tmp"))
	b.expect(t, vm, "lab: userspace after", "cpus 0-1", "lab: raw=/dev/vda ok: raw disk", "lab: end reboot")
	b.ends(t, vm, 0, "")
}

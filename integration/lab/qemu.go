package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gvmm/gvmm/integration/lab/wire"
)

// StartX86 boots an x86 lab with the given MiB of memory. It fails with
// [ErrUnavailable] where its parts cannot be had.
func StartX86(ctx context.Context, mib int) (*Machine, error) {
	qemu, err := needProgram(ctx, "qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		return nil, err
	}
	kernel, err := DebianKernel(ctx, CloudKernel)
	if err != nil {
		return nil, err
	}
	l, err := startQEMU(ctx, kernel, "console=ttyS0 mitigations=off",
		qemu, "-cpu", "max,+svm,+npt", "-smp", "2", "-m", strconv.Itoa(mib))
	if err != nil {
		return nil, err
	}
	if err := l.Copy(minTimerPeriod, strings.NewReader("1000000")); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// minTimerPeriod bounds how often a guest's periodic APIC timer ticks, in
// microseconds. OVMF writes CR8 at each tick, and QEMU (7.2 to 9.2 at least,
// target/i386's helper_write_crN) aborts when a nested guest does so while KVM
// waits for it to take another interrupt.
const minTimerPeriod = "/sys/module/kvm/parameters/min_timer_period_us"

// GIC is an interrupt controller of the arm64 lab, as QEMU's gic-version= names it.
type GIC string

// The interrupt controllers. QEMU's GICv3 is not compatible with version 2: KVM
// in a lab with the one gives guests only that one.
const (
	GICv2 GIC = "2"
	GICv3 GIC = "3"
)

// StartARM64 boots an arm64 lab with the given interrupt controller and MiB of
// memory. It fails with [ErrUnavailable] where its parts cannot be had.
func StartARM64(ctx context.Context, gic GIC, mib int) (*Machine, error) {
	qemu, err := needProgram(ctx, "qemu-system-aarch64", "qemu-system-arm")
	if err != nil {
		return nil, err
	}
	kernel, err := ARM64Kernel(ctx, ARM64CloudKernel)
	if err != nil {
		return nil, err
	}
	return startQEMU(ctx, kernel, "console=ttyAMA0 mitigations=off",
		qemu, "-M", "virt,virtualization=on,gic-version="+string(gic), "-cpu", "max,pauth-impdef=on", "-smp", "2", "-m", strconv.Itoa(mib))
}

// startQEMU boots a kernel with our init as the agent in an emulated machine.
func startQEMU(ctx context.Context, kernel *Kernel, params string, argv ...string) (_ *Machine, err error) {
	l, err := newMachine()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	initrd := filepath.Join(l.dir, "host.cpio")
	if err := kernel.Initramfs(ctx, initrd, nil, hostModules...); err != nil {
		return nil, err
	}
	sock := filepath.Join(l.dir, "agent")
	listen, err := net.Listen("unix", sock)
	if err != nil {
		return nil, err
	}
	defer func() { _ = listen.Close() }()
	l.emulator, err = New(Local{}, append(argv, "-accel", "tcg,thread=multi",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel.Image, "-initrd", initrd,
		"-append", params+" panic=-1 quiet lab.agent",
		"-chardev", "socket,id=agent,path="+sock, "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=agent,name="+wire.Port))
	if err != nil {
		return nil, err
	}
	if u, ok := listen.(*net.UnixListener); ok {
		_ = u.SetDeadline(time.Now().Add(30 * time.Second))
	}
	sockConn, err := listen.Accept()
	if err != nil {
		return nil, fmt.Errorf("%w: QEMU does not connect: %w: %s", ErrUnavailable, err, l.emulator.Stderr())
	}
	l.close = append(l.close, sockConn)
	l.conn, l.console = wire.NewConn(sockConn), l.emulator.Console()
	return l, l.await(ctx, bootTime)
}

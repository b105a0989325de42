package main

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// firmware is what QEMU's machines read at start.
var firmware = []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios-microvm.bin", "/usr/share/qemu/bios-microvm.bin",
	"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/kvmvapic.bin"}

// linuxBoot times Debian's kernel from exec to userspace in one x86 lab, under
// gvmm and under QEMU.
func linuxBoot(ctx context.Context, t *tools) error {
	x86, err := lab.StartX86(ctx, 6144)
	if err != nil {
		return err
	}
	defer func() { _ = x86.Close() }()
	kernel, err := lab.DebianKernel(ctx, lab.CloudKernel)
	if err != nil {
		return err
	}
	initrd := filepath.Join(t.dir, "guest.cpio")
	if err := kernel.Initramfs(ctx, initrd, nil); err != nil {
		return err
	}
	var there [3]string
	for i, file := range []string{t.gvmm, kernel.Image, initrd} {
		if there[i], err = x86.Put(file); err != nil {
			return err
		}
	}
	const params = "console=ttyS0 quiet panic=-1 reboot=t lab.end=poweroff"
	cs := []*contender{}
	for _, machine := range []string{"microvm", "pc"} {
		cs = append(cs, &contender{name: "gvmm " + machine, argv: []string{there[0], "run", "-q", "--machine", machine, "-M", "512",
			"-i", there[2], "-a", params, there[1]}})
	}
	if t.qemu != "" {
		if err := x86.Program(ctx, t.qemu); err != nil {
			return err
		}
		for _, f := range firmware {
			if err := x86.CopyFile(f); err != nil {
				return err
			}
		}
		for _, machine := range []string{"microvm", "pc"} {
			cs = append(cs, &contender{name: "QEMU " + machine, argv: []string{t.qemu, "-M", machine + ",accel=kvm", "-cpu", "host", "-m", "512",
				"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
				"-kernel", there[1], "-initrd", there[2], "-append", params}})
		}
	}
	for round := range 4 {
		for i := range cs {
			if c := cs[(round+i)%len(cs)]; c.err == nil {
				c.err = c.boot(x86)
			}
		}
	}
	printRace("in the x86 lab: exec to userspace, Debian cloud", cs, func(c *contender) sample { return c.first })
	return nil
}

// boot runs a monitor once in the lab until its guest is in userspace.
func (c *contender) boot(host lab.Host) error {
	start := time.Now()
	vm, err := lab.New(host, c.argv)
	if err != nil {
		return err
	}
	if err := vm.Console().Expect("lab: userspace", time.Minute); err != nil {
		_ = vm.Signal(syscall.SIGKILL)
		return fmt.Errorf("%w: %s", err, vm.Stderr())
	}
	c.first = append(c.first, time.Since(start))
	if _, err := vm.Wait(20 * time.Second); err != nil {
		_ = vm.Signal(syscall.SIGKILL) // QEMU's microvm does not power off
	}
	return nil
}

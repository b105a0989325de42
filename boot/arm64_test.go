package boot

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/dt"

	"github.com/gvmm/gvmm/vmm/memory"
)

// arm64Image is an Image of the given header with n bytes behind it.
func arm64Image(offset, room uint64, rest ...byte) []byte {
	b := append(goodARM64(), rest...)
	put64(b, armTextOffset, offset)
	put64(b, armImageSize, room)
	return b
}

// unikraftARM64 is linked for RAM at the given place, with pointers to show for it.
func unikraftARM64(ram uint64, rest string) []byte {
	b := arm64Image(armUnikraftOffset, 2*mib, make([]byte, 64)...)
	for i := range 3 {
		put64(b, armHeader+8*i, ram+armUnikraftOffset+uint64(i)*100)
	}
	put64(b, armHeader+24, 0x40000000+armUnikraftOffset) // one by chance
	return append(b, rest...)
}

// fdtOf parses a plan's device tree.
func fdtOf(t *testing.T, p *Plan) *dt.FDT {
	t.Helper()
	f, err := dt.ReadFDT(bytes.NewReader(region(t, p, "device tree")))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestDeviceTreeIsKvmtools compares with what kvmtool b48735e for arm64 wrote
// with --dump-dtb in QEMU 7.2 under Linux 6.1, and its realm branch cca/dtb
// (c2ab5af), which numbers the interrupts of PCI otherwise: SHA-256 of the file.
func TestDeviceTreeIsKvmtools(t *testing.T) {
	img := mustOpen(t, arm64Image(0, 0x10000))
	ramdisk := initrd(5000)
	for _, c := range []struct {
		name string // and kvmtool's options
		o    Options
		want string
	}{
		{"-c1 -m128 --nodefaults --network mode=none", Options{Memory: 128 * mib, ARM64: ARM64Options{Bare: true}},
			"41818a4f4de49913032905e1a9bf330f4570a2cf168ddbb62a049767e3b5a05c"},
		{"-c1 -m512 -d DISK --network mode=none -p earlycon", Options{Memory: 512 * mib, Params: "earlycon", ARM64: ARM64Options{Devices: 1}},
			"28b1a466df5c0e5857348c93317685639215decd6519678e434a257bf73aa9d3"},
		{"-c3 -m1024 -d DISK -d DISK --9p DIR,fs0 --network mode=user --console virtio --rng --irqchip gicv3 -p 'root=/dev/vda quiet' --virtio-transport mmio -i INITRD",
			Options{Memory: 1024 * mib, CPUs: 3, Params: "root=/dev/vda quiet", Initrd: ramdisk, ARM64: ARM64Options{Devices: 6, HVC: true, IRQChip: GICv3, Transport: TransportMMIO}},
			"3d19c5aec4f09ab8eeeb0f4e3ccfcb7050dd4d7aa30fe20ab40cbd150a845a55"},
		{"the same with --virtio-transport pci",
			Options{Memory: 1024 * mib, CPUs: 3, Params: "root=/dev/vda quiet", Initrd: ramdisk, ARM64: ARM64Options{Devices: 6, HVC: true, IRQChip: GICv3}},
			"986e761d6785469f2af0089bddedb6ecb922d14b93fc757983f24c003c5ed9b3"},
		{"-c2 -m256 --irqchip gicv3-its -d DISK,ro --network mode=none --pmu --no-pvtime --kaslr-seed 0x1122334455667788 -p 'console=ttyS0 x'",
			Options{Memory: 256 * mib, CPUs: 2, Params: "console=ttyS0 x", ARM64: ARM64Options{Devices: 1, PMU: true, KASLRSeed: 0x1122334455667788}},
			"e40dffeb3e81b7365f45d65c4e406ec2f1faf4bbb5be2ef86d538f3097f23306"},
		{"-c20 -m300 --nodefaults --network mode=none --rng -p 'a b'", Options{Memory: 300 * mib, CPUs: 20, Params: "a b", ARM64: ARM64Options{Devices: 1, Bare: true}},
			"ea1e71241db9722a91f7ba5efa9bb3a358dce6746bde87abf7ae352689f3ff53"},
		{"-c1 -m256 --network mode=none -i INITRD", Options{Memory: 256 * mib, Initrd: ramdisk},
			"d9f8a8429d5037e2a484a96f0c71b38712648adf52eede56a69bb290045b21bd"},
		{"-c1 -m128 --irqchip gicv2 -d DISK --network mode=none", Options{Memory: 128 * mib, ARM64: ARM64Options{Devices: 1, IRQChip: GICv2}},
			"0ce7911d0a7d7c65dcf54a6382f0eab1c8c628ab47f5a0f6f8d18a3cd2b733d8"},
		{"-c3 -m256 --irqchip gicv2 -d DISK --network mode=none --pmu --force-pci", Options{Memory: 256 * mib, CPUs: 3, ARM64: ARM64Options{Devices: 1, IRQChip: GICv2, PMU: true}},
			"519f94ecce67fb47d238fec3ffae007400fe5b1caefe466c282f64d7e1685f6e"},
		{"realm branch: -c2 -m256 --irqchip gicv3-its --force-pci -d DISK --network mode=none --pmu", Options{Memory: 256 * mib, CPUs: 2, ARM64: ARM64Options{Devices: 1, PMU: true, Realm: true}},
			"bd147ce4ae5561234ab021b6d4b1028053c47e9c562f44c8c04a66444341dd06"},
		{"realm branch: -c2 -m256 --irqchip gicv2 -d DISK --network mode=none", Options{Memory: 256 * mib, CPUs: 2, ARM64: ARM64Options{Devices: 1, IRQChip: GICv2, Realm: true}},
			"6c2b9cdc335e28761315782b696beda3c6a5375bec212188959bd6059d9af50e"},
	} {
		c.o.Machine = MachineLKVM
		p := mustPlan(t, img, c.o)
		b := region(t, p, "device tree")
		if c.o.ARM64.Realm { // its branch was not run in a realm: the call is all that differs
			b = bytes.Replace(b, []byte("smc\x00"), []byte("hvc\x00"), 1)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != c.want {
			t.Errorf("lkvm run %s: the device tree differs:\n%v", c.name, fdtOf(t, p))
		}
	}
}

// TestPlatformIsWhole checks, for every machine, that nothing lies on anything
// else, that no two devices share an interrupt that cannot be shared, and that
// the device tree has every device of the table at its place.
func TestPlatformIsWhole(t *testing.T) {
	img := mustOpen(t, arm64Image(0, mib))
	for _, m := range []Machine{MachineVirt, MachineMicroVM, MachineLKVM} {
		for _, chip := range []IRQChip{GICv2, GICv3, GICv3ITS} {
			for _, transport := range []Transport{TransportMMIO, TransportPCI} {
				if m == MachineMicroVM && transport == TransportPCI {
					continue
				}
				name := fmt.Sprint(m, " ", chip, " ", transport)
				cpus := 64
				if chip == GICv2 {
					cpus = 8
				}
				p := mustPlan(t, img, Options{Memory: 4 << 30, CPUs: cpus, Machine: m, ARM64: ARM64Options{
					Devices: 20, IRQChip: chip, Transport: transport, PVTime: true, PMU: true, RNGSeed: []byte{1}}})
				d := p.Platform
				tree := fdtOf(t, p).String()
				ranges := append([]memory.Range{d.GIC.Dist, d.GIC.CPU, d.GIC.Redist, d.GIC.ITS, d.RTC, d.PVTime}, p.RAM...)
				used := map[uint32]string{}
				take := func(irq uint32, who string) {
					if used[irq] != "" || irq >= 96 {
						t.Errorf("%s: interrupt %d of %s is %s's, or too high", name, irq, who, used[irq])
					}
					used[irq] = who
				}
				for _, u := range d.UARTs {
					ranges = append(ranges, u.Range)
					take(u.IRQ, "UART")
				}
				for _, v := range d.MMIO {
					ranges = append(ranges, at(v.Base, v.Size))
					take(v.IRQ, "virtio-mmio")
					if want := fmt.Sprintf("virtio@%x", uint64(v.Base)); !strings.Contains(tree, want) {
						t.Errorf("%s: no %s in the device tree", name, want)
					}
				}
				if d.PCI != nil {
					ranges = append(ranges, d.PCI.ECAM, d.PCI.Ports, d.PCI.Memory)
					slots := map[int]bool{}
					for _, v := range d.PCI.Devices {
						if slots[v.Slot] || v.Slot > 31 || v.Slot == 0 && d.PCI.Bridge || used[v.IRQ] != "" {
							t.Errorf("%s: PCI slot %d with interrupt %d", name, v.Slot, v.IRQ)
						}
						slots[v.Slot] = true
					}
				}
				if len(d.MMIO)+pciDevices(d) != 20 {
					t.Errorf("%s: %d windows and %d slots for 20 devices", name, len(d.MMIO), pciDevices(d))
				}
				ranges = slices.DeleteFunc(ranges, func(r memory.Range) bool { return r.Size == 0 })
				slices.SortFunc(ranges, func(a, b memory.Range) int { return int(int64(a.Base) - int64(b.Base)) })
				for i, r := range ranges {
					if i > 0 && r.Base < ranges[i-1].End() {
						t.Errorf("%s: %v overlaps %v", name, r, ranges[i-1])
					}
				}
			}
		}
	}
}

func TestARM64Plan(t *testing.T) {
	linux := mustOpen(t, arm64Image(0x10000, 3*mib))
	old := mustOpen(t, arm64Image(0, 0))
	qemu := mustOpen(t, unikraftARM64(0x40000000, "arm,gic-400\x00libuklibparam\x00"))
	fc := mustOpen(t, unikraftARM64(0x80000000, "arm,gic-v3\x00"))
	ramdisk := initrd(0x1800)
	for _, c := range []struct {
		name             string
		img              *Image
		o                Options
		machine          Machine
		pc, tree, initrd uint64
		gic              int
		cmdline          string
	}{
		{"Linux", linux, Options{Memory: 64 * mib, Params: "quiet", Initrd: ramdisk}, MachineVirt, 0x40010000, 0x43e00000, 0x43dfe000, 3, "console=ttyAMA0 panic=-1 quiet"},
		{"Linux, its own console", linux, Options{Memory: 4 << 30, Params: "console=hvc0"}, MachineVirt, 0x40010000, 0xbfe00000, 0, 3, "panic=-1 console=hvc0"},
		{"Linux on Firecracker's machine", linux, Options{Memory: 64 * mib, Machine: MachineMicroVM, ARM64: ARM64Options{Host: []IRQChip{GICv2}}}, MachineMicroVM, 0x80010000, 0x83e00000, 0, 2, "console=ttyS0 reboot=k panic=-1"},
		{"Linux as kvmtool starts it", linux, Options{Memory: 1024 * mib, Machine: MachineLKVM, Initrd: ramdisk, Params: "a", Args: []string{"b"}}, MachineLKVM, 0x80010000, 0x8fe00000, 0x8fdfe7fc, 3, " console=ttyS0 root=/dev/vda rw  a -- b"},
		{"Linux before 3.17", old, Options{Memory: 64 * mib}, MachineVirt, 0x40080000, 0x43e00000, 0, 3, "console=ttyAMA0 panic=-1"},
		{"Unikraft for QEMU", qemu, Options{Name: "app", Memory: 8 * mib, Initrd: ramdisk, Auto: []string{"vfs.fstab=x"}, Args: []string{"y"}}, MachineVirt, 0x400fffc0, 0x40000000, 0x407fe000, 2, "app vfs.fstab=x -- y"},
		{"Unikraft for Firecracker", fc, Options{Name: "app", Params: "y", ARM64: ARM64Options{Devices: 2}}, MachineMicroVM, 0x800fffc0, 0x80000000, 0, 3, "app y"},
		{"Unikraft for Firecracker on kvmtool's machine", fc, Options{Name: "app", Machine: MachineLKVM}, MachineLKVM, 0x800fffc0, 0x83e00000, 0, 3, "app"},
	} {
		p := mustPlan(t, c.img, c.o)
		if p.Machine != c.machine || p.Cmdline != c.cmdline || p.Platform.GIC.Version != c.gic {
			t.Errorf("%s: on %s with GICv%d, %q; want %s, GICv%d, %q", c.name, p.Machine, p.Platform.GIC.Version, p.Cmdline, c.machine, c.gic, c.cmdline)
		}
		if s := p.ARM64; s.PC != c.pc || s.X != [4]uint64{c.tree} || uint64(p.Entry) != c.pc {
			t.Errorf("%s: starts with %+v, want PC %#x and X0 %#x", c.name, *s, c.pc, c.tree)
		}
		place := map[string]uint64{}
		for _, r := range p.Regions {
			place[r.Name] = uint64(r.Base)
		}
		if place["kernel"] != c.pc || place["device tree"] != c.tree || place["initrd"] != c.initrd {
			t.Errorf("%s: %#x, want the device tree at %#x, the initrd at %#x", c.name, place, c.tree, c.initrd)
		}
		chosen, _ := fdtOf(t, p).NodeByName("chosen")
		args, ok := chosen.LookProperty("bootargs")
		if !ok || string(args.Value) != c.cmdline+"\x00" {
			t.Errorf("%s: bootargs %q", c.name, args.Value)
		}
		if start, ok := chosen.LookProperty("linux,initrd-start"); ok != (c.initrd != 0) {
			t.Errorf("%s: initrd %v in the device tree", c.name, start)
		} else if ok {
			if at, err := start.AsU64(); err != nil || at != c.initrd {
				t.Errorf("%s: the device tree has the initrd at %#x, %v", c.name, at, err)
			}
		}
	}
}

func TestARM64Refusals(t *testing.T) {
	linux, qemu := arm64Image(0, 300*mib), unikraftARM64(0x40000000, "arm,gic-400\x00")
	small := arm64Image(0, mib)
	for _, c := range []struct {
		name string
		file []byte
		o    Options
		want string
	}{
		{"endless image", arm64Image(0, 1<<63), Options{}, "no guest is so big"},
		{"endless offset", arm64Image(1<<63, mib), Options{}, "text_offset"},
		{"PC", small, Options{Machine: MachinePC}, "virt, microvm or lkvm"},
		{"linked elsewhere", qemu, Options{Machine: MachineMicroVM}, "use --machine virt"},
		{"another interrupt controller", qemu, Options{ARM64: ARM64Options{IRQChip: GICv3}}, "no interrupt controller but gicv2"},
		{"no interrupt controller", small, Options{ARM64: ARM64Options{IRQChip: "gicv4"}}, `irqchip "gicv4"`},
		{"vCPUs for GICv2", small, Options{CPUs: 9, ARM64: ARM64Options{IRQChip: GICv2}}, "room for 8"},
		{"vCPUs for GICv3", small, Options{CPUs: 124}, "room for 123"},
		{"no vCPU", small, Options{CPUs: -1}, "cpus: -1"},
		{"no memory", small, Options{Memory: 2 * mib}, "use -M 3M"},
		{"endless memory", small, Options{Memory: 1 << 50}, "at most 255 GiB"},
		{"uneven memory", small, Options{Memory: 64*mib + 1}, "whole 4 KiB pages"},
		{"kernel above what kvmtool looks at", linux, Options{Memory: 512 * mib, Machine: MachineLKVM}, "first 256 MiB"},
		{"initrd above what Linux looks at", small, Options{Memory: 8 << 30, Initrd: sizeOnly(3 << 30)}, "first 2 GiB"},
		{"endless initrd", small, Options{Initrd: sizeOnly(1<<63 - 1)}, "initrd"},
		{"negative initrd", small, Options{Initrd: sizeOnly(-1)}, "initrd"},
		{"devices over MMIO", small, Options{ARM64: ARM64Options{Devices: 33}}, "room for 32"},
		{"devices over PCI", small, Options{ARM64: ARM64Options{Devices: 32, Transport: TransportPCI}}, "room for 31"},
		{"no PCI", small, Options{Machine: MachineMicroVM, ARM64: ARM64Options{Transport: TransportPCI}}, "has none"},
		{"transport", small, Options{ARM64: ARM64Options{Transport: "ccw"}}, `"ccw"`},
		{"device tree", small, Options{ARM64: ARM64Options{DTB: sizeOnly(1 << 40)}}, "device tree: read"},
		{"big device tree", small, Options{ARM64: ARM64Options{DTB: initrd(fdtRoom + 1)}}, "device tree: 65537 bytes"},
		{"command line", small, Options{Params: strings.Repeat("x", 2048)}, "at most 2047"},
	} {
		img, err := open(c.file)
		if err == nil {
			_, err = img.Plan(c.o)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v: want it to say %q", c.name, err, c.want)
		}
	}
}

func TestDeviceTreeGiven(t *testing.T) {
	img := mustOpen(t, arm64Image(0, mib))
	for m, size := range map[Machine]int{MachineVirt: 100, MachineLKVM: fdtRoom} {
		b := region(t, mustPlan(t, img, Options{Machine: m, ARM64: ARM64Options{DTB: initrd(100)}}), "device tree")
		if len(b) != size || !bytes.Equal(bytes.TrimRight(b, "\x00"), bytes.Repeat([]byte{'i'}, 100)) {
			t.Errorf("%s: %d bytes, want the tree given in %d", m, len(b), size)
		}
	}
}

func TestMPIDR(t *testing.T) {
	for vcpu, want := range map[int]uint64{0: 0, 15: 0xf, 16: 0x100, 255: 0xf0f, 4096: 0x10000} {
		if got := MPIDR(vcpu); got != want {
			t.Errorf("vCPU %d: %#x, want %#x", vcpu, got, want)
		}
	}
}

func pciDevices(p *Platform) int {
	if p.PCI == nil {
		return 0
	}
	return len(p.PCI.Devices)
}

// Firmware lies at the start of RAM with the device tree behind it, in a realm
// at the end of RAM (kvmtool arm/kvm.c, kvm__load_firmware, and its branch's).
func TestFirmwareARM64(t *testing.T) {
	fw := bytes.Repeat([]byte("fw!\n"), 3<<18) // 3 MiB
	img, err := OpenFirmwareARM64(bytes.NewReader(fw), int64(len(fw)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		realm bool
		tree  memory.GPA
	}{{false, 0x80400000}, {true, 0x9fe00000}} {
		p := mustPlan(t, img, Options{Memory: 512 * mib, Machine: MachineLKVM, Params: "a b", Raw: true, ARM64: ARM64Options{Realm: c.realm}})
		if p.Entry != 0x80000000 || p.ARM64.X[0] != uint64(c.tree) || p.Cmdline != "a b" || !bytes.Equal(region(t, p, "kernel"), fw) {
			t.Errorf("entry %#x, tree at %#x, %q", uint64(p.Entry), p.ARM64.X[0], p.Cmdline)
		}
	}
	if _, err := img.Plan(Options{Memory: 4 * mib, Machine: MachineLKVM}); err == nil {
		t.Error("4 MiB of RAM are enough")
	}
	if _, err := OpenFirmwareARM64(bytes.NewReader(fw[:63]), 64); err == nil {
		t.Error("a file that ends early is firmware")
	}
}

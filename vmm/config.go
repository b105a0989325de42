package vmm

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/cca"
	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/devices/virtio"
	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// Config describes a VM. The zero value of a field is its default.
type Config struct {
	Image   string // kernel or unikernel file; with Firmware what it is to boot, or ""
	Initrd  string // initial RAM disk file
	Name    string // for messages; the image's file name by default
	Memory  uint64 // bytes of RAM; 0: what suits the image
	CPUs    int    // vCPUs, 1 by default
	Machine boot.Machine

	Firmware string // boot firmware file (OVMF); "": none

	Params  string   // kernel parameters, kept byte for byte
	Args    []string // the application's arguments
	NoAuto  bool     // add no netdev.ip= or vfs.fstab= for Unikraft images
	Raw     bool     // Params are a Linux guest's whole command line
	Unnamed bool     // Params begin with word 0, for guests that have one
	Disks   []Disk
	Nets    []Net
	Shares  []Share
	RNG     Switch
	Vsock   *Vsock // nil: none
	Balloon bool
	Console Console

	CET       cet.Policy // whether the guest sees CET; by default what the host has
	CETPreset cet.Preset // what of CET is on before the first instruction; "" leaves it to the guest
	CETAudit  cet.Audit  // single-step the guest and check its returns and branches; "" for not

	ARM64 boot.ARM64Options // arm64 guests: what the user chose; zero leaves it to image and host
	// DumpDTB is a file to write the guest's device tree to; "": none.
	DumpDTB string

	SNP *SNP // launch it as an AMD SEV-SNP guest; nil: as an ordinary one

	Realm *cca.Config // launch it as an Arm CCA realm; nil: as an ordinary guest

	Stdin  io.Reader // console input; nil: none
	Stdout io.Writer // console output, byte for byte; nil: discarded
	Log    *slog.Logger

	// NetProgram is the program of user networks and its first arguments; nil:
	// gvmm-net, beside this program or in PATH.
	NetProgram []string

	Kernel kvm.Kernel // whose KVM it is; nil: the host's
}

// Switch turns a device on or off, or leaves the choice to the monitor.
type Switch int

// The positions of a [Switch].
const (
	Auto Switch = iota
	On
	Off
)

// Console chooses the device that carries the guest's console.
type Console string

// The consoles.
const (
	SerialConsole Console = "serial"
	VirtioConsole Console = "virtio"
)

// Disk is a virtio-blk device backed by an image file or a block device.
type Disk struct {
	Path     string
	ReadOnly bool
	Direct   bool   // bypass the host's page cache (O_DIRECT)
	Format   string // "raw" or "qcow2"; "": qcow2 where both name and contents say so
	Serial   string // at most 20 bytes
	Queues   int    // at most [virtio.MaxBlkQueues]; 0: one a vCPU, at most 4
}

// Net is a virtio-net device.
type Net struct {
	User     bool             // user network, no privileges needed: the program gvmm-net, beside this one or in PATH
	Forwards []netdev.Forward // host ports that lead to the guest, for a user network
	Passt    string           // Unix socket of passt, unless ""
	Tap      string           // interface name, without the above; "" lets the kernel choose
	MAC      string           // "" makes one up
	// Guest and Gateway are the addresses on a user network, both of one /24;
	// zero: 10.0.2.15 and 10.0.2.2.
	Guest, Gateway netip.Addr

	// Backend is the caller's own network in the place of all that; it is closed
	// with the VM. With usernet.New a user network is in this process.
	Backend netdev.Backend
}

// Vsock is a virtio socket device: the guest's address, and the Unix socket
// that programs on the host connect to ([virtio.Vsock]).
type Vsock struct {
	CID  uint32
	Path string
}

// Share is a host directory the guest mounts by 9p.
type Share struct {
	Dir      string
	Tag      string
	ReadOnly bool
}

// SNP is how a guest is launched under AMD SEV-SNP. The zero value launches with
// the policy [sev.DefaultPolicy].
type SNP struct {
	Policy       uint64   // guest policy; 0: the default one
	Features     uint64   // SEV_FEATURES besides bit 0, SNP active
	IDBlock      []byte   // 96 bytes; nil: none
	IDAuth       []byte   // 4096 bytes, with an ID block
	HostData     [32]byte // goes into every report
	VCEKDisabled bool     // reports are signed by the VLEK only
	Certs        string   // file with the certificates for extended guest requests; "": none
	CBit         int      // the page table bit that makes memory private; 0: 51
}

// Limits of a [Config].
const (
	MaxCPUs   = 64 // vCPUs of a VM
	maxSerial = 20
	maxTag    = 31
)

// check refuses what cannot work, naming the flag that set it.
func (c *Config) check() error {
	switch {
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return fmt.Errorf("--cpus %d: give 1 to %d", c.CPUs, MaxCPUs)
	case c.Memory%4096 != 0:
		return fmt.Errorf("--memory %d: not a whole number of 4 KiB pages", c.Memory)
	case !slices.Contains([]boot.IRQChip{"", boot.GICv2, boot.GICv3, boot.GICv3ITS}, c.ARM64.IRQChip):
		return fmt.Errorf("--irqchip %q: give gicv2, gicv3 or gicv3-its", c.ARM64.IRQChip)
	case c.Console != SerialConsole && c.Console != VirtioConsole:
		return fmt.Errorf("--console %q: give serial or virtio", c.Console)
	}
	if err := cet.Check(c.CET, c.CETPreset, c.CETAudit); err != nil {
		return err
	}
	if c.Realm != nil {
		if err := c.Realm.Check(); err != nil {
			return fmt.Errorf("--realm: %w", err)
		}
		if c.ARM64.PMU && !c.Realm.PMU {
			return errors.New("--pmu: a realm's PMU is part of its measurement: say with how many counters by --realm=pmu-counters=N")
		}
		c.ARM64.Realm, c.ARM64.PMU = true, c.Realm.PMU
	}
	if c.SNP != nil && (c.CETAudit != "" || c.CETPreset != "") {
		return errors.New("--sev-snp: the guest's registers are its own: it goes with neither --cet-audit nor --cet-preset")
	}
	if c.SNP != nil && (c.SNP.IDBlock != nil || c.SNP.IDAuth != nil) && (len(c.SNP.IDBlock) != sev.IDBlockSize || len(c.SNP.IDAuth) != sev.IDAuthSize) {
		return fmt.Errorf("--sev-snp: ID block of %d bytes, ID authentication page of %d: want %d and %d",
			len(c.SNP.IDBlock), len(c.SNP.IDAuth), sev.IDBlockSize, sev.IDAuthSize)
	}
	for _, d := range c.Disks {
		if len(d.Serial) > maxSerial {
			return fmt.Errorf("--disk %s: serial %q is longer than %d bytes", d.Path, d.Serial, maxSerial)
		}
		if d.Queues < 0 || d.Queues > virtio.MaxBlkQueues {
			return fmt.Errorf("--disk %s: %d queues: give 1 to %d", d.Path, d.Queues, virtio.MaxBlkQueues)
		}
	}
	tags := map[string]bool{}
	for _, s := range c.Shares {
		if s.Tag == "" || len(s.Tag) > maxTag {
			return fmt.Errorf("--volume %s: tag %q: give 1 to %d bytes", s.Dir, s.Tag, maxTag)
		}
		if tags[s.Tag] {
			return fmt.Errorf("--volume %s: tag %q is used twice", s.Dir, s.Tag)
		}
		tags[s.Tag] = true
	}
	return nil
}

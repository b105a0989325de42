package driver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// Config is what a launch carries besides its ranges.
type Config struct {
	Policy   uint64 // guest policy
	Features uint64 // SEV_FEATURES besides bit 0
	End      kvm.LaunchEnd
	Certs    bool // requests for certificates come as exits
	Log      *slog.Logger
}

// Launch is a launch under way, and the secure processor's descriptor, which KVM
// needs while the guest runs.
type Launch struct {
	*kvm.SEV
	cfg    Config
	buffer []byte // pages on their way
}

const (
	bufferSize = 2 << 20
	maxRetries = 1000 // of a call that makes no progress, retryAfter apart
	retryAfter = time.Millisecond

	cpuidEntries   = 64 // of a CPUID page (AMD 56860, table 14)
	invalidParam   = 0x16
	badMeasurement = 0x0b

	mustBeOne   = 1 << 17
	migrateMA   = 1 << 18
	oldPolicies = 0x1bffff // what KVM took before it said (Linux 6.11)
)

// check refuses what KVM on this host would, and says it better.
func (c *Config) check(sys *kvm.System) error {
	accepted, err := sys.DeviceAttr(kvm.GroupSEV, kvm.SEVPolicyBits)
	if err != nil {
		accepted = oldPolicies
	}
	switch {
	case c.Policy&mustBeOne == 0:
		return fmt.Errorf("guest policy %#x: bit 17 must be one", c.Policy)
	case c.Policy&migrateMA != 0:
		return fmt.Errorf("guest policy %#x: KVM launches no guest with a migration agent (bit 18)", c.Policy)
	case c.Policy&^accepted != 0:
		return fmt.Errorf("guest policy %#x: this host's KVM does not take the bits %#x %v (it takes %#x): leave them out, or run a newer kernel",
			c.Policy, c.Policy&^accepted, policyBits(c.Policy&^accepted), accepted)
	}
	if c.Features &^= sev.FeatureSNP; c.Features != 0 {
		offered, err := sys.DeviceAttr(kvm.GroupSEV, kvm.SEVVMSAFeatures)
		if extra := c.Features &^ offered; err != nil || extra != 0 {
			return fmt.Errorf("SEV features %#x: this host's KVM offers %#x: leave out %#x", c.Features, offered, extra)
		}
	}
	if c.Certs && !sys.HasDeviceAttr(kvm.GroupSEV, kvm.SEVReqCerts) {
		return errors.New("certs=: this host's KVM does not pass on requests for certificates (Linux 7.0 does): leave it out, the guest's owner can fetch them from AMD")
	}
	return nil
}

// policyBits names bits of a guest policy (AMD 56860, table 9).
func policyBits(policy uint64) (names []string) {
	for i, name := range [...]string{19: "DEBUG", "SINGLE_SOCKET", "CXL_ALLOW", "MEM_AES_256_XTS", "RAPL_DIS", "CIPHERTEXT_HIDING_DRAM", "PAGE_SWAP_DISABLE"} {
		if name != "" && policy>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

// Begin makes a fresh VM of [kvm.VMTypeSNP] an SNP guest and starts its launch.
// What it refuses is the host's fault or asks too much of it.
func Begin(sys *kvm.System, vm *kvm.VM, cfg Config) (*Launch, error) {
	if err := cfg.check(sys); err != nil {
		return nil, err
	}
	s, err := vm.OpenSEV()
	if err != nil {
		return nil, fmt.Errorf("%w: load the ccp module and give this user read and write access to it", err)
	}
	l := &Launch{SEV: s, cfg: cfg}
	if err = l.begin(vm); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Launch) begin(vm *kvm.VM) error {
	if err := l.Init(l.cfg.Features); errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("%w: no ASID left for it: end other guests, or give SNP guests more in the BIOS (SEV-ES ASID space limit)", explain(err))
	} else if err != nil {
		return explain(err)
	}
	if err := vm.EnableCap(kvm.CapExitHypercall, 1<<kvm.HypercallMapGPA); err != nil {
		return fmt.Errorf("page state changes: %w", err)
	}
	if l.cfg.Certs {
		if err := l.EnableReqCerts(); err != nil {
			return explain(err)
		}
	}
	return explain(l.Start(l.cfg.Policy))
}

// explain adds the meaning of a firmware error.
func explain(err error) error {
	e := (*kvm.SEVError)(nil)
	switch {
	case !errors.As(err, &e):
		return err
	case e.Firmware != 0:
		return fmt.Errorf("%s: %w (%s)", e.Command, e.Err, firmwareError(e.Firmware))
	default:
		return fmt.Errorf("%s: %w (from KVM, not the firmware)", e.Command, e.Err)
	}
}

// Finish launches the ranges, all of them private memory, and the vCPUs, and ends
// the launch. ranges come from [sev.PlanRanges]; cpuid is the CPUID page.
func (l *Launch) Finish(ranges []sev.Range, cpuid []byte) error {
	var err error
	// Not Go's memory: KVM leaves addresses in it, and behind it, in its structures.
	if l.buffer, err = unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("launch buffer: %w", err)
	}
	defer func() { _ = unix.Munmap(l.buffer) }()
	for _, r := range ranges {
		switch r.Type {
		case sev.PageVMSA: // KVM makes and launches them
		case sev.PageCPUID:
			err = l.launchCPUID(r, cpuid)
		default:
			err = l.launch(r)
		}
		if err != nil {
			return fmt.Errorf("launch %s: %w", r.Name, explain(err))
		}
	}
	err = l.SEV.Finish(&l.cfg.End)
	e := (*kvm.SEVError)(nil)
	if !errors.As(err, &e) || e.Firmware != badMeasurement || len(l.cfg.End.IDBlock) < len(sev.Digest{}) {
		return explain(err)
	}
	var c sev.Chain
	for _, r := range ranges {
		if err := c.Add(r); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the ID block is for digest %x, this launch's is predicted as %v: `gvmm measure snp --explain` with the same flags shows its parts",
		explain(err), l.cfg.End.IDBlock[:len(sev.Digest{})], c.Digest())
}

// launch launches a range of any other type.
func (l *Launch) launch(r sev.Range) error {
	if r.Type == sev.PageZero {
		return l.update(uint8(r.Type), r.GPA, r.Size, nil)
	}
	for off := uint64(0); off < r.Size; off += bufferSize {
		p := l.buffer[:min(bufferSize, r.Size-off)]
		var n int64
		if r.Type == sev.PageNormal && r.Data != nil {
			if n = min(int64(len(p)), r.Data.Size()-int64(off)); n > 0 {
				if k, err := r.Data.ReadAt(p[:n], int64(off)); int64(k) != n {
					return fmt.Errorf("at offset %#x: %w", off+uint64(k), err)
				}
			}
		}
		clear(p[max(0, n):])
		if err := l.update(uint8(r.Type), r.GPA+off, uint64(len(p)), p); err != nil {
			return err
		}
	}
	return nil
}

// update launches pages: KVM may do some of them only, or ask to be called again.
// A signal between the calls comes as EIO without a firmware error.
func (l *Launch) update(kind uint8, gpa, size uint64, src []byte) error {
	for retries := 0; size > 0; {
		n, err := l.Update(kind, gpa, size, src)
		e := (*kvm.SEVError)(nil)
		switch {
		case err == nil && n > 0:
			retries = 0
		case retries < maxRetries && (err == nil || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) ||
			errors.Is(err, unix.EIO) && errors.As(err, &e) && e.Firmware == 0):
			retries++
			time.Sleep(retryAfter)
		case err == nil:
			return fmt.Errorf("pages at %#x: KVM makes no progress", gpa)
		default:
			return err
		}
		gpa, size = gpa+n, size-n
		if src != nil {
			src = src[n:]
		}
	}
	return nil
}

// launchCPUID launches a CPUID page. A table that claims what the processor does
// not have comes back corrected, and is then launched that way.
func (l *Launch) launchCPUID(r sev.Range, page []byte) error {
	p := l.buffer[:sev.PageSize]
	copy(p, page)
	err := l.update(uint8(r.Type), r.GPA, uint64(len(p)), p)
	if e := (*kvm.SEVError)(nil); !errors.As(err, &e) || e.Firmware != invalidParam {
		return err
	}
	changes := cpuidChanges(page, p)
	if changes == nil {
		return fmt.Errorf("%w: and says not where", explain(err))
	}
	for _, c := range changes {
		l.cfg.Log.Warn("the secure processor corrected the guest's CPUID table", "entry", c)
	}
	if err := l.update(uint8(r.Type), r.GPA, uint64(len(p)), p); err != nil {
		return fmt.Errorf("%w: it refused its own correction, too: %s", explain(err), strings.Join(changes, "; "))
	}
	return nil
}

// cpuidChanges says how a corrected CPUID page differs from the one that was
// given: what it takes away, and what it adds, which nobody has asked for.
func cpuidChanges(given, corrected []byte) []string {
	word := binary.LittleEndian.Uint32
	var changes []string
	for i := range cpuidEntries {
		at := 16 + 48*i
		g, c := given[at:at+48], corrected[at:at+48]
		if slices.Equal(g, c) {
			continue
		}
		var parts []string
		for _, f := range []struct {
			at   int
			name string
		}{{0, "function"}, {4, "index"}, {8, "XCR0"}, {16, "XSS"}, {24, "EAX"}, {28, "EBX"}, {32, "ECX"}, {36, "EDX"}} {
			was, is := word(g[f.at:]), word(c[f.at:])
			if lost := was &^ is; lost != 0 {
				parts = append(parts, fmt.Sprintf("%s loses %#x", f.name, lost))
			}
			if added := is &^ was; added != 0 {
				parts = append(parts, fmt.Sprintf("%s WIDENS by %#x", f.name, added))
			}
		}
		changes = append(changes, fmt.Sprintf("leaf %#x.%d: %s", word(g), word(g[4:]), strings.Join(parts, ", ")))
	}
	if was, is := word(given), word(corrected); was != is {
		changes = append(changes, fmt.Sprintf("number of entries: %d, was %d", is, was))
	}
	return changes
}

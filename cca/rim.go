package cca

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Granule is the unit of realm memory in bytes (DEN0137 A2.2).
const Granule = 4096

// Version is the major version of the RMM specification by which a realm is
// measured: in 2.0 RMI_RTT_INIT_RIPAS no longer extends the RIM.
type Version int

// The versions.
const (
	RMM1 Version = 1
	RMM2 Version = 2
)

// Hash is a measurement algorithm (DEN0137 B4.4.6, RmiHashAlgorithm).
type Hash uint8

// The measurement algorithms.
const (
	SHA256 Hash = 0
	SHA512 Hash = 1
)

// ParseHash reads kvmtool's names, sha256 and sha512.
func ParseHash(s string) (Hash, error) {
	switch s {
	case "sha256":
		return SHA256, nil
	case "sha512":
		return SHA512, nil
	}
	return 0, fmt.Errorf("hash %q: a realm is measured with sha256 or sha512", s)
}

// Size returns the length of a measurement in bytes.
func (h Hash) Size() int {
	if h == SHA512 {
		return sha512.Size
	}
	return sha256.Size
}

// measurement is one measurement register, 64 bytes, padded with zeros.
type measurement [64]byte

func (h Hash) sum(b []byte) (m measurement) {
	if h == SHA512 {
		return sha512.Sum512(b)
	}
	s := sha256.Sum256(b)
	copy(m[:], s[:])
	return m
}

// Params are the parameters of a realm that RMI_REALM_CREATE measures. The
// personalization value is none of them: it is a claim of its own.
type Params struct {
	Hash    Hash
	IPABits uint8 // width of the IPA space, 32 to 52; the upper half is unprotected
	LPA2    bool  // needed for more than 48 bits

	// Breakpoints and Watchpoints are as in ID_AA64DFR0_EL1: one less than there are.
	Breakpoints, Watchpoints uint8

	SVE         uint16 // vector length in bits, 0 without SVE
	PMU         bool
	PMUCounters uint8
}

func (p Params) check() error {
	switch {
	case p.Hash != SHA256 && p.Hash != SHA512:
		return fmt.Errorf("hash algorithm %d: the RMM knows 0 (SHA-256) and 1 (SHA-512)", p.Hash)
	case p.IPABits < 32 || p.IPABits > 52:
		return fmt.Errorf("%d IPA bits: a realm has 32 to 52", p.IPABits)
	case p.IPABits > 48 && !p.LPA2:
		return fmt.Errorf("%d IPA bits: more than 48 need LPA2", p.IPABits)
	case p.Breakpoints > 63 || p.Watchpoints > 63:
		return fmt.Errorf("%d breakpoints, %d watchpoints: the fields are at most 63", p.Breakpoints, p.Watchpoints)
	case p.SVE%128 != 0 || p.SVE > 2048:
		return fmt.Errorf("SVE vector length %d: a multiple of 128 bits up to 2048", p.SVE)
	case p.PMUCounters > 31 || !p.PMU && p.PMUCounters != 0:
		return fmt.Errorf("%d PMU counters: at most 31, and none without a PMU", p.PMUCounters)
	}
	return nil
}

// REC is the state of a vCPU that RMI_REC_CREATE measures.
type REC struct {
	Runnable bool // runs at activation; the others are started by PSCI and are not measured
	PC       uint64
	GPRs     [8]uint64 // x0 to x7
}

// Step is one extension of the RIM.
type Step struct {
	Call      string     // the RMI call
	Base, Top memory.GPA // the range it was about, Top exclusive; both 0 where there is none
	Detail    string     // parameters, for people
	Content   []byte     // hash of what was measured, nil where nothing was hashed
	RIM       []byte     // the RIM behind it
}

func (s Step) String() string {
	at, content := s.Detail, ""
	if s.Top != 0 {
		at = memory.Range{Base: s.Base, Size: uint64(s.Top - s.Base)}.String()
	}
	if s.Content != nil {
		content = fmt.Sprintf("content %x ", s.Content)
	}
	return fmt.Sprintf("%-18s %s %srim %x", s.Call, at, content, s.RIM)
}

// RIM is a Realm Initial Measurement in the making. Its methods are the RMI
// calls that extend it; the order of the calls is part of the measurement.
type RIM struct {
	// Trace, where not nil, is called behind each extension. What its argument
	// points to is the callee's to keep.
	Trace func(Step)

	version Version
	params  Params
	value   measurement
	blocks  []uint64 // sizes of RTT entries in bytes, descending

	populated []memory.Range // which RIPAS calls behind it leave out
}

// Create starts a measurement as RMI_REALM_CREATE does (DEN0137 B4.3.9.4): the
// RIM is the hash of an RmiRealmParams with nothing but what Params says.
func Create(v Version, p Params, trace func(Step)) (*RIM, error) {
	if v != RMM1 && v != RMM2 {
		return nil, fmt.Errorf("RMM version %d: measurements are known for 1 and 2", v)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("realm parameters: %w", err)
	}
	var b [Granule]byte // all fields are little-endian and 64 bits apart
	var flags byte
	if p.LPA2 {
		flags |= 1
	}
	if p.SVE != 0 {
		flags |= 2
		b[0x10] = byte(p.SVE/128 - 1)
	}
	if p.PMU {
		flags |= 4
		b[0x28] = p.PMUCounters
	}
	b[0], b[8], b[0x18], b[0x20], b[0x30] = flags, p.IPABits, p.Breakpoints, p.Watchpoints, byte(p.Hash)
	r := &RIM{Trace: trace, version: v, params: p, value: p.Hash.sum(b[:]), blocks: blockSizes(p.IPABits)}
	if trace != nil {
		r.step(Step{Call: "RMI_REALM_CREATE", Detail: fmt.Sprintf("flags %#x s2sz %d sve_vl %d num_bps %d num_wps %d pmu_num_ctrs %d hash_algo %d",
			flags, p.IPABits, b[0x10], p.Breakpoints, p.Watchpoints, p.PMUCounters, p.Hash)})
	}
	return r, nil
}

// Value returns the RIM as tokens carry it: 32 or 64 bytes.
func (r *RIM) Value() []byte { return append([]byte(nil), r.value[:r.params.Hash.Size()]...) }

func (r *RIM) step(s Step) {
	if r.Trace != nil {
		s.RIM = r.Value()
		r.Trace(s)
	}
}

// The measurement descriptors of DEN0137: RmmMeasurementDescriptorData, -Rec
// and -Ripas.
const (
	descData  = 0
	descREC   = 1
	descRIPAS = 2
	descSize  = 0x100
)

// extend replaces the RIM by the hash of a descriptor that has the old one at
// 0x10 and the two words and the content from 0x50 on.
func (r *RIM) extend(kind byte, words []uint64, content *measurement) {
	var d [descSize]byte
	d[0] = kind
	binary.LittleEndian.PutUint64(d[8:], descSize)
	copy(d[0x10:], r.value[:])
	at := 0x50
	for _, w := range words {
		binary.LittleEndian.PutUint64(d[at:], w)
		at += 8
	}
	if content != nil {
		copy(d[at:], content[:])
	}
	r.value = r.params.Hash.sum(d[:])
}

// InitRIPAS measures RMI_RTT_INIT_RIPAS calls that set [base, top) to RAM: one
// extension for each RTT entry, of the largest block that fits, as KVM makes
// them (DEN0137 B4.3.19; KVM maps with concatenated start tables). Granules that
// have data are RAM already and stand in an entry of their own, which is skipped.
// Under RMM 2.0 it checks its arguments and measures nothing.
func (r *RIM) InitRIPAS(base, top memory.GPA) error {
	if err := r.checkRange(base, top); err != nil {
		return fmt.Errorf("RIPAS: %w", err)
	}
	if r.version >= RMM2 {
		return nil
	}
	for base < top {
		size := uint64(0)
		for _, b := range r.blocks {
			if uint64(base)%b == 0 && uint64(top-base) >= b && !slices.ContainsFunc(r.populated, func(p memory.Range) bool {
				return p.Base < base+memory.GPA(b) && base < p.End()
			}) {
				size = b
				break
			}
		}
		next := base + memory.GPA(max(size, Granule))
		if size != 0 {
			r.extend(descRIPAS, []uint64{uint64(base), uint64(next)}, nil)
			r.step(Step{Call: "RMI_RTT_INIT_RIPAS", Base: base, Top: next})
		}
		base = next
	}
	return nil
}

// Data measures RMI_DATA_CREATE (in RMM 2.0 RMI_RTT_DATA_MAP_INIT) of the
// granule at ipa. content has [Granule] bytes, or is nil for a granule whose
// content the host does not have measured; its address is measured then too.
func (r *RIM) Data(ipa memory.GPA, content []byte) error {
	if err := r.checkRange(ipa, ipa+Granule); err != nil {
		return fmt.Errorf("data granule: %w", err)
	}
	if content == nil {
		r.data(ipa, nil)
		return nil
	}
	if len(content) != Granule {
		return fmt.Errorf("data granule %#x: %d bytes of content, a granule has %d", uint64(ipa), len(content), Granule)
	}
	sum := r.params.Hash.sum(content)
	r.data(ipa, &sum)
	return nil
}

func (r *RIM) data(ipa memory.GPA, sum *measurement) {
	var measured uint64 // RMI_MEASURE_CONTENT
	if sum != nil {
		measured = 1
	}
	r.extend(descData, []uint64{uint64(ipa), measured}, sum)
	if n := len(r.populated); n > 0 && r.populated[n-1].End() == ipa {
		r.populated[n-1].Size += Granule
	} else {
		r.populated = append(r.populated, memory.Range{Base: ipa, Size: Granule})
	}
	if r.Trace == nil {
		return
	}
	s := Step{Call: "RMI_DATA_CREATE", Base: ipa, Top: ipa + Granule}
	if sum != nil {
		s.Content = append([]byte(nil), sum[:r.params.Hash.Size()]...)
	}
	r.step(s)
}

// REC measures RMI_REC_CREATE (DEN0137 B4.3.12.4). A REC that is not runnable
// extends nothing.
func (r *RIM) REC(c REC) {
	if !c.Runnable {
		return
	}
	var b [Granule]byte // RmiRecParams with flags, pc and gprs
	b[0] = 1
	binary.LittleEndian.PutUint64(b[0x200:], c.PC)
	for i, x := range c.GPRs {
		binary.LittleEndian.PutUint64(b[0x300+8*i:], x)
	}
	sum := r.params.Hash.sum(b[:])
	r.extend(descREC, nil, &sum)
	if r.Trace != nil {
		r.step(Step{Call: "RMI_REC_CREATE", Detail: fmt.Sprintf("pc %#x x0-x7 %#x", c.PC, c.GPRs), Content: append([]byte(nil), sum[:r.params.Hash.Size()]...)})
	}
}

// checkRange refuses what the RMM refuses: ranges that are empty, not whole
// granules, or not in the protected half of the IPA space.
func (r *RIM) checkRange(base, top memory.GPA) error {
	limit := memory.GPA(1) << (r.params.IPABits - 1)
	switch {
	case base >= top:
		return fmt.Errorf("range %#x to %#x is empty", uint64(base), uint64(top))
	case base%Granule != 0 || top%Granule != 0:
		return fmt.Errorf("range %#x to %#x is not whole granules of %d bytes", uint64(base), uint64(top), Granule)
	case top > limit:
		return fmt.Errorf("range %#x to %#x goes beyond %#x, the protected half of %d IPA bits", uint64(base), uint64(top), uint64(limit), r.params.IPABits)
	}
	return nil
}

// blockSizes returns the sizes of the entries that a realm's translation tables
// can have, descending. KVM, and so the RMM, starts with up to 16 concatenated
// tables, which saves a level where its index would have 4 bits or less.
func blockSizes(ipaBits uint8) []uint64 {
	const page, perLevel = 12, 9
	index := int(ipaBits) - page
	levels := (index + perLevel - 1) / perLevel
	if index-perLevel*(levels-1) <= 4 {
		levels--
	}
	sizes := make([]uint64, 0, levels)
	for l := levels - 1; l >= 0; l-- {
		sizes = append(sizes, 1<<(page+perLevel*l))
	}
	return sizes
}

// ipaBitsFor returns the IPA bits that kvmtool asks for: what the last byte of
// RAM needs, at least 32, and one more for the unprotected half.
func ipaBitsFor(last memory.GPA) uint8 { return uint8(max(32, bits.Len64(uint64(last))) + 1) }

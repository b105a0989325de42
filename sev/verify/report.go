package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// ReportSize is a report's size in bytes.
const ReportSize = 0x4a0

// Offsets in a report (AMD 56860, table 23).
const (
	offSignature = 0x2a0 // what is before it is signed
	numSize      = 72    // r and s, little-endian
)

// Signer is the kind of key that signed a report.
type Signer uint8

// The kinds of key.
const (
	VCEK     Signer = 0 // of the chip
	VLEK     Signer = 1 // of the cloud provider
	Unsigned Signer = 7
)

func (s Signer) String() string {
	switch s {
	case VCEK:
		return "VCEK"
	case VLEK:
		return "VLEK"
	}
	return fmt.Sprintf("signer %d", uint8(s))
}

// Report is an attestation report whose format has been checked.
type Report struct {
	Version, GuestSVN, VMPL                      uint32
	Policy, PlatformInfo                         uint64
	ChipID                                       []byte
	ReportedTCB, CommittedTCB, LaunchTCB         uint64
	LaunchMitigations, CurrentMitigations        uint64
	CommittedBuild, CommittedMinor, CommittedMaj uint8
	Family, Model                                uint8 // 0, 0 before version 3
	Signer                                       Signer
	AuthorKey                                    bool // the ID block had one

	raw []byte
}

// ParseReport reads a report of version 2 to 5.
func ParseReport(b []byte) (*Report, error) {
	if len(b) != ReportSize {
		return nil, fmt.Errorf("%d bytes, a report has %d", len(b), ReportSize)
	}
	le := binary.LittleEndian
	info := le.Uint32(b[0x48:])
	r := &Report{
		Version: le.Uint32(b), GuestSVN: le.Uint32(b[4:]), Policy: le.Uint64(b[8:]), VMPL: le.Uint32(b[0x30:]),
		PlatformInfo: le.Uint64(b[0x40:]), Signer: Signer(info >> 2 & 7), AuthorKey: info&1 == 1, ReportedTCB: le.Uint64(b[0x180:]), ChipID: b[0x1a0:0x1e0],
		CommittedTCB: le.Uint64(b[0x1e0:]), CommittedBuild: b[0x1ec], CommittedMinor: b[0x1ed], CommittedMaj: b[0x1ee],
		LaunchTCB: le.Uint64(b[0x1f0:]), LaunchMitigations: le.Uint64(b[0x1f8:]), CurrentMitigations: le.Uint64(b[0x200:]), raw: b,
	}
	reserved := [][2]int{{0x4c, 0x50}, {0x188, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x208, offSignature}, {offSignature + 2*numSize, ReportSize}}
	if r.Version >= 3 {
		r.Family, r.Model = b[0x188], b[0x189]
		reserved[1][0] = 0x18b
	}
	switch {
	case r.Version < 2 || r.Version > 5:
		return nil, fmt.Errorf("version %d, known are 2 to 5", r.Version)
	case r.Policy>>17&1 == 0 || r.Policy>>26 != 0:
		return nil, fmt.Errorf("guest policy %#x is malformed, or newer than this program", r.Policy)
	case info>>5 != 0:
		return nil, fmt.Errorf("signer information %#x has reserved bits", info)
	case le.Uint32(b[0x34:]) != 1:
		return nil, fmt.Errorf("signature algorithm %d, want 1 (ECDSA P-384)", le.Uint32(b[0x34:]))
	}
	for _, at := range reserved {
		if !zero(b[at[0]:at[1]]) {
			return nil, fmt.Errorf("reserved bytes %#x to %#x are not zero", at[0], at[1])
		}
	}
	return r, nil
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// checkSignature checks that key signed the report.
func (r *Report) checkSignature(key *ecdsa.PublicKey) error {
	number := func(at int) *big.Int {
		b := bytes.Clone(r.raw[at : at+numSize])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	sum := sha512.Sum384(r.raw[:offSignature])
	if !ecdsa.Verify(key, sum[:], number(offSignature), number(offSignature+numSize)) {
		return errors.New("the report was changed, or signed by another key")
	}
	return nil
}

// line returns the product line of the chip by its family and model, which
// reports carry from version 3 on; "" if this one does not say.
func (r *Report) line() string {
	if r.Version < 3 {
		return ""
	}
	switch {
	case r.Family == 0x19 && r.Model <= 0x0f:
		return "Milan"
	case r.Family == 0x19 && (r.Model <= 0x1f || r.Model >= 0xa0 && r.Model <= 0xaf): // with Bergamo and Siena
		return "Genoa"
	case r.Family == 0x1a && r.Model <= 0x1f:
		return "Turin"
	}
	return fmt.Sprintf("family %#x model %#x", r.Family, r.Model)
}

// TCB is a set of security patch levels, as minima in a policy.
type TCB struct {
	FMC        uint8 `json:"fmc"` // Turin only
	Bootloader uint8 `json:"bootloader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}

// tcbOf takes a TCB_VERSION apart, whose layout changed with Turin (AMD 56860,
// tables 3 and 4).
func tcbOf(v uint64, line string) TCB {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if line == "Turin" {
		return TCB{FMC: b[0], Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

func (t TCB) String() string {
	return fmt.Sprintf("fmc %d, bootloader %d, tee %d, snp %d, microcode %d", t.FMC, t.Bootloader, t.TEE, t.SNP, t.Microcode)
}

// atLeast is nil if every level of t is at least that of floor.
func (t TCB) atLeast(floor TCB) error {
	var low []string
	for _, l := range []struct {
		name      string
		got, want uint8
	}{
		{"fmc", t.FMC, floor.FMC}, {"bootloader", t.Bootloader, floor.Bootloader}, {"tee", t.TEE, floor.TEE},
		{"snp", t.SNP, floor.SNP}, {"microcode", t.Microcode, floor.Microcode},
	} {
		if l.got < l.want {
			low = append(low, fmt.Sprintf("%s %d, want at least %d", l.name, l.got, l.want))
		}
	}
	if low != nil {
		return errors.New(strings.Join(low, "; "))
	}
	return nil
}

// matches checks that a certificate is for the chip and the firmware levels of
// the report: a chip has a key for every set of levels.
func (r *Report) matches(e extensions, line string) error {
	if product, _, _ := strings.Cut(e.product, "-"); product != line {
		return fmt.Errorf("certificate for product %q under the root of %s", e.product, line)
	}
	if reported := r.line(); reported != "" && reported != line {
		return fmt.Errorf("report of a %s chip, certificate of a %s one", reported, line)
	}
	levels := TCB{e.spl[9], e.spl[1], e.spl[2], e.spl[3], e.spl[8]}
	if got := tcbOf(r.ReportedTCB, line); got != levels {
		return fmt.Errorf("report says %v, certificate is for %v", got, levels)
	}
	if r.Signer == VLEK {
		if e.csp == "" || e.hwid != nil {
			return errors.New("not a VLEK: it names no cloud provider, or a chip")
		}
		return nil
	}
	masked := zero(r.ChipID)
	padded := append(bytes.Clone(e.hwid), make([]byte, len(r.ChipID))...)[:len(r.ChipID)]
	if len(e.hwid) == 0 || !masked && !bytes.Equal(r.ChipID, padded) {
		return fmt.Errorf("certificate of chip %x, report of chip %x", e.hwid, r.ChipID)
	}
	return nil
}

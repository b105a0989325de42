package verify

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/gvmm/gvmm/internal/hexjson"
)

// Hex and OneOf are values of a policy file.
type (
	Hex   = hexjson.Hex
	OneOf = hexjson.OneOf
)

// Policy is what a relying party asks of a report beyond its signature. What is
// left out is not asked for.
type Policy struct {
	Measurement OneOf `json:"measurement"` // from gvmm measure snp
	HostData    OneOf `json:"host_data"`
	ReportData  Hex   `json:"report_data"` // up to 64 bytes, filled up with zeros
	FamilyID    OneOf `json:"family_id"`
	ImageID     OneOf `json:"image_id"`
	ChipID      OneOf `json:"chip_id"`
	IDKey       OneOf `json:"id_key_digest"`     // from gvmm measure snp --id-key
	AuthorKey   OneOf `json:"author_key_digest"` // likewise

	VMPL             []uint32 `json:"vmpl"`
	MinReportVersion *uint32  `json:"min_report_version"`
	MinGuestSVN      *uint32  `json:"min_guest_svn"`
	MinTCB           *TCB     `json:"min_tcb"`           // of the reported TCB, which the key vouches for
	MinCommittedTCB  *TCB     `json:"min_committed_tcb"` // what the host cannot roll back below
	MinLaunchTCB     *TCB     `json:"min_launch_tcb"`    // when the guest was launched
	MinFirmware      []uint8  `json:"min_firmware"`      // committed SNP firmware: major, minor, build

	GuestPolicy map[string]bool `json:"guest_policy"` // bits by name: see policyBits
	Platform    map[string]bool `json:"platform"`     // likewise: see platformBits

	LaunchMitigations  Hex `json:"launch_mitigations"`  // bits that must be set, big-endian, 8 bytes
	CurrentMitigations Hex `json:"current_mitigations"` // likewise

	Product    []string `json:"product"` // Milan, Genoa, Turin
	Signer     []string `json:"signer"`  // VCEK, VLEK
	CSP        []string `json:"csp"`     // cloud provider of a VLEK
	Revocation bool     `json:"revocation"`
}

// policyBits are the guest policy's bits (AMD 56860, table 9).
func policyBits() map[string]uint {
	return map[string]uint{"smt": 16, "migration_agent": 18, "debug": 19, "single_socket": 20, "cxl": 21,
		"aes_256_xts": 22, "rapl_disabled": 23, "ciphertext_hiding": 24, "page_swap_disabled": 25}
}

// platformBits are PLATFORM_INFO's (AMD 56860, table 24).
func platformBits() map[string]uint {
	return map[string]uint{"smt": 0, "tsme": 1, "ecc": 2, "rapl_disabled": 3, "ciphertext_hiding": 4, "alias_check_complete": 5, "tio": 7}
}

const maxPolicy = 1 << 20 // bytes

// ParsePolicy reads a policy in JSON. Names it does not know, empty lists and
// null, which would ask for nothing where they seem to ask, are errors.
func ParsePolicy(data []byte) (*Policy, error) {
	if len(data) > maxPolicy {
		return nil, fmt.Errorf("%d bytes: a policy has at most %d", len(data), maxPolicy)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, err
	}
	text := ":" + compact.String()
	for _, nothing := range []string{":null", "[null", ",null", ":[]", ":{}", `:""`, `"revocation":false`} {
		if i := strings.Index(text, nothing); i >= 0 && text != ":{}" {
			return nil, fmt.Errorf("%s asks for nothing: leave it out, or say what is accepted", text[max(1, i-24):i+len(nothing)])
		}
	}
	p := new(Policy)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(p); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return p, p.Check()
}

// byteField is a field of a report and what a policy asks of it.
type byteField struct {
	name string
	want OneOf
	got  []byte
}

func (p *Policy) byteFields(r *Report) []byteField {
	return []byteField{
		{"measurement", p.Measurement, r.raw[0x90:0xc0]}, {"host_data", p.HostData, r.raw[0xc0:0xe0]},
		{"family_id", p.FamilyID, r.raw[0x10:0x20]}, {"image_id", p.ImageID, r.raw[0x20:0x30]}, {"chip_id", p.ChipID, r.raw[0x1a0:0x1e0]},
		{"id_key_digest", p.IDKey, r.raw[0xe0:0x110]}, {"author_key_digest", p.AuthorKey, r.raw[0x110:0x140]},
	}
}

// Check refuses a policy that asks for what no report can have.
func (p *Policy) Check() error {
	var errs []error
	for _, f := range p.byteFields(&Report{raw: make([]byte, ReportSize)}) {
		for _, v := range f.want {
			if len(v) != len(f.got) {
				errs = append(errs, fmt.Errorf("%s: %d bytes, it has %d", f.name, len(v), len(f.got)))
			}
		}
	}
	if p.ReportData != nil && len(p.ReportData) == 0 || len(p.ReportData) > 64 {
		errs = append(errs, fmt.Errorf("report_data: %d bytes, it has 1 to 64", len(p.ReportData)))
	}
	for name, v := range map[string]Hex{"launch_mitigations": p.LaunchMitigations, "current_mitigations": p.CurrentMitigations} {
		if v != nil && len(v) != 8 {
			errs = append(errs, fmt.Errorf("%s: %d bytes, it has 8", name, len(v)))
		}
	}
	if p.MinFirmware != nil && len(p.MinFirmware) != 3 {
		errs = append(errs, errors.New("min_firmware: give three numbers: major, minor, build"))
	}
	for _, f := range []struct {
		name  string
		bits  map[string]bool
		known map[string]uint
	}{{"guest_policy", p.GuestPolicy, policyBits()}, {"platform", p.Platform, platformBits()}} {
		for bit := range f.bits {
			if _, ok := f.known[bit]; !ok {
				errs = append(errs, fmt.Errorf("%s: %q is none of %s", f.name, bit, strings.Join(slices.Sorted(maps.Keys(f.known)), ", ")))
			}
		}
	}
	return errors.Join(errs...)
}

// policy checks every clause of p.
func (v *Verdict) policy(p *Policy, r *Report, e extensions, line string) {
	for _, f := range p.byteFields(r) {
		if f.name == "author_key_digest" && f.want != nil && !r.AuthorKey {
			v.add(f.name, "", errors.New("the guest was launched without an author key"))
			continue
		}
		v.oneOf(f.name, f.want, f.got)
	}
	if p.ReportData != nil {
		v.oneOf("report_data", OneOf{append(bytes.Clone(p.ReportData), make([]byte, 64-len(p.ReportData))...)}, r.raw[0x50:0x90])
	}
	names(v, "vmpl", p.VMPL, r.VMPL)
	names(v, "product", p.Product, line)
	names(v, "signer", p.Signer, r.Signer.String())
	names(v, "csp", p.CSP, e.csp)
	atLeast(v, "min_report_version", p.MinReportVersion, r.Version)
	atLeast(v, "min_guest_svn", p.MinGuestSVN, r.GuestSVN)
	for _, f := range []struct {
		name  string
		floor *TCB
		got   uint64
	}{
		{"min_tcb", p.MinTCB, r.ReportedTCB}, {"min_committed_tcb", p.MinCommittedTCB, r.CommittedTCB}, {"min_launch_tcb", p.MinLaunchTCB, r.LaunchTCB},
	} {
		if f.floor != nil {
			got := tcbOf(f.got, line)
			v.add(f.name, got.String(), got.atLeast(*f.floor))
		}
	}
	if p.MinFirmware != nil {
		got := []uint8{r.CommittedMaj, r.CommittedMinor, r.CommittedBuild}
		v.expect("min_firmware", fmt.Sprintf("%d", got), slices.Compare(got, p.MinFirmware) >= 0, fmt.Sprintf("at least %v", p.MinFirmware))
	}
	v.bits("guest_policy", p.GuestPolicy, policyBits(), r.Policy)
	v.bits("platform", p.Platform, platformBits(), r.PlatformInfo)
	v.mask("launch_mitigations", p.LaunchMitigations, r, r.LaunchMitigations)
	v.mask("current_mitigations", p.CurrentMitigations, r, r.CurrentMitigations)
}

// expect adds a clause that held or wanted something else than was got.
func (v *Verdict) expect(name, got string, held bool, want string) {
	var err error
	if !held {
		err = fmt.Errorf("%s, want %s", got, want)
	}
	v.add(name, got, err)
}

func (v *Verdict) oneOf(name string, want OneOf, got []byte) {
	if want == nil {
		return
	}
	held := slices.ContainsFunc(want, func(w Hex) bool { return bytes.Equal(w, got) })
	v.expect(name, hex.EncodeToString(got), held, fmt.Sprintf("%x", []Hex(want)))
}

func names[T comparable](v *Verdict, name string, want []T, got T) {
	if want != nil {
		v.expect(name, fmt.Sprint(got), slices.Contains(want, got), fmt.Sprint(want))
	}
}

func atLeast(v *Verdict, name string, floor *uint32, got uint32) {
	if floor != nil {
		v.expect(name, fmt.Sprint(got), got >= *floor, fmt.Sprintf("at least %d", *floor))
	}
}

// bits checks each named bit by itself.
func (v *Verdict) bits(name string, want map[string]bool, known map[string]uint, got uint64) {
	for _, bit := range slices.Sorted(maps.Keys(want)) {
		set := got>>known[bit]&1 == 1
		v.expect(name+"."+bit, fmt.Sprint(set), set == want[bit], fmt.Sprint(want[bit]))
	}
}

// mask checks a mitigation vector, which reports carry from version 5 on.
func (v *Verdict) mask(name string, want Hex, r *Report, got uint64) {
	if want == nil {
		return
	}
	if r.Version < 5 {
		v.add(name, "", fmt.Errorf("a report of version %d does not say", r.Version))
		return
	}
	var bits uint64
	for _, b := range want {
		bits = bits<<8 | uint64(b)
	}
	v.expect(name, fmt.Sprintf("%#x", got), got&bits == bits, fmt.Sprintf("at least %#x", bits))
}

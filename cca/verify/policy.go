package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/gvmm/gvmm/internal/hexjson"
)

// Hex and OneOf are values of a policy file.
type (
	Hex   = hexjson.Hex
	OneOf = hexjson.OneOf
)

// Policy is what a relying party asks of a token beyond its signatures. What is
// left out is not asked for, except the lifecycle: it is to be secured.
type Policy struct {
	Challenge  Hex      `json:"challenge"` // up to 64 bytes, filled up with zeros as Linux does
	RIM        OneOf    `json:"rim"`
	REM        []Hex    `json:"rem"` // of register 0, 1, ...; "" is not asked for
	RPV        Hex      `json:"rpv"` // up to 64 bytes, filled up with zeros
	ImplID     OneOf    `json:"implementation_id"`
	InstanceID OneOf    `json:"instance_id"`
	Lifecycle  []string `json:"lifecycle"` // accepted states, by name
	Profile    []string `json:"profile"`   // accepted kinds of token: legacy, current

	// Components lists all software of the platform: each component of the
	// token must be one of these, and each of these must be in the token.
	Components []Component `json:"software_components"`
}

// Component is software of the platform that a policy accepts. What is left
// out may have any value; a measurement or a signer must be given.
type Component struct {
	Type        string `json:"type"`
	Measurement OneOf  `json:"measurement"`
	Version     string `json:"version"`
	Signer      OneOf  `json:"signer"`
}

const maxPolicy = 1 << 20 // bytes

// ParsePolicy reads a policy in JSON. Names it does not know are an error.
func ParsePolicy(data []byte) (Policy, error) {
	var p Policy
	if len(data) > maxPolicy {
		return p, fmt.Errorf("%d bytes: a policy has at most %d", len(data), maxPolicy)
	}
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		t, err := d.Token()
		if err != nil {
			break // the decoding below says it
		}
		if t == nil {
			return p, errors.New("null asks for nothing: leave it out, or say what is accepted")
		}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return p, errors.New("more than one JSON value")
	}
	return p, p.Check()
}

// Check refuses a policy that asks for what no token can have, and one that
// asks for nothing where it seems to ask.
func (p *Policy) Check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	list := func(what string, n int, given bool) {
		if given && n == 0 {
			wrong("%s: an empty list: leave it out, or list what is accepted", what)
		}
	}
	sizes := func(what string, values []Hex, ok ...int) {
		list(what, len(values), values != nil)
		for _, v := range values {
			if !slices.Contains(ok, len(v)) {
				wrong("%s: %d bytes, it has %v", what, len(v), ok)
			}
		}
	}
	names := func(what string, values, known []string) {
		list(what, len(values), values != nil)
		for _, v := range values {
			if !slices.Contains(known, v) {
				wrong("%s: %q is none of %s", what, v, strings.Join(known, ", "))
			}
		}
	}
	padded := func(what string, v Hex) {
		if v != nil && len(v) == 0 || len(v) > 64 {
			wrong("%s: %d bytes, it has 1 to 64", what, len(v))
		}
	}
	padded("challenge", p.Challenge)
	padded("rpv", p.RPV)
	sizes("rim", p.RIM, 32, 48, 64)
	sizes("rem", p.REM, 0, 32, 48, 64)
	if len(p.REM) > 0 && !slices.ContainsFunc(p.REM, func(h Hex) bool { return len(h) > 0 }) {
		wrong("rem: asks for no register: leave it out, or say what one has")
	}
	if len(p.REM) > 4 {
		wrong("rem: %d registers, a realm has 4", len(p.REM))
	}
	sizes("implementation_id", p.ImplID, 32)
	sizes("instance_id", p.InstanceID, 33)
	names("lifecycle", p.Lifecycle, lifecycles())
	names("profile", p.Profile, []string{"legacy", "current"})
	list("software_components", len(p.Components), p.Components != nil)
	for i, c := range p.Components {
		what := fmt.Sprintf("software_components[%d]", i)
		if c.Measurement == nil && c.Signer == nil {
			wrong("%s: neither measurement nor signer", what)
		}
		sizes(what+".measurement", c.Measurement, 32, 48, 64)
		sizes(what+".signer", c.Signer, 32, 48, 64)
	}
	return errors.Join(errs...)
}

// lifecycles returns the states of a platform (DEN0137 A7.2.3.2), in the order
// of their numbers: the state is the number's upper byte, divided by 16.
func lifecycles() []string {
	return []string{"unknown", "assembly-and-test", "rot-provisioning", "secured", "non-cca-debug", "recoverable-cca-debug", "decommissioned"}
}

// lifecycleName returns the state that a lifecycle claim means.
func lifecycleName(v uint16) string {
	if names := lifecycles(); v&0x0f00 == 0 && int(v>>12) < len(names) {
		return names[v>>12]
	}
	return "invalid"
}

// matches says whether a component of a token is what c accepts.
func (c *Component) matches(t *component) bool {
	return (c.Type == "" || c.Type == t.Type) && (c.Version == "" || c.Version == t.Version) &&
		(c.Measurement == nil || accepts(c.Measurement, t.Measurement)) && (c.Signer == nil || accepts(c.Signer, t.Signer))
}

func sameRegister(a, b []byte) bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	return len(b) >= 32 && bytes.HasPrefix(a, b) && len(bytes.Trim(a[len(b):], "\x00")) == 0
}

// accepts says whether got is one of the accepted values. Measurements may be
// filled up with zeros to 64 bytes on either side, as registers are.
func accepts(o OneOf, got []byte) bool {
	return slices.ContainsFunc(o, func(want Hex) bool { return sameRegister(got, want) })
}

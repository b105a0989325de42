package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/veraison/go-cose"
)

// Clause is one thing that was asked of a token.
type Clause struct {
	Name   string `json:"name"`
	Held   bool   `json:"held"`
	Detail string `json:"detail"` // what was found, or why it failed
}

// Verdict is the outcome for each clause.
type Verdict []Clause

// Held says whether everything held.
func (v Verdict) Held() bool {
	return len(v) > 0 && !slices.ContainsFunc(v, func(c Clause) bool { return !c.Held })
}

// add records a clause: it held unless err is set.
func (v *Verdict) add(name, detail string, err error) {
	c := Clause{Name: name, Held: err == nil, Detail: detail}
	if err != nil {
		c.Detail = err.Error()
	}
	c.Detail = strings.Map(func(r rune) rune { // what a token says may go to a terminal
		if r == '\n' {
			return ';'
		} else if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, c.Detail)
	*v = append(*v, c)
}

var errNotSecured = errors.New("a policy with a lifecycle list accepts others")

// Token verifies a token under the platform's key and a policy, which has
// passed [Policy.Check]. Signatures, binding, profiles and lifecycle are always
// clauses; a token that cannot be read fails the clause "token".
func Token(token []byte, key *ecdsa.PublicKey, p *Policy) Verdict {
	var v Verdict
	kind, rawPlatform, rawRealm, err := split(token)
	v.add("token", fmt.Sprintf("%s, %d bytes", kind, len(token)), err)
	if err != nil {
		return v
	}
	var platform platformClaims
	var realm realmClaims
	pm, err := open(rawPlatform, &platform)
	v.add("platform token", deref(platform.Profile), errors.Join(err, platform.check()))
	rm, err := open(rawRealm, &realm)
	detail := "legacy: names no profile"
	if realm.Profile != nil {
		detail = *realm.Profile
	}
	v.add("realm token", detail, errors.Join(err, realm.check()))

	v.signature("platform signature", pm, key, "the platform key", nil)
	rak, what, err := parseRAK(realm.RAK)
	v.signature("realm signature", rm, rak, "the realm attestation key, a "+what, err)
	v.add("binding", "the platform token has the "+deref(realm.RAKHashAlg)+" of the realm attestation key", checkBinding(&platform, &realm))
	v.lifecycle(&platform, p.Lifecycle)
	v.policy(&platform, &realm, p)
	return v
}

func (v *Verdict) signature(name string, m *cose.Sign1Message, key *ecdsa.PublicKey, by string, err error) {
	alg := ""
	switch {
	case err != nil:
	case m == nil:
		err = errors.New("no COSE_Sign1 message to check")
	default:
		alg, err = checkSignature(m, key)
	}
	v.add(name, alg+" by "+by, err)
}

// check says which claims of the platform are missing or malformed.
func (c *platformClaims) check() error {
	w := wrongs{}
	if c.Profile == nil || *c.Profile != platformLegacy && *c.Profile != platformCurrent {
		w.add("profile %q is not known", deref(c.Profile))
	}
	w.size("challenge", c.Challenge, 32, 48, 64)
	w.size("implementation id", c.ImplID, 32)
	w.size("instance id", c.InstanceID, 33)
	if len(c.InstanceID) > 0 && c.InstanceID[0] != 1 {
		w.add("instance id is not a UEID of type RAND")
	}
	if c.Config == nil {
		w.add("no configuration")
	}
	if c.Lifecycle == nil {
		w.add("no lifecycle")
	}
	if _, err := hashNamed(c.HashAlg); err != nil {
		w.add("%v", err)
	}
	if len(c.Components) == 0 {
		w.add("no software components")
	}
	for i, s := range c.Components {
		w.size(fmt.Sprintf("measurement of software component %d", i), s.Measurement, 32, 48, 64)
		w.size(fmt.Sprintf("signer of software component %d", i), s.Signer, 32, 48, 64)
	}
	return w.err()
}

// check says which claims of the realm are missing or malformed.
func (c *realmClaims) check() error {
	w := wrongs{}
	if c.Profile != nil && *c.Profile != realmCurrent {
		w.add("profile %q is not known", *c.Profile)
	}
	w.size("challenge", c.Challenge, 64)
	w.size("personalization value", c.RPV, 64)
	w.size("RIM", c.RIM, 32, 48, 64)
	if len(c.REMs) != 4 {
		w.add("%d extensible measurements, not 4", len(c.REMs))
	}
	for i, m := range c.REMs {
		w.size(fmt.Sprintf("REM %d", i), m, 32, 48, 64)
	}
	for _, alg := range []*string{c.HashAlg, c.RAKHashAlg} {
		if _, err := hashNamed(alg); err != nil {
			w.add("%v", err)
		}
	}
	return w.err()
}

// wrongs collects what is wrong with a set of claims.
type wrongs []string

func (w *wrongs) add(format string, args ...any) { *w = append(*w, fmt.Sprintf(format, args...)) }

func (w *wrongs) size(what string, b []byte, ok ...int) {
	if !slices.Contains(ok, len(b)) {
		w.add("%s has %d bytes, not %v", what, len(b), ok)
	}
}

func (w *wrongs) err() error {
	if len(*w) == 0 {
		return nil
	}
	return errors.New(strings.Join(*w, "; "))
}

// checkBinding holds the platform's challenge against the hash of the realm's
// key, the claim's bytes as they are (DEN0137 A7.2.2).
func checkBinding(p *platformClaims, r *realmClaims) error {
	h, err := hashNamed(r.RAKHashAlg)
	if err != nil {
		return err
	}
	if sum := sumOf(h, r.RAK); !bytes.Equal(sum, p.Challenge) {
		return fmt.Errorf("%s of the realm attestation key is %x, the platform token has %x", deref(r.RAKHashAlg), sum, []byte(p.Challenge))
	}
	return nil
}

func sumOf(h crypto.Hash, b []byte) []byte {
	s := h.New()
	s.Write(b)
	return s.Sum(nil)
}

func (v *Verdict) lifecycle(c *platformClaims, accepted []string) {
	if c.Lifecycle == nil {
		v.add("lifecycle", "", errors.New("absent"))
		return
	}
	name := lifecycleName(*c.Lifecycle)
	detail := fmt.Sprintf("%s (%#x)", name, *c.Lifecycle)
	var err error
	switch {
	case accepted == nil && name != "secured":
		err = fmt.Errorf("%s is not secured: %w", detail, errNotSecured)
	case accepted != nil && !slices.Contains(accepted, name):
		err = fmt.Errorf("%s is none of %s", detail, strings.Join(accepted, ", "))
	}
	v.add("lifecycle", detail, err)
}

// policy adds a clause for each thing the policy asks for.
func (v *Verdict) policy(c *platformClaims, r *realmClaims, p *Policy) {
	oneOf := func(name string, got []byte, want OneOf) {
		if want == nil {
			return
		}
		var err error
		if !accepts(want, got) {
			err = fmt.Errorf("%x, not %s", got, orList(want))
		}
		v.add(name, hex.EncodeToString(got), err)
	}
	padded := func(name string, got, want []byte) {
		if want == nil {
			return
		}
		var full [64]byte
		copy(full[:], want)
		var err error
		if !bytes.Equal(got, full[:]) {
			err = fmt.Errorf("%x, not %x", got, full)
		}
		v.add(name, hex.EncodeToString(got), err)
	}
	if p.Profile != nil {
		kinds := []string{"legacy", "legacy"}
		if deref(c.Profile) == platformCurrent {
			kinds[0] = "current"
		}
		if r.Profile != nil {
			kinds[1] = "current"
		}
		detail := fmt.Sprintf("platform %s, realm %s", kinds[0], kinds[1])
		var err error
		if !slices.Contains(p.Profile, kinds[0]) || !slices.Contains(p.Profile, kinds[1]) {
			err = fmt.Errorf("%s; accepted: %s", detail, strings.Join(p.Profile, ", "))
		}
		v.add("profile", detail, err)
	}
	padded("challenge", r.Challenge, p.Challenge)
	oneOf("RIM", r.RIM, p.RIM)
	for i, want := range p.REM {
		var got []byte
		if i < len(r.REMs) {
			got = r.REMs[i]
		}
		if len(want) > 0 {
			oneOf(fmt.Sprintf("REM %d", i), got, OneOf{want})
		}
	}
	padded("personalization value", r.RPV, p.RPV)
	oneOf("implementation id", c.ImplID, p.ImplID)
	oneOf("instance id", c.InstanceID, p.InstanceID)
	if p.Components != nil {
		v.components(c.Components, p.Components)
	}
}

// components adds a clause for each component of the token, and one for each
// that the policy lists and the token lacks.
func (v *Verdict) components(got []component, want []Component) {
	found := make([]bool, len(want))
	for i := range got {
		t := &got[i]
		err := errors.New("no entry of the policy accepts it")
		for k := range want {
			if want[k].matches(t) {
				found[k], err = true, nil
			}
		}
		what := fmt.Sprintf("%q version %q measurement %x signer %x", t.Type, t.Version, []byte(t.Measurement), []byte(t.Signer))
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		v.add(fmt.Sprintf("software component %d", i), what, err)
	}
	for k, ok := range found {
		if !ok {
			v.add("software components", "", fmt.Errorf("none of the token's is what entry %d of the policy asks for (type %q, measurement %s)", k, want[k].Type, orList(want[k].Measurement)))
		}
	}
}

func orList(o OneOf) string {
	if len(o) == 0 {
		return "any"
	}
	s := make([]string, len(o))
	for i, h := range o {
		s[i] = hex.EncodeToString(h)
	}
	return strings.Join(s, " or ")
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

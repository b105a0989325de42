package verify

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Clause is one thing that was asked of a report.
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

// add records a clause: it held unless err is set. It returns whether it held.
func (v *Verdict) add(name, detail string, err error) bool {
	c := Clause{Name: name, Held: err == nil, Detail: detail}
	if err != nil {
		c.Detail = err.Error()
	}
	*v = append(*v, c)
	return c.Held
}

// Input is what a verdict rests on.
type Input struct {
	Report []byte
	Certs  Certs  // the key's certificate; CA certificates and lists where there are
	Roots  Roots  // what is trusted
	Policy Policy // has passed [Policy.Check]
	Cache  Cache  // "" for none
	Now    time.Time
}

// Check verifies a report. Format, certificate chain, the certificate's match
// with the report, and signature are always clauses; revocation is one where
// there is a list or the policy asks for it. When a clause fails that the others
// rest on, those are not reached.
func (in *Input) Check() Verdict {
	var v Verdict
	r, err := ParseReport(in.Report)
	if err != nil {
		v.add("report", "", err)
		return v
	}
	v.add("report", fmt.Sprintf("version %d, signed by a %s", r.Version, r.Signer), nil)
	key := in.Certs.vcek
	switch r.Signer {
	case VCEK:
	case VLEK:
		key = in.Certs.vlek
	default:
		v.add("chain", "", errors.New("the report is not signed"))
		return v
	}
	if key == nil {
		v.add("chain", "", fmt.Errorf("no %s certificate given: a host hands it over with the report, and AMD's key service has it", r.Signer))
		return v
	}
	roots, err := in.Roots.with(in.Certs.ca)
	if err != nil {
		v.add("chain", "", err)
		return v
	}
	root, ca, public, err := roots.chain(key.it, in.Now)
	if err != nil {
		v.add("chain", "", fmt.Errorf("%s: %w", key.name, err))
		return v
	}
	v.add("chain", fmt.Sprintf("%s by %s by %s", key.it.Subject.CommonName, ca.Subject.CommonName, root.ark.Subject.CommonName), nil)
	e, err := parseExtensions(key.it)
	if err == nil {
		err = r.matches(e, root.line)
	}
	matched := v.add("certificate", fmt.Sprintf("%s, %v", e.product, tcbOf(r.ReportedTCB, root.line)), err)
	signed := v.add("signature", "ECDSA P-384 by that key", r.checkSignature(public))
	seen, err := in.revocation(root, key.it, ca, root.ark)
	if seen == "" && err == nil && in.Policy.Revocation {
		err = errors.New("asked for, and no list given")
	}
	if seen != "" || err != nil {
		v.add("revocation", seen, err)
	}
	if matched && signed {
		v.policy(&in.Policy, r, e, root.line)
	}
	return v
}

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"embed"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// File is a file's contents with its name for messages.
type File struct {
	Name string
	Data []byte
}

// Certs are certificates and revocation lists sorted by what they are.
type Certs struct {
	vcek, vlek *named[*x509.Certificate]
	ca         []named[*x509.Certificate] // ARK, ASK, ASVK
	lists      []named[*x509.RevocationList]
}

type named[T any] struct {
	name string
	it   T
}

// Add sorts in the certificates and revocation lists of a file, in DER or PEM.
func (c *Certs) Add(f File) error {
	if !bytes.Contains(f.Data, []byte("-----BEGIN")) {
		cert, err := x509.ParseCertificate(f.Data)
		if err == nil {
			return c.addCert(f.Name, cert)
		}
		list, listErr := x509.ParseRevocationList(f.Data)
		if listErr == nil {
			c.lists = append(c.lists, named[*x509.RevocationList]{f.Name, list})
			return nil
		}
		return fmt.Errorf("%s: neither a certificate (%w) nor a revocation list (%w)", f.Name, err, listErr)
	}
	for rest := f.Data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return fmt.Errorf("%s: bytes that are no PEM block", f.Name)
			}
			return nil
		}
		if err := c.Add(File{f.Name, block.Bytes}); err != nil {
			return err
		}
	}
}

func (c *Certs) addCert(name string, cert *x509.Certificate) error {
	switch cn := cert.Subject.CommonName; {
	case cn == "SEV-VCEK" || cn == "SEV-VLEK":
		to := &c.vcek
		if cn == "SEV-VLEK" {
			to = &c.vlek
		}
		if *to != nil && !(*to).it.Equal(cert) {
			return fmt.Errorf("%s: a second %s beside that of %s", name, cn, (*to).name)
		}
		*to = &named[*x509.Certificate]{name, cert}
	case strings.HasPrefix(cn, "ARK-") || strings.HasPrefix(cn, "SEV-"):
		c.ca = append(c.ca, named[*x509.Certificate]{name, cert})
	default:
		return fmt.Errorf("%s: certificate %q is none of AMD's SEV keys", name, cn)
	}
	return nil
}

// root is what is trusted for one product line: its root key and the keys
// between that and the chips'.
type root struct {
	line          string // Milan, Genoa, Turin
	ark           *x509.Certificate
	intermediates []*x509.Certificate
}

// Roots are the roots of trust by product line.
type Roots map[string]*root

//go:embed roots/*.pem
var amdRoots embed.FS

// AMDRoots returns AMD's roots of Milan, Genoa and Turin, for VCEK and VLEK.
func AMDRoots() (Roots, error) {
	var files []File
	entries, err := amdRoots.ReadDir("roots")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		data, err := amdRoots.ReadFile("roots/" + e.Name())
		if err != nil {
			return nil, err
		}
		files = append(files, File{e.Name(), data})
	}
	return ParseRoots(files...)
}

// ParseRoots takes every ARK in files as trusted, and the keys it has signed.
func ParseRoots(files ...File) (Roots, error) {
	var c Certs
	for _, f := range files {
		if err := c.Add(f); err != nil {
			return nil, err
		}
	}
	roots := Roots{}
	for _, cert := range c.ca {
		line, ok := strings.CutPrefix(cert.it.Subject.CommonName, "ARK-")
		if !ok {
			continue
		}
		if r := roots[line]; r != nil && !r.ark.Equal(cert.it) {
			return nil, fmt.Errorf("%s: a second root for %s", cert.name, line)
		}
		roots[line] = &root{line: line, ark: cert.it}
	}
	if len(roots) == 0 {
		return nil, errors.New("no root certificate (ARK-...) among the roots")
	}
	return roots, roots.addCA(c.ca)
}

// with returns roots with the CA certificates that came with a report.
func (roots Roots) with(certs []named[*x509.Certificate]) (Roots, error) {
	c := Roots{}
	for line, r := range roots {
		c[line] = &root{r.line, r.ark, slices.Clone(r.intermediates)}
	}
	return c, c.addCA(certs)
}

// addCA takes in CA certificates: an ARK must be one of the roots, any other must
// be signed by one.
func (roots Roots) addCA(certs []named[*x509.Certificate]) error {
	for _, cert := range certs {
		cn := cert.it.Subject.CommonName
		line := cn[strings.LastIndexByte(cn, '-')+1:]
		r := roots[line]
		if r == nil {
			return fmt.Errorf("%s: %s: no root for %q", cert.name, cn, line)
		}
		if cert.it.Equal(r.ark) {
			continue
		}
		if strings.HasPrefix(cn, "ARK-") {
			return fmt.Errorf("%s: %s is not the root that is trusted", cert.name, cn)
		}
		if err := cert.it.CheckSignatureFrom(r.ark); err != nil {
			return fmt.Errorf("%s: %s is not signed by ARK-%s: %w", cert.name, cn, line, err)
		}
		r.intermediates = append(r.intermediates, cert.it)
	}
	return nil
}

// chain verifies an endorsement key up to a root. It returns that root, the key
// that signed it, and the key itself.
func (roots Roots) chain(key *x509.Certificate, now time.Time) (*root, *x509.Certificate, *ecdsa.PublicKey, error) {
	issuer := key.Issuer.CommonName
	r := roots[issuer[strings.LastIndexByte(issuer, '-')+1:]]
	if r == nil {
		return nil, nil, nil, fmt.Errorf("issuer %q: no such product among the roots", issuer)
	}
	public, ok := key.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P384() {
		return nil, nil, nil, errors.New("its key is not on P-384")
	}
	want := "SEV-" + r.line
	if key.Subject.CommonName == "SEV-VLEK" {
		want = "SEV-VLEK-" + r.line
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	opts.Roots.AddCert(r.ark)
	for _, ca := range r.intermediates {
		if ca.Subject.CommonName == want {
			opts.Intermediates.AddCert(ca)
		}
	}
	chains, err := key.Verify(opts)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(chains[0]) != 3 {
		return nil, nil, nil, fmt.Errorf("a chain of %d certificates, want three", len(chains[0]))
	}
	return r, chains[0][1], public, nil
}

// extensions are AMD's, in an endorsement key's certificate (AMD 57230, table 8).
type extensions struct {
	product string
	spl     [10]uint8 // security patch levels by the last number of their OID
	hwid    []byte    // VCEK only: 64 bytes, 8 on Turin
	csp     string    // VLEK only
}

func parseExtensions(cert *x509.Certificate) (extensions, error) {
	var e extensions
	amd := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}
	for _, x := range cert.Extensions {
		if len(x.Id) <= len(amd) || !x.Id[:len(amd)].Equal(amd) {
			continue
		}
		var err error
		switch id := x.Id[len(amd):]; {
		case id.Equal(asn1.ObjectIdentifier{2}):
			err = unmarshal(x.Value, &e.product, "ia5")
		case id.Equal(asn1.ObjectIdentifier{5}):
			err = unmarshal(x.Value, &e.csp, "ia5")
		case id.Equal(asn1.ObjectIdentifier{4}):
			e.hwid = x.Value // AMD leaves out the OCTET STRING around it
			if len(x.Value) != 64 && len(x.Value) != 8 {
				err = unmarshal(x.Value, &e.hwid, "")
			}
		case len(id) == 2 && id[0] == 3 && id[1] > 0 && id[1] < len(e.spl):
			var n int
			if err = unmarshal(x.Value, &n, ""); err == nil && (n < 0 || n > 255) {
				err = fmt.Errorf("%d is not a byte", n)
			}
			e.spl[id[1]] = uint8(n)
		}
		if err != nil {
			return e, fmt.Errorf("extension %v: %w", x.Id, err)
		}
	}
	if e.product == "" {
		return e, errors.New("no product name: not a certificate of AMD's key service")
	}
	return e, nil
}

func unmarshal(der []byte, to any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, to, params)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes after the value")
	}
	return err
}

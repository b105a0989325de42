package psp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Product is a line of processors.
type Product struct {
	Name      string
	Signature uint32   // CPUID leaf 1 EAX
	FMS       [3]byte  // family, model, stepping, in reports from version 3 on
	Firmware  [3]byte  // major, minor, build of the API
	TCB       [8]byte  // TCB_VERSION
	SPL       [10]byte // the same levels as certificates have them, by the last number of their OID
	Stepping  string   // as certificates name it
	HWID      int      // bytes of CHIP_ID
}

// The lines that have SEV-SNP.
var (
	Milan = Product{"Milan", 0xa00f11, [3]byte{0x19, 1, 1}, [3]byte{1, 55, 29}, [8]byte{4, 0, 0, 0, 0, 0, 24, 213},
		[10]byte{1: 4, 3: 24, 8: 213}, "Milan-B0", 64}
	Genoa = Product{"Genoa", 0xa10f11, [3]byte{0x19, 0x11, 1}, [3]byte{1, 55, 37}, [8]byte{9, 0, 0, 0, 0, 0, 23, 72},
		[10]byte{1: 9, 3: 23, 8: 72}, "Genoa-B1", 64}
	Turin = Product{"Turin", 0xb00f21, [3]byte{0x1a, 2, 1}, [3]byte{1, 55, 65}, [8]byte{1, 1, 1, 4, 0, 0, 0, 75},
		[10]byte{1: 1, 2: 1, 3: 4, 8: 75, 9: 1}, "Turin-B1", 8}
)

// Key is which key signs a report.
type Key uint8

// The keys: the chip's and the cloud provider's.
const (
	VCEK Key = 0
	VLEK Key = 1
)

const reportSize = 0x4a0

// ReportRequest is what a guest, or its test, asks of a report.
type ReportRequest struct {
	Data    [64]byte // REPORT_DATA
	VMPL    uint32
	Key     Key
	Version uint32 // 0: that of [Options]
}

// Report issues an attestation report of a launched guest.
func (m *Machine) Report(q ReportRequest) ([]byte, error) {
	l, ok := m.Launched()
	switch {
	case !ok:
		return nil, errors.New("report: the launch is not finished")
	case q.Key == VCEK && l.VCEKDisabled:
		return nil, errors.New("report: the guest was launched without a VCEK")
	case q.VMPL > 3:
		return nil, errors.New("report: VMPL 0 to 3")
	}
	if q.Version == 0 {
		q.Version = m.k.opt.ReportVersion
	}
	p, b := &m.k.opt.Product, make([]byte, reportSize)
	le.PutUint32(b, q.Version)
	le.PutUint32(b[4:], l.SVN)
	le.PutUint64(b[8:], l.Policy)
	copy(b[0x10:], l.FamilyID[:])
	copy(b[0x20:], l.ImageID[:])
	le.PutUint32(b[0x30:], q.VMPL)
	le.PutUint32(b[0x34:], ecdsaSHA384)
	if !m.k.opt.NoSMT {
		b[0x40] = 1 // platform information: SMT
	}
	if b[0x48] = byte(q.Key) << 2; l.HasAuthor {
		b[0x48] |= 1
	}
	copy(b[0x50:], q.Data[:])
	copy(b[0x90:], l.Digest[:])
	copy(b[0xc0:], l.HostData[:])
	copy(b[0xe0:], l.IDKey[:])
	copy(b[0x110:], l.AuthorKey[:])
	copy(b[0x140:], l.ID[:])
	for i := range 32 {
		b[0x160+i] = 0xff // no migration agent
	}
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, at launch
		copy(b[at:], p.TCB[:])
	}
	a, err := m.k.keys()
	if err != nil {
		return nil, err
	}
	copy(b[0x1a0:], a.chip)
	for _, at := range []int{0x1e8, 0x1ec} { // current and committed: build, minor, major
		b[at], b[at+1], b[at+2] = p.Firmware[2], p.Firmware[1], p.Firmware[0]
	}
	if q.Version >= 3 {
		copy(b[0x188:], p.FMS[:])
	}
	sum := sha512.Sum384(b[:0x2a0])
	r, s, err := ecdsa.Sign(rand.Reader, a.keys[q.Key], sum[:])
	if err != nil {
		return nil, err
	}
	putNumber(b[0x2a0:], r)
	putNumber(b[0x2e8:], s)
	return b, nil
}

// Certificates are the chain behind a host's reports, DER. Nobody trusts its root
// but whoever is told to.
type Certificates struct {
	ARK, ASK, ASVK, VCEK, VLEK []byte
}

// Certificates returns the host's certificates.
func (k *Kernel) Certificates() (Certificates, error) {
	a, err := k.keys()
	if err != nil {
		return Certificates{}, err
	}
	return a.Certificates, nil
}

// Write writes the certificates to files of a directory, which it makes: the root
// ark.der is for `gvmm verify snp --roots`, the others for --certs.
func (c *Certificates) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, der := range map[string][]byte{"ark.der": c.ARK, "ask.der": c.ASK, "asvk.der": c.ASVK, "vcek.der": c.VCEK, "vlek.der": c.VLEK} {
		if err := os.WriteFile(filepath.Join(dir, name), der, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// authority is an AMD of the host's own.
type authority struct {
	Certificates
	chip []byte
	keys [2]*ecdsa.PrivateKey // by Key
}

// newAuthority makes keys and certificates (AMD 57230, chapter 3).
func newAuthority(p *Product) (*authority, error) {
	a := &authority{chip: make([]byte, p.HWID)}
	if _, err := rand.Read(a.chip); err != nil {
		return nil, err
	}
	var ca [3]*rsa.PrivateKey // ARK, ASK, ASVK
	for i := range ca {
		var err error
		if ca[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
	}
	for i := range a.keys {
		var err error
		if a.keys[i], err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	template := func(cn string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), SignatureAlgorithm: x509.SHA384WithRSAPSS,
			NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(7, 0, 0),
			Subject: pkix.Name{
				CommonName: cn, OrganizationalUnit: []string{"Engineering"}, Organization: []string{"Advanced Micro Devices"},
				Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
			},
		}
	}
	authority := func(cn string, serial int64) *x509.Certificate {
		c := template(cn, serial)
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		return c
	}
	endorsement := func(cn, product string, last pkix.Extension) *x509.Certificate {
		c := template(cn, 0)
		c.ExtraExtensions = []pkix.Extension{extension(0, 1), extension(product, 2)}
		for i, v := range p.SPL {
			if i > 0 && (i < 9 || v > 0) {
				c.ExtraExtensions = append(c.ExtraExtensions, extension(int(v), 3, i))
			}
		}
		c.ExtraExtensions = append(c.ExtraExtensions, last)
		return c
	}
	ark := authority("ARK-"+p.Name, 1)
	ask, asvk := authority("SEV-"+p.Name, 2), authority("SEV-VLEK-"+p.Name, 3)
	chip := pkix.Extension{Id: oid(4), Value: a.chip} // AMD leaves out the OCTET STRING around it
	for _, c := range []struct {
		cert, parent *x509.Certificate
		public       any
		key          *rsa.PrivateKey
		out          *[]byte
	}{
		{ark, ark, ca[0].Public(), ca[0], &a.ARK},
		{ask, ark, ca[1].Public(), ca[0], &a.ASK},
		{asvk, ark, ca[2].Public(), ca[0], &a.ASVK},
		{endorsement("SEV-VCEK", p.Stepping, chip), ask, a.keys[VCEK].Public(), ca[1], &a.VCEK},
		{endorsement("SEV-VLEK", p.Name, extension("software PSP", 5)), asvk, a.keys[VLEK].Public(), ca[2], &a.VLEK},
	} {
		var err error
		if *c.out, err = x509.CreateCertificate(rand.Reader, c.cert, c.parent, c.public, c.key); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// extension is one of AMD's, a number or a string.
func extension(v any, last ...int) pkix.Extension {
	params := ""
	if _, ok := v.(string); ok {
		params = "ia5"
	}
	der, _ := asn1.MarshalWithParams(v, params) // of an int or an ASCII string: it cannot fail
	return pkix.Extension{Id: oid(last...), Value: der}
}

func oid(last ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, last...)
}

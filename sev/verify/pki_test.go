package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"
)

// A pki is a fake AMD: root, intermediates and endorsement keys of one product.
type pki struct {
	line                       string
	arkKey                     *rsa.PrivateKey
	ekKey                      *ecdsa.PrivateKey
	ark, ask, asvk, vcek, vlek *x509.Certificate
	now                        time.Time
	chip                       []byte
	fmc, boot, tee, snp, ucode int
}

var rsaKeys = sync.OnceValues(func() ([3]*rsa.PrivateKey, error) {
	var keys [3]*rsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return keys, err
		}
	}
	return keys, nil
})

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newPKI(t testing.TB, line string) *pki {
	t.Helper()
	keys := must[[3]*rsa.PrivateKey](t)(rsaKeys())
	p := &pki{line: line, arkKey: keys[0], now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), boot: 3, tee: 1, snp: 8, ucode: 115}
	p.ekKey = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p.chip = slices.Repeat([]byte{0xc1}, 64)
	if line == "Turin" {
		p.chip, p.fmc = p.chip[:8], 2
	}
	ca := func(cn string, serial int64, usage x509.KeyUsage) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: p.now.AddDate(-1, 0, 0), NotAfter: p.now.AddDate(20, 0, 0),
			SignatureAlgorithm: x509.SHA384WithRSAPSS, IsCA: true, BasicConstraintsValid: true, KeyUsage: usage}
	}
	sign := func(cert, parent *x509.Certificate, public any, key *rsa.PrivateKey) *x509.Certificate {
		return must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, cert, parent, public, key))))
	}
	root := ca("ARK-"+line, 65536, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	p.ark = sign(root, root, keys[0].Public(), keys[0])
	p.ask = sign(ca("SEV-"+line, 65537, x509.KeyUsageCertSign), p.ark, keys[1].Public(), keys[0])
	p.asvk = sign(ca("SEV-VLEK-"+line, 65538, x509.KeyUsageCertSign), p.ark, keys[2].Public(), keys[0])
	ek := func(cn string, product string, last pkix.Extension, serial int64) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: p.now.AddDate(-1, 0, 0), NotAfter: p.now.AddDate(6, 0, 0), SignatureAlgorithm: x509.SHA384WithRSAPSS}
		c.ExtraExtensions = []pkix.Extension{last, {Id: oid(2), Value: must[[]byte](t)(asn1.MarshalWithParams(product, "ia5"))}}
		for i, v := range map[int]int{1: p.boot, 2: p.tee, 3: p.snp, 8: p.ucode, 9: p.fmc} {
			if i < 9 || line == "Turin" {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oid(3, i), Value: must[[]byte](t)(asn1.Marshal(v))})
			}
		}
		return c
	}
	p.vcek = sign(ek("SEV-VCEK", line+"-B0", pkix.Extension{Id: oid(4), Value: p.chip}, 7), p.ask, p.ekKey.Public(), keys[1])
	csp := must[[]byte](t)(asn1.MarshalWithParams("a cloud", "ia5"))
	p.vlek = sign(ek("SEV-VLEK", line, pkix.Extension{Id: oid(5), Value: csp}, 8), p.asvk, p.ekKey.Public(), keys[2])
	return p
}

func oid(last ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, last...)
}

// report returns a signed report.
func (p *pki) report(t testing.TB, version uint32, signer Signer, change func([]byte)) []byte {
	t.Helper()
	b := make([]byte, ReportSize)
	le := binary.LittleEndian
	le.PutUint32(b, version)
	le.PutUint32(b[4:], 5)
	le.PutUint64(b[8:], 0x30000)
	le.PutUint32(b[0x34:], 1)
	le.PutUint64(b[0x40:], 1)
	le.PutUint32(b[0x48:], uint32(signer)<<2|1)
	for i := range 48 {
		b[0x90+i], b[0xe0+i], b[0x110+i] = byte(i), 0xa1, 0xb2
	}
	copy(b[0x50:], "nonce")
	tcb := []byte{byte(p.boot), byte(p.tee), 0, 0, 0, 0, byte(p.snp), byte(p.ucode)}
	if p.line == "Turin" {
		tcb = []byte{byte(p.fmc), byte(p.boot), byte(p.tee), byte(p.snp), 0, 0, 0, byte(p.ucode)}
	}
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} {
		copy(b[at:], tcb)
	}
	if signer == VCEK {
		copy(b[0x1a0:], p.chip)
	}
	copy(b[0x1ec:], []byte{29, 55, 1}) // committed: build, minor, major
	if version >= 3 {
		copy(b[0x188:], map[string][]byte{"Milan": {0x19, 1, 1}, "Genoa": {0x19, 0x11, 1}, "Turin": {0x1a, 2, 1}}[p.line])
	}
	if version >= 5 {
		le.PutUint64(b[0x1f8:], 3)
		le.PutUint64(b[0x200:], 7)
	}
	if change != nil {
		change(b)
	}
	sum := sha512.Sum384(b[:offSignature])
	r, s, err := ecdsa.Sign(rand.Reader, p.ekKey, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []*big.Int{r, s} {
		out := b[offSignature+i*numSize:][:numSize]
		n.FillBytes(out)
		slices.Reverse(out)
	}
	return b
}

// list returns a revocation list signed by the root's key.
func (p *pki) list(t testing.TB, number int64, from, until time.Duration, revoked ...int64) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: p.now.Add(from), NextUpdate: p.now.Add(until), SignatureAlgorithm: x509.SHA384WithRSAPSS}
	for _, serial := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: p.now})
	}
	return must[[]byte](t)(x509.CreateRevocationList(rand.Reader, l, p.ark, p.arkKey))
}

// input is a report with the certificates that belong to it.
func (p *pki) input(t testing.TB, report []byte, files ...File) *Input {
	t.Helper()
	in := &Input{Report: report, Now: p.now}
	in.Roots = must[Roots](t)(ParseRoots(File{"ark", p.ark.Raw}, File{"ask", p.ask.Raw}, File{"asvk", p.asvk.Raw}))
	for _, f := range append(files, File{"vcek", p.vcek.Raw}, File{"vlek", p.vlek.Raw}) {
		if err := in.Certs.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

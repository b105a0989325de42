package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/veraison/go-cose"
)

// ParseKey reads the platform's public key (CPAK), an EC key in PEM: a PUBLIC
// KEY, or a CERTIFICATE, of which only the key is taken.
func ParseKey(data []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block: `openssl pkey -pubin -inform DER` makes one")
	}
	var key any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = cert.PublicKey
		}
	default:
		err = fmt.Errorf("PEM block %q is no public key: `openssl pkey -pubout` makes one", block.Type)
	}
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T: the platform's is an EC key", key)
	}
	return ec, nil
}

// coseKey is a COSE_Key of type EC2 (RFC 9052 7, RFC 9053 7.1.1).
type coseKey struct {
	Type  int64  `cbor:"1,keyasint"`
	Alg   *int64 `cbor:"3,keyasint"`
	Curve int64  `cbor:"-1,keyasint"`
	X     bstr   `cbor:"-2,keyasint"`
	Y     bstr   `cbor:"-3,keyasint"`
}

// parseRAK reads the realm's key: an uncompressed point (SEC 1, 2.3.3), whose
// length tells the curve, or a COSE_Key.
func parseRAK(b []byte) (*ecdsa.PublicKey, string, error) {
	kind := "SEC 1 point"
	if len(b) > 0 && b[0] != 4 {
		kind = "COSE_Key"
		var k coseKey
		if err := decode(b, &k); err != nil {
			return nil, kind, fmt.Errorf("neither a SEC 1 point nor a COSE_Key: %w", err)
		}
		want, known := map[int64]int{int64(cose.CurveP256): 32, int64(cose.CurveP384): 48, int64(cose.CurveP521): 66}[k.Curve]
		if k.Type != int64(cose.KeyTypeEC2) || !known || len(k.X) != want || len(k.Y) != want {
			return nil, kind, fmt.Errorf("COSE_Key of type %d, curve %d, coordinates of %d and %d bytes: not a public EC2 key on a NIST curve", k.Type, k.Curve, len(k.X), len(k.Y))
		}
		b = append(append([]byte{4}, k.X...), k.Y...)
	}
	curve, ok := map[int]elliptic.Curve{1 + 2*32: elliptic.P256(), 1 + 2*48: elliptic.P384(), 1 + 2*66: elliptic.P521()}[len(b)]
	if !ok {
		return nil, kind, fmt.Errorf("%d bytes are a point on none of the curves", len(b))
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, b)
	if err != nil {
		return nil, kind, err
	}
	return key, fmt.Sprintf("%s on %s", kind, curve.Params().Name), nil
}

// checkSignature verifies a message and names its algorithm.
func checkSignature(m *cose.Sign1Message, key *ecdsa.PublicKey) (string, error) {
	alg, err := m.Headers.Protected.Algorithm()
	if err != nil {
		return "", err
	}
	switch alg {
	case cose.AlgorithmES256, cose.AlgorithmES384, cose.AlgorithmES512:
	default:
		return "", fmt.Errorf("algorithm %v: CCA tokens are signed with ES256, ES384 or ES512", alg)
	}
	v, err := cose.NewVerifier(alg, key)
	if err != nil {
		return "", err
	}
	return alg.String(), m.Verify(nil, v)
}

// hashNamed returns the hash function of an IANA name.
func hashNamed(name *string) (crypto.Hash, error) {
	h, ok := map[string]crypto.Hash{"sha-256": crypto.SHA256, "sha-384": crypto.SHA384, "sha-512": crypto.SHA512}[deref(name)]
	if !ok {
		return 0, fmt.Errorf("hash algorithm %q: sha-256, sha-384 and sha-512 are known", deref(name))
	}
	return h, nil
}

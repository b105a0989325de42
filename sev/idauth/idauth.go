// Package idauth makes and checks the ID authentication page, with which the
// owner of a guest signs the one launch that may carry the ID block. It is apart
// from package sev because private keys and elliptic curves have no place in the
// monitor.
package idauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/gvmm/gvmm/sev"
)

// Offsets in the ID authentication page (AMD 56860, table 77) and the layout of
// its keys and signatures: little-endian numbers of 72 bytes (tables 110, 112).
const (
	authBlockSig  = 0x40
	authIDKey     = 0x240
	authIDKeySig  = 0x680
	authAuthorKey = 0x880

	keySize   = 0x404
	numSize   = 72
	coordSize = 48 // of P-384
	ecdsaP384 = 1  // algorithm: ECDSA P-384 with SHA-384
	curveP384 = 2
)

// Sign makes the ID authentication page of an encoded block. author, which
// may be nil, vouches for the ID key. Signatures are deterministic (RFC 6979).
func Sign(block []byte, id, author *ecdsa.PrivateKey) ([]byte, error) {
	auth := make([]byte, sev.IDAuthSize)
	binary.LittleEndian.PutUint32(auth, ecdsaP384)
	if err := errors.Join(putKey(auth[authIDKey:], &id.PublicKey), sign(auth[authBlockSig:], block, id)); err != nil {
		return nil, fmt.Errorf("ID key: %w", err)
	}
	if author != nil {
		binary.LittleEndian.PutUint32(auth[4:], ecdsaP384)
		idKey := auth[authIDKey : authIDKey+keySize]
		if err := errors.Join(putKey(auth[authAuthorKey:], &author.PublicKey), sign(auth[authIDKeySig:], idKey, author)); err != nil {
			return nil, fmt.Errorf("author key: %w", err)
		}
	}
	return auth, nil
}

// Check checks an encoded block and its authentication page as the
// firmware does, but for the digest and policy, which the launch decides.
func Check(block, auth []byte) (sev.KeyDigests, error) {
	var d sev.KeyDigests
	if len(block) != sev.IDBlockSize || len(auth) != sev.IDAuthSize {
		return d, fmt.Errorf("ID block of %d bytes, ID auth of %d: want %d and %d", len(block), len(auth), sev.IDBlockSize, sev.IDAuthSize)
	}
	if v := binary.LittleEndian.Uint32(block[80:]); v != 1 {
		return d, fmt.Errorf("ID block at offset 80: version %d, want 1", v)
	}
	if err := checkSig("ID key", auth, 0, authIDKey, authBlockSig, block); err != nil {
		return d, err
	}
	idKey := auth[authIDKey : authIDKey+keySize]
	d.ID = sha512.Sum384(idKey)
	if binary.LittleEndian.Uint32(auth[4:]) != 0 {
		if err := checkSig("author key", auth, 4, authAuthorKey, authIDKeySig, idKey); err != nil {
			return d, err
		}
		author := sev.Digest(sha512.Sum384(auth[authAuthorKey : authAuthorKey+keySize]))
		d.Author = &author
	}
	return d, nil
}

// checkSig checks the signature at sigAt of auth over signed with the key at keyAt,
// whose algorithm is named at algoAt.
func checkSig(who string, auth []byte, algoAt, keyAt, sigAt int, signed []byte) error {
	le := binary.LittleEndian
	if algo, curve := le.Uint32(auth[algoAt:]), le.Uint32(auth[keyAt:]); algo != ecdsaP384 || curve != curveP384 {
		return fmt.Errorf("ID auth: %s at offset %#x: algorithm %d, curve %d: want %d and %d (ECDSA P-384)", who, keyAt, algo, curve, ecdsaP384, curveP384)
	}
	x, y := number(auth[keyAt+4:]), number(auth[keyAt+4+numSize:])
	if x.BitLen() > 384 || y.BitLen() > 384 {
		return fmt.Errorf("ID auth: %s at offset %#x: not a point of P-384", who, keyAt)
	}
	point := append([]byte{4}, make([]byte, 2*coordSize)...)
	x.FillBytes(point[1 : 1+coordSize])
	y.FillBytes(point[1+coordSize:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return fmt.Errorf("ID auth: %s at offset %#x: %w", who, keyAt, err)
	}
	sum := sha512.Sum384(signed)
	if !ecdsa.Verify(key, sum[:], number(auth[sigAt:]), number(auth[sigAt+numSize:])) {
		return fmt.Errorf("ID auth: signature at offset %#x is not by the %s over what it signs", sigAt, who)
	}
	return nil
}

// number reads a little-endian number of an ID authentication page.
func number(p []byte) *big.Int {
	b := slices.Clone(p[:numSize])
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

func putNumber(p []byte, n *big.Int) {
	n.FillBytes(p[:numSize])
	slices.Reverse(p[:numSize])
}

func putKey(p []byte, key *ecdsa.PublicKey) error {
	point, err := key.Bytes()
	if err != nil || len(point) != 1+2*coordSize {
		return errors.Join(errors.New("is no P-384 key: the firmware knows no other curve"), err)
	}
	binary.LittleEndian.PutUint32(p, curveP384)
	putNumber(p[4:], new(big.Int).SetBytes(point[1:1+coordSize]))
	putNumber(p[4+numSize:], new(big.Int).SetBytes(point[1+coordSize:]))
	return nil
}

func sign(p, data []byte, key *ecdsa.PrivateKey) error {
	sum := sha512.Sum384(data)
	der, err := key.Sign(nil, sum[:], crypto.SHA384)
	if err != nil {
		return err
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return err
	}
	putNumber(p, sig.R)
	putNumber(p[numSize:], sig.S)
	return nil
}

// ParseKey reads a P-384 private key from PEM, as SEC 1 ("EC PRIVATE KEY", RFC
// 5915) or PKCS #8 ("PRIVATE KEY", RFC 5958), not encrypted.
func ParseKey(data []byte) (*ecdsa.PrivateKey, error) {
	p384 := asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("no EC private key in PEM form (make one: openssl ecparam -name secp384r1 -genkey -noout)")
		}
		der, curve := block.Bytes, asn1.ObjectIdentifier(nil)
		switch block.Type {
		case "PRIVATE KEY":
			var outer struct {
				Version   int
				Algorithm struct {
					ID, Curve asn1.ObjectIdentifier
				}
				Key []byte
			}
			if _, err := asn1.Unmarshal(der, &outer); err != nil {
				return nil, fmt.Errorf("PKCS #8: no elliptic curve key: %w", err)
			}
			der, curve = outer.Key, outer.Algorithm.Curve
		case "EC PRIVATE KEY":
		default: // such as EC PARAMETERS
			continue
		}
		var inner struct {
			Version int
			Scalar  []byte
			Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		}
		if _, err := asn1.Unmarshal(der, &inner); err != nil {
			return nil, fmt.Errorf("EC private key: %w", err)
		}
		if curve == nil {
			curve = inner.Curve
		}
		if !curve.Equal(p384) {
			return nil, fmt.Errorf("EC private key on curve %v: the firmware knows P-384 (%v) only", curve, p384)
		}
		return ecdsa.ParseRawPrivateKey(elliptic.P384(), inner.Scalar)
	}
}

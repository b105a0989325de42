package psp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"math/big"
	"slices"
)

// Offsets in the ID authentication page (AMD 56860, table 77).
const (
	idBlockSig  = 0x40
	idKey       = 0x240
	idKeySig    = 0x680
	authorKey   = 0x880
	keySize     = 0x404
	numberSize  = 72
	ecdsaSHA384 = 1
	curveP384   = 2
)

// checkIDBlock is what SNP_LAUNCH_FINISH does with an ID block: its signatures,
// then whether it is for this launch (AMD 56860, 8.18).
func (m *Machine) checkIDBlock(block, auth []byte, author bool) firmwareError {
	if fw := checkSignature(auth, 0, idKey, idBlockSig, block); fw != 0 {
		return fw
	}
	if author {
		if fw := checkSignature(auth, 4, authorKey, idKeySig, auth[idKey:idKey+keySize]); fw != 0 {
			return fw
		}
	}
	switch {
	case get(block, 80, 4) != 1:
		return fwBadVersion
	case !bytes.Equal(block[:48], m.Digest[:]):
		return fwBadMeasurement
	case get(block, 88, 8) != m.Policy:
		return fwPolicyFailure
	}
	m.FamilyID, m.ImageID, m.SVN = [16]byte(block[48:]), [16]byte(block[64:]), uint32(get(block, 84, 4))
	m.IDKey = sha512.Sum384(auth[idKey : idKey+keySize])
	if m.HasAuthor = author; author {
		m.AuthorKey = sha512.Sum384(auth[authorKey : authorKey+keySize])
	}
	return 0
}

// checkSignature checks the signature at sig of the page over data with the key
// at key, whose algorithm is named at algo.
func checkSignature(auth []byte, algo, key, sig int, data []byte) firmwareError {
	if get(auth, algo, 4) != ecdsaSHA384 || get(auth, key, 4) != curveP384 {
		return fwInvalidKey
	}
	point := []byte{4}
	for _, at := range []int{key + 4, key + 4 + numberSize} {
		n := number(auth, at).Bytes()
		if len(n) > 48 {
			return fwInvalidKey
		}
		point = append(append(point, make([]byte, 48-len(n))...), n...)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return fwInvalidKey
	}
	sum := sha512.Sum384(data)
	if !ecdsa.Verify(public, sum[:], number(auth, sig), number(auth, sig+numberSize)) {
		return fwBadSignature
	}
	return 0
}

// number reads a little-endian number of 72 bytes.
func number(b []byte, at int) *big.Int {
	p := slices.Clone(b[at : at+numberSize])
	slices.Reverse(p)
	return new(big.Int).SetBytes(p)
}

// putNumber writes one.
func putNumber(b []byte, n *big.Int) {
	n.FillBytes(b[:numberSize])
	slices.Reverse(b[:numberSize])
}

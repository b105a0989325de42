package rmm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// keys are the platform's attestation key and the realms'.
type keys struct{ cpak, rak *ecdsa.PrivateKey }

func newKeys() (*keys, error) {
	cpak, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	rak, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	return &keys{cpak, rak}, err
}

// PlatformKey is the public key that tokens verify with, in PEM.
func (k *Kernel) PlatformKey() ([]byte, error) {
	b, err := x509.MarshalPKIXPublicKey(&k.keys.cpak.PublicKey)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}), err
}

// token is what RSI_ATTESTATION_TOKEN gives to the realm (DEN0137 A7.2).
func (v *vm) token() ([]byte, error) {
	k, r := v.k.keys, v.realm
	x, y := make([]byte, 48), make([]byte, 48)
	point, err := k.rak.PublicKey.ECDH()
	if err != nil {
		return nil, err
	}
	copy(x, point.Bytes()[1:])
	copy(y, point.Bytes()[49:])
	rak, err := cbor.Marshal(map[int]any{1: 2, -1: 2, -2: x, -3: y}) // a COSE_Key
	if err != nil {
		return nil, err
	}
	binding := sha256.Sum256(rak)
	instance := append([]byte{1}, make([]byte, 32)...)
	hash := "sha-256"
	if r.sha512 {
		hash = "sha-512"
	}
	rems := make([][]byte, 4)
	for i := range rems {
		rems[i] = make([]byte, len(r.rim()))
	}
	platform, err := sign(k.cpak, map[int]any{
		265: "tag:arm.com,2023:cca_platform#1.0.0", 10: binding[:], 2396: make([]byte, 32), 256: instance,
		2401: []byte("model"), 2395: 0x3003, 2402: "sha-256",
		2399: []any{map[int]any{1: "RMM", 2: make([]byte, 32), 5: make([]byte, 32)}},
	})
	if err != nil {
		return nil, err
	}
	claims, err := sign(k.rak, map[int]any{
		265: "tag:arm.com,2023:realm#1.0.0", 10: v.k.opt.Nonce[:], 44235: r.rpv[:], 44236: hash,
		44237: rak, 44238: r.rim(), 44239: rems, 44240: "sha-256",
	})
	if err != nil {
		return nil, err
	}
	return cbor.Marshal(cbor.Tag{Number: 399, Content: map[int][]byte{44234: platform, 44241: claims}})
}

func sign(key *ecdsa.PrivateKey, claims map[int]any) ([]byte, error) {
	signer, err := cose.NewSigner(cose.AlgorithmES384, key)
	if err != nil {
		return nil, err
	}
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(cose.AlgorithmES384)
	if m.Payload, err = cbor.Marshal(claims); err != nil {
		return nil, err
	}
	if err := m.Sign(rand.Reader, nil, signer); err != nil {
		return nil, err
	}
	return m.MarshalCBOR()
}

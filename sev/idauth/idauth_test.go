package idauth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/gvmm/gvmm/sev"
)

func testKey(t testing.TB, curve elliptic.Curve) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func TestSignAndCheck(t *testing.T) {
	id, _ := testKey(t, elliptic.P384())
	author, _ := testKey(t, elliptic.P384())
	b := sev.IDBlock{Digest: sev.Digest{1, 2, 3}, FamilyID: [16]byte{4}, ImageID: [16]byte{5}, GuestSVN: 6, Policy: sev.DefaultPolicy}
	block := b.Bytes()
	if len(block) != sev.IDBlockSize || block[48] != 4 || block[64] != 5 || block[80] != 1 || block[84] != 6 || block[90] != 3 {
		t.Fatalf("block %x", block)
	}
	for _, author := range []*ecdsa.PrivateKey{nil, author} {
		auth, err := Sign(block, id, author)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Sign(block, id, author)
		if err != nil || !bytes.Equal(auth, again) {
			t.Error("signing twice gives two pages")
		}
		digests, err := Check(block, auth)
		if err != nil || (digests.Author != nil) != (author != nil) {
			t.Fatal(digests, err)
		}
		places := []int{0, authBlockSig, authBlockSig + numSize, authIDKey, authIDKey + 4, authIDKey + 4 + numSize}
		if author != nil {
			places = append(places, 4, authIDKeySig, authIDKeySig+numSize, authAuthorKey, authAuthorKey+4, authIDKey+0x300)
		}
		for _, at := range places {
			bad := bytes.Clone(auth)
			bad[at] ^= 4
			if _, err := Check(block, bad); err == nil {
				t.Errorf("a flipped bit at %#x was accepted", at)
			}
		}
		for at := range block {
			bad := bytes.Clone(block)
			bad[at] ^= 1
			if _, err := Check(bad, auth); err == nil {
				t.Errorf("a flipped bit at %#x of the block was accepted", at)
			}
		}
	}
	p256, _ := testKey(t, elliptic.P256())
	if _, err := Sign(block, p256, nil); err == nil {
		t.Error("a P-256 key was accepted")
	}
}

// The published page was signed by another program: its author key signs its ID key.
func TestPublishedIDAuth(t *testing.T) {
	auth := readFile(t, "test_auth_block.bin")
	idKey := auth[authIDKey : authIDKey+keySize]
	if err := checkSig("author key", auth, 4, authAuthorKey, authIDKeySig, idKey); err != nil {
		t.Error(err)
	}
}

func TestParseKey(t *testing.T) {
	key, sec1 := testKey(t, elliptic.P384())
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}})
	for name, data := range map[string][]byte{"SEC 1": append(params, sec1...), "PKCS #8": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if got, err := ParseKey(data); err != nil || !got.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, p256 := testKey(t, elliptic.P256())
	for _, data := range [][]byte{nil, params, p256, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der[:20]})} {
		if _, err := ParseKey(data); err == nil {
			t.Errorf("accepted %q", data)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(make([]byte, sev.IDBlockSize), readFile(f, "test_auth_block.bin"))
	f.Fuzz(func(t *testing.T, block, auth []byte) {
		if _, err := Check(block, auth); err == nil {
			t.Error("a signature was forged")
		}
	})
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keyFile(t testing.TB, name string) *ecdsa.PublicKey {
	t.Helper()
	k, err := ParseKey(file(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// failed returns the names of the clauses that failed.
func failed(v Verdict) (names []string) {
	for _, c := range v {
		if !c.Held {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestPublicSamples(t *testing.T) {
	for _, c := range []struct {
		token, key string
		fails      []string
	}{
		{"tf-rmm.cbor", "tf-rmm.pub", nil},
		{"draft-ffm-00.cbor", "tf-rmm.pub", nil},
		{"es256.cbor", "es256.pub", nil},
		{"bug-33.cbor", "tf-rmm.pub", []string{"binding"}},
		{"es256.cbor", "tf-rmm.pub", []string{"platform signature"}},
		{"tf-rmm.cbor", "es256.pub", []string{"platform signature"}},
	} {
		v := Token(file(t, c.token), keyFile(t, c.key), &Policy{})
		if got := failed(v); !slices.Equal(got, c.fails) || v.Held() != (c.fails == nil) {
			t.Errorf("%s with %s: failed %q, want %q\n%+v", c.token, c.key, got, c.fails, v)
		}
	}
}

// No byte of a token can change without a clause failing.
func TestEveryFlippedByteFails(t *testing.T) {
	for _, c := range [][2]string{{"tf-rmm.cbor", "tf-rmm.pub"}, {"es256.cbor", "es256.pub"}, {"draft-ffm-00.cbor", "tf-rmm.pub"}} {
		t.Run(c[0], func(t *testing.T) {
			t.Parallel()
			token, key := file(t, c[0]), keyFile(t, c[1])
			for i := range token {
				mask := byte(1) << (i % 8)
				token[i] ^= mask
				if Token(token, key, &Policy{}).Held() {
					t.Errorf("byte %#x changed by %#x still holds", i, mask)
				}
				token[i] ^= mask
			}
			for _, changed := range [][]byte{token[:len(token)-1], append(bytes.Clone(token), 0), nil} {
				if Token(changed, key, &Policy{}).Held() {
					t.Errorf("%d bytes still hold", len(changed))
				}
			}
		})
	}
}

// What no signature covers is the form that CBOR is written in: only one passes.
func TestOtherFormsFail(t *testing.T) {
	token, key := file(t, "tf-rmm.cbor"), keyFile(t, "tf-rmm.pub")
	platform := bytes.Index(token, []byte{0x59}) // the byte string behind the first key, and the one in it
	inner := platform + 3 + bytes.Index(token[platform+3:], []byte{0x44})
	for name, b := range map[string][]byte{
		"wide tag":       slices.Replace(bytes.Clone(token), 0, 3, 0xda, 0, 0, 1, 0x8f),
		"wide map":       slices.Replace(bytes.Clone(token), 3, 4, 0xb8, 2),
		"self-described": append([]byte{0xd9, 0xd9, 0xf7}, token...),
		"wide string":    slices.Replace(bytes.Clone(token), platform, platform+1, 0x5a, 0, 0),
		"wide header": slices.Replace(slices.Replace(bytes.Clone(token), inner, inner+1, 0x58, 4),
			platform+1, platform+3, token[platform+1], token[platform+2]+1),
	} {
		if v := Token(b, key, &Policy{}); v.Held() || !strings.Contains(fmt.Sprint(v), "shortest") {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// maker makes tokens that verify, after edit has changed the claims.
type maker struct {
	platform, realm map[int]any
	cmw, coseRAK    bool
	platformAlg     cose.Algorithm
	curve           elliptic.Curve
	rakHash         string

	unprotected map[any]any // headers of the realm token
	after       func(members map[int]any)
}

func newMaker() *maker {
	b := bytes.Repeat
	return &maker{
		curve: elliptic.P384(), platformAlg: cose.AlgorithmES384, rakHash: "sha-256",
		platform: map[int]any{
			265: platformCurrent, 2396: b([]byte{2}, 32), 256: append([]byte{1}, b([]byte{3}, 32)...), 2401: []byte{0xcf}, 2395: 0x3001, 2402: "sha-256",
			2399: []any{
				map[int]any{1: "BL2", 2: b([]byte{4}, 32), 4: "1.0", 5: b([]byte{5}, 32), 6: "sha-256"},
				map[int]any{2: b([]byte{6}, 32), 5: b([]byte{5}, 32)},
			},
		},
		realm: map[int]any{
			265: realmCurrent, 10: b([]byte{7}, 64), 44235: make([]byte, 64), 44236: "sha-256", 44238: b([]byte{8}, 32),
			44239: []any{b([]byte{9}, 32), make([]byte, 32), make([]byte, 32), make([]byte, 32)},
		},
	}
}

func (m *maker) token(t *testing.T) ([]byte, *ecdsa.PublicKey) {
	t.Helper()
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cpak, err := ecdsa.GenerateKey(m.curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rak, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub := must(rak.PublicKey.Bytes())
	if m.coseRAK {
		pub = must(cbor.Marshal(map[int]any{1: 2, -1: 2, -2: pub[1:49], -3: pub[49:]}))
	}
	set := func(claims map[int]any, key int, v any) {
		if _, given := claims[key]; !given {
			claims[key] = v
		}
	}
	set(m.realm, 44237, pub)
	set(m.realm, 44240, m.rakHash)
	h, err := hashNamed(&m.rakHash)
	if err != nil {
		t.Fatal(err)
	}
	set(m.platform, 10, sumOf(h, pub))
	sign := func(claims map[int]any, key crypto.Signer, alg cose.Algorithm, unprotected map[any]any) []byte {
		s, err := cose.NewSigner(alg, key)
		if err != nil {
			t.Fatal(err)
		}
		return must(cose.Sign1(rand.Reader, s, cose.Headers{Protected: cose.ProtectedHeader{cose.HeaderLabelAlgorithm: alg}, Unprotected: unprotected}, must(cbor.Marshal(claims)), nil))
	}
	members := map[int]any{
		keyPlatform: sign(m.platform, cpak, m.platformAlg, nil),
		keyRealm:    sign(m.realm, rak, cose.AlgorithmES384, m.unprotected),
	}
	tag := uint64(tagCollection)
	if m.cmw {
		tag = tagCMW
		for k, v := range members {
			members[k] = []any{cwtFormat, v}
		}
	}
	if m.after != nil {
		m.after(members)
	}
	return must(cbor.Marshal(cbor.Tag{Number: tag, Content: members})), &cpak.PublicKey
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*maker)
	}{
		{"EAT collection, SEC 1", func(*maker) {}},
		{"CMW, COSE_Key", func(m *maker) { m.cmw, m.coseRAK = true, true }},
		{"ES256, sha-384", func(m *maker) {
			m.curve, m.platformAlg, m.rakHash = elliptic.P256(), cose.AlgorithmES256, "sha-384"
		}},
		{"ES512, sha-512", func(m *maker) {
			m.curve, m.platformAlg, m.rakHash = elliptic.P521(), cose.AlgorithmES512, "sha-512"
		}},
		{"unknown claims", func(m *maker) { m.realm[70000], m.platform[2400] = "x", "https://example.org" }},
		{"legacy", func(m *maker) { m.platform[265] = platformLegacy; delete(m.realm, 265) }},
	} {
		m := newMaker()
		c.edit(m)
		token, key := m.token(t)
		if v := Token(token, key, &Policy{}); !v.Held() {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

// Signed tokens that must fail, each in its clause.
func TestBadTokens(t *testing.T) {
	b := bytes.Repeat
	for _, c := range []struct {
		clause, say string
		edit        func(*maker)
	}{
		{"binding", "platform token has", func(m *maker) { m.platform[10] = b([]byte{1}, 32) }},
		{"binding", "sha-1", func(m *maker) { m.realm[44240] = "sha-1" }},
		{"lifecycle", "non-cca-debug (0x4000) is not secured", func(m *maker) { m.platform[2395] = 0x4000 }},
		{"lifecycle", "invalid", func(m *maker) { m.platform[2395] = 0x3100 }},
		{"platform token", "profile", func(m *maker) { m.platform[265] = "tag:example.org,2023:x" }},
		{"platform token", "no configuration", func(m *maker) { delete(m.platform, 2401) }},
		{"platform token", "software component 0", func(m *maker) { m.platform[2399] = []any{map[int]any{5: b([]byte{1}, 32)}} }},
		{"platform token", "no software components", func(m *maker) { delete(m.platform, 2399) }},
		{"platform token", "instance id", func(m *maker) { m.platform[256] = b([]byte{2}, 33) }},
		{"platform token", "not a byte string", func(m *maker) { m.platform[2396] = []int{1, 2, 3} }},
		{"realm token", "profile", func(m *maker) { m.realm[265] = platformCurrent }},
		{"realm token", "challenge", func(m *maker) { m.realm[10] = b([]byte{1}, 32) }},
		{"realm token", "3 extensible", func(m *maker) { m.realm[44239] = m.realm[44239].([]any)[:3] }},
		{"realm token", "unprotected", func(m *maker) { m.unprotected = map[any]any{int64(4): []byte("kid")} }},
		{"realm token", "exceeded max number of elements", func(m *maker) { m.realm[70000] = make([]int, maxItems+1) }},
		{"realm signature", "COSE_Key", func(m *maker) {
			m.realm[44237] = []byte{0xa2, 0x01, 0x02, 0x20, 0x60} // {1: 2, -1: ""}: no integer where a curve is
		}},
		{"realm signature", "none of the curves", func(m *maker) { m.realm[44237] = b([]byte{4}, 96) }},
		{"realm signature", "", func(m *maker) { m.realm[44237] = b([]byte{4}, 97) }},
		{"token", "content format 60", func(m *maker) {
			m.cmw = true
			m.after = func(members map[int]any) { members[keyRealm].([]any)[0] = 60 }
		}},
		{"token", "members", func(m *maker) { m.after = func(members map[int]any) { delete(members, keyRealm) } }},
		{"token", "members", func(m *maker) { m.after = func(members map[int]any) { members[1] = []byte{} } }},
	} {
		m := newMaker()
		c.edit(m)
		token, key := m.token(t)
		v := Token(token, key, &Policy{})
		i := slices.IndexFunc(v, func(k Clause) bool { return k.Name == c.clause && !k.Held })
		if i < 0 || !strings.Contains(v[i].Detail, c.say) {
			t.Errorf("want clause %q to fail with %q: %+v", c.clause, c.say, v)
		}
	}
}

func TestPolicy(t *testing.T) {
	const rim, zero = `"0808080808080808080808080808080808080808080808080808080808080808"`, `"0000000000000000000000000000000000000000000000000000000000000000"`
	hex32 := func(n int) string { return `"` + strings.Repeat(fmt.Sprintf("%02x", n), 32) + `"` }
	bl2 := `{"type":"BL2","measurement":` + hex32(4) + `,"version":"1.0","signer":` + hex32(5) + `}`
	bySigner := `{"signer":[` + hex32(1) + `,` + hex32(5) + `]}`
	m := newMaker()
	token, key := m.token(t)
	for _, c := range []struct {
		json  string
		fails []string
	}{
		{`{}`, nil},
		{`{"rim":` + rim + `}`, nil},
		{`{"rim":[` + zero + `,` + rim[:len(rim)-1] + strings.Repeat("00", 32) + `"]}`, nil},
		{`{"rim":` + zero + `}`, []string{"RIM"}},
		{`{"rem":[` + hex32(9) + `,"",` + zero + `]}`, nil},
		{`{"rem":["",` + hex32(9) + `]}`, []string{"REM 1"}},
		{`{"rpv":"00"}`, nil},
		{`{"rpv":"0001"}`, []string{"personalization value"}},
		{`{"challenge":"` + strings.Repeat("07", 64) + `"}`, nil},
		{`{"challenge":"` + strings.Repeat("07", 63) + `"}`, []string{"challenge"}},
		{`{"implementation_id":` + hex32(2) + `,"instance_id":"01` + hex32(3)[1:] + `}`, nil},
		{`{"implementation_id":` + hex32(3) + `,"instance_id":"01` + hex32(2)[1:] + `}`, []string{"implementation id", "instance id"}},
		{`{"lifecycle":["non-cca-debug","secured"],"profile":["current"]}`, nil},
		{`{"lifecycle":["non-cca-debug"],"profile":["legacy"]}`, []string{"lifecycle", "profile"}},
		{`{"software_components":[` + bl2 + `,` + bySigner + `]}`, nil},
		{`{"software_components":[` + bySigner + `]}`, nil},
		{`{"software_components":[` + bl2 + `]}`, []string{"software component 1"}},
		{`{"software_components":[` + bySigner + `,{"measurement":` + hex32(1) + `}]}`, []string{"software components"}},
	} {
		p, err := ParsePolicy([]byte(c.json))
		if err != nil {
			t.Errorf("%s: %v", c.json, err)
			continue
		}
		if got := failed(Token(token, key, &p)); !slices.Equal(got, c.fails) {
			t.Errorf("%s: failed %q, want %q", c.json, got, c.fails)
		}
	}
	for say, text := range map[string]string{
		"unknown field": `{"rims":` + rim + `}`, "more than one": `{} {}`, "not hex": `{"rim":"xy"}`, "rim: 1 bytes": `{"rim":"00"}`,
		"rim: an empty list": `{"rim":[]}`, "neither": `{"software_components":[{"type":"x"}]}`, "software_components: an empty": `{"software_components":[]}`,
		"5 registers": `{"rem":["","","","",""]}`, "none of unknown": `{"lifecycle":["debug"]}`, "challenge: 0": `{"challenge":""}`,
		"no register": `{"rem":["",""]}`, "null": `null`, "null asks": `{"rim":null}`, "null asks for": `{"rem":["",null]}`, "null asks for nothing:": `{"software_components":[{"signer":null}]}`,
		"profile: an empty": `{"profile":[]}`, "rpv: 65": `{"rpv":"` + strings.Repeat("00", 65) + `"}`,
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", text, err, say)
		}
	}
}

// A policy must not hold because a claim it asks for is missing.
func TestAbsentClaimsFail(t *testing.T) {
	m := newMaker()
	for _, k := range []int{10, 44235, 44238, 44239} {
		delete(m.realm, k)
	}
	delete(m.platform, 2396)
	delete(m.platform, 256)
	token, key := m.token(t)
	zero := Hex(make([]byte, 64))
	p := Policy{Challenge: zero, RIM: OneOf{zero}, REM: []Hex{zero}, RPV: zero, ImplID: OneOf{zero[:32]}, InstanceID: OneOf{zero[:33]}}
	got := failed(Token(token, key, &p))
	for _, want := range []string{"challenge", "RIM", "REM 0", "personalization value", "implementation id", "instance id"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s held without the claim", want)
		}
	}
}

func TestParseKey(t *testing.T) {
	rsaLike, _ := x509.MarshalPKIXPublicKey(keyFile(t, "es256.pub"))
	for say, data := range map[string][]byte{
		"no PEM": []byte("x"), "no public key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: rsaLike}),
		"asn1": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}}),
	} {
		if _, err := ParseKey(data); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v, want %q", err, say)
		}
	}
}

func FuzzToken(f *testing.F) {
	for _, name := range []string{"tf-rmm.cbor", "es256.cbor", "draft-ffm-00.cbor"} {
		f.Add(file(f, name))
	}
	bad, _ := hex.DecodeString("a2010220" + "60")
	f.Add(bad)
	key, samples := keyFile(f, "tf-rmm.pub"), [][]byte{file(f, "tf-rmm.cbor"), file(f, "draft-ffm-00.cbor")}
	f.Fuzz(func(t *testing.T, token []byte) {
		if Token(token, key, &Policy{}).Held() && !slices.ContainsFunc(samples, func(s []byte) bool { return bytes.Equal(s, token) }) {
			t.Errorf("a token that nobody signed holds: %x", token)
		}
		_, _, _ = parseRAK(token)
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"rim":["00"],"rem":["",null],"software_components":[{"signer":"00"}],"lifecycle":["secured"]}`))
	token, key := file(f, "tf-rmm.cbor"), keyFile(f, "tf-rmm.pub")
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := ParsePolicy(text); err == nil {
			Token(token, key, &p)
		}
	})
}

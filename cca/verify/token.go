package verify

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

const (
	maxToken   = 1 << 20 // bytes
	maxNesting = 8
	maxItems   = 256 // of an array or a map

	tagCollection = 399 // EAT collection of RMM 1.0
	tagCMW        = 907 // CMW collection of later drafts
	cwtFormat     = 263 // CoAP content format application/eat+cwt

	keyPlatform = 44234
	keyRealm    = 44241
)

// bstr is a CBOR byte string, and nothing else that []byte would take.
type bstr []byte

// UnmarshalCBOR implements [cbor.Unmarshaler].
func (b *bstr) UnmarshalCBOR(data []byte) error {
	if len(data) == 0 || data[0]>>5 != 2 {
		return errors.New("not a byte string")
	}
	return cbor.Unmarshal(data, (*[]byte)(b))
}

// platformClaims are the claims of the platform token; nil is absent.
type platformClaims struct {
	Profile    *string     `cbor:"265,keyasint"`
	Challenge  bstr        `cbor:"10,keyasint"` // hash of the realm's key
	ImplID     bstr        `cbor:"2396,keyasint"`
	InstanceID bstr        `cbor:"256,keyasint"`
	Config     bstr        `cbor:"2401,keyasint"`
	Lifecycle  *uint16     `cbor:"2395,keyasint"`
	Components []component `cbor:"2399,keyasint"`
	HashAlg    *string     `cbor:"2402,keyasint"`
}

// component is a software component of the platform.
type component struct {
	Type        string `cbor:"1,keyasint"`
	Measurement bstr   `cbor:"2,keyasint"`
	Version     string `cbor:"4,keyasint"`
	Signer      bstr   `cbor:"5,keyasint"`
}

// realmClaims are the claims of the realm token.
type realmClaims struct {
	Profile    *string `cbor:"265,keyasint"`
	Challenge  bstr    `cbor:"10,keyasint"`
	RPV        bstr    `cbor:"44235,keyasint"`
	HashAlg    *string `cbor:"44236,keyasint"`
	RAK        bstr    `cbor:"44237,keyasint"` // the realm attestation key
	RIM        bstr    `cbor:"44238,keyasint"`
	REMs       []bstr  `cbor:"44239,keyasint"`
	RAKHashAlg *string `cbor:"44240,keyasint"`
}

// The profiles that the claims are read by. A realm token of the legacy kind
// names none.
const (
	platformLegacy  = "http://arm.com/CCA-SSD/1.0.0"
	platformCurrent = "tag:arm.com,2023:cca_platform#1.0.0"
	realmCurrent    = "tag:arm.com,2023:realm#1.0.0"
)

// decoder returns how CBOR is decoded: definite lengths, no key twice, bounded
// in every direction. Tags are only known around the collection.
func decoder(tags cbor.TagsMode) (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           tags,
		MaxNestedLevels:  maxNesting,
		MaxArrayElements: maxItems,
		MaxMapPairs:      maxItems,
	}.DecMode()
}

// decode decodes CBOR that has no tags and nothing behind it.
func decode(data []byte, v any) error {
	dm, err := decoder(cbor.TagsForbidden)
	if err != nil {
		return err
	}
	return dm.Unmarshal(data, v)
}

// shortest refuses lengths and numbers in more bytes than they need (RFC 8949
// 4.1): nothing signs how they are written, and no signer writes them so.
func shortest(data []byte) error {
	var v any
	dm, err := decoder(cbor.TagsAllowed)
	if err == nil {
		err = dm.Unmarshal(data, &v)
	}
	if err != nil {
		return err
	}
	if b, err := cbor.Marshal(v); err != nil || len(b) != len(data) {
		return errors.New("not CBOR in its shortest form")
	}
	return nil
}

// split takes the two tokens out of their collection.
func split(token []byte) (kind string, platform, realm []byte, err error) {
	if len(token) > maxToken {
		return "", nil, nil, fmt.Errorf("%d bytes: a token has at most %d", len(token), maxToken)
	}
	dm, err := decoder(cbor.TagsAllowed)
	if err != nil {
		return "", nil, nil, err
	}
	var tag cbor.RawTag
	if err := dm.Unmarshal(token, &tag); err != nil {
		return "", nil, nil, fmt.Errorf("not a tagged CBOR item: %w", err)
	}
	if err := shortest(token); err != nil {
		return "", nil, nil, fmt.Errorf("collection: %w", err)
	}
	var members map[uint64]cbor.RawMessage
	if err := decode(tag.Content, &members); err != nil {
		return "", nil, nil, fmt.Errorf("collection: %w", err)
	}
	get := func(data cbor.RawMessage) ([]byte, error) {
		var b bstr
		return b, decode(data, &b)
	}
	switch tag.Number {
	case tagCollection:
		kind = "EAT collection (tag 399)"
	case tagCMW:
		kind = "CMW collection (tag 907)"
		get = func(data cbor.RawMessage) ([]byte, error) {
			var record struct {
				_     struct{} `cbor:",toarray"`
				Type  uint64
				Value bstr
			}
			if err := decode(data, &record); err != nil {
				return nil, err
			}
			if record.Type != cwtFormat {
				return nil, fmt.Errorf("content format %d, not %d (application/eat+cwt)", record.Type, cwtFormat)
			}
			return record.Value, nil
		}
	default:
		return "", nil, nil, fmt.Errorf("CBOR tag %d: a CCA token has %d or %d", tag.Number, tagCollection, tagCMW)
	}
	if len(members) != 2 || members[keyPlatform] == nil || members[keyRealm] == nil {
		return "", nil, nil, fmt.Errorf("collection: its members are not %d (platform) and %d (realm)", keyPlatform, keyRealm)
	}
	if platform, err = get(members[keyPlatform]); err != nil {
		return "", nil, nil, fmt.Errorf("collection: platform token: %w", err)
	}
	if realm, err = get(members[keyRealm]); err != nil {
		return "", nil, nil, fmt.Errorf("collection: realm token: %w", err)
	}
	return kind, platform, realm, nil
}

// open reads a COSE_Sign1 message and the claims in it, unverified.
func open(data []byte, claims any) (*cose.Sign1Message, error) {
	dm, err := decoder(cbor.TagsAllowed)
	if err != nil {
		return nil, err
	}
	if err := dm.Wellformed(data); err != nil { // the limits, before cose reads it
		return nil, err
	}
	if err := shortest(data); err != nil {
		return nil, err
	}
	m := cose.NewSign1Message()
	if err := m.UnmarshalCBOR(data); err != nil {
		return nil, err
	}
	if len(m.Headers.Unprotected) != 0 {
		return nil, errors.New("the unprotected header is not empty: nothing signs it")
	}
	if err := decode(m.Payload, claims); err != nil {
		return m, fmt.Errorf("claims: %w", err)
	}
	return m, nil
}

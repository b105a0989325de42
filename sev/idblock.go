package sev

import (
	"encoding/binary"
	"slices"
)

// Sizes of the two structures that SNP_LAUNCH_FINISH takes (AMD 56860, 8.18).
const (
	IDBlockSize = 96
	IDAuthSize  = PageSize // package idauth makes and checks it
)

// DefaultPolicy is the guest policy that most monitors launch with: SMT allowed,
// and the bit that must be one (AMD 56860, 4.3).
const DefaultPolicy = 0x30000

// IDBlock says what a guest is: the firmware launches nothing but Digest with it,
// and its report carries the rest (AMD 56860, table 76).
type IDBlock struct {
	Digest            Digest
	FamilyID, ImageID [16]byte
	GuestSVN          uint32
	Policy            uint64 // that of the launch
}

// Bytes encodes the block.
func (b *IDBlock) Bytes() []byte {
	p := slices.Concat(b.Digest[:], b.FamilyID[:], b.ImageID[:])
	p = binary.LittleEndian.AppendUint32(p, 1) // version
	p = binary.LittleEndian.AppendUint32(p, b.GuestSVN)
	return binary.LittleEndian.AppendUint64(p, b.Policy)
}

// KeyDigests are the digests by which a report names the keys of an ID block.
type KeyDigests struct {
	ID     Digest  `json:"id_key_digest"`
	Author *Digest `json:"author_key_digest,omitempty"` // nil: no author key
}

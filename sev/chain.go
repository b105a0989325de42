package sev

import (
	"encoding/hex"

	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// PageSize is the unit in which pages are measured, whatever the guest maps.
const PageSize = 4096

// VMSAGPA is the guest address under which KVM measures every VMSA page (-1,
// page aligned, without the bits above 47; Linux: INITIAL_VMSA_GPA).
const VMSAGPA = 0xFFFFFFFFF000

// PageType is a page's type in SNP_LAUNCH_UPDATE (AMD 56860, 8.17, table 68).
type PageType uint8

// The page types.
const (
	PageNormal     PageType = 1 // contents are measured
	PageVMSA       PageType = 2 // likewise; a vCPU's first registers
	PageZero       PageType = 3 // zeroed by the firmware
	PageUnmeasured PageType = 4 // contents are not measured
	PageSecrets    PageType = 5 // filled by the firmware
	PageCPUID      PageType = 6 // checked by the firmware, not measured
)

func (t PageType) String() string {
	if t >= PageNormal && t <= PageCPUID {
		return [...]string{"normal", "vmsa", "zero", "unmeasured", "secrets", "cpuid"}[t-1]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// MarshalText prints the type's name.
func (t PageType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// measured says whether the contents of pages of type t go into the digest.
func (t PageType) measured() bool { return t == PageNormal || t == PageVMSA }

// Digest is a launch digest (SHA-384).
type Digest [sha512.Size384]byte

func (d Digest) String() string { return fmt.Sprintf("%x", d[:]) }

// MarshalText prints the digest in hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads hex.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("digest of %d characters: want %d", len(text), hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("digest %q: %w", text, err)
	}
	return nil
}

// Blob is the contents of a range: bytes.Reader is one.
type Blob interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Range is a run of pages that enter a launch together.
type Range struct {
	Type PageType `json:"type"`
	GPA  uint64   `json:"gpa"`  // page aligned
	Size uint64   `json:"size"` // bytes, whole pages
	Name string   `json:"name"` // for people
	Data Blob     `json:"-"`    // nil: zeros; shorter than Size: zeros follow
}

// Chain is a launch digest in the making: DIGEST_CUR of the firmware's guest
// context (AMD 56860, 8.17.2). The zero value is the digest after LAUNCH_START.
type Chain struct{ digest Digest }

// Digest returns the launch digest so far.
func (c *Chain) Digest() Digest { return c.digest }

// Update measures one page. page holds PageSize bytes for types whose contents
// are measured and is not looked at for the others.
func (c *Chain) Update(t PageType, gpa uint64, page []byte) error {
	var contents Digest
	if t.measured() {
		if len(page) != PageSize {
			return fmt.Errorf("sev: %s page at %#x: %d bytes, want %d", t, gpa, len(page), PageSize)
		}
		contents = sha512.Sum384(page)
	}
	return c.extend(t, gpa, &contents)
}

// extend hashes one PAGE_INFO (AMD 56860, table 67): current digest, contents,
// length, page type, IMI, VMPL permissions, address.
func (c *Chain) extend(t PageType, gpa uint64, contents *Digest) error {
	if t < PageNormal || t > PageCPUID {
		return fmt.Errorf("sev: page at %#x: unknown page %s", gpa, t)
	}
	if gpa%PageSize != 0 {
		return fmt.Errorf("sev: %s page at %#x: address is not page aligned", t, gpa)
	}
	var info [0x70]byte
	copy(info[:], c.digest[:])
	copy(info[48:], contents[:])
	binary.LittleEndian.PutUint16(info[96:], uint16(len(info)))
	info[98] = byte(t)
	binary.LittleEndian.PutUint64(info[104:], gpa)
	c.digest = sha512.Sum384(info[:])
	return nil
}

// A batch bounds the memory that digests waiting for the chain take; a chunk is
// what one core reads and hashes at a time.
const (
	batchPages = 16384
	chunkPages = 32
)

// Add measures the pages of r in ascending order. Pages are hashed on all cores
// that GOMAXPROCS gives, while the chain, serial by its nature, follows.
func (c *Chain) Add(r Range) error {
	if r.Size%PageSize != 0 || r.GPA+r.Size < r.GPA {
		return fmt.Errorf("sev: range %q at %#x: its size %#x is not whole pages of the address space", r.Name, r.GPA, r.Size)
	}
	if r.Data != nil && uint64(r.Data.Size()) > r.Size {
		return fmt.Errorf("sev: range %q at %#x: %d bytes of data for a size of %d", r.Name, r.GPA, r.Data.Size(), r.Size)
	}
	pages := r.Size / PageSize
	if !r.Type.measured() {
		none := new(Digest)
		for i := range pages {
			if err := c.extend(r.Type, r.GPA+i*PageSize, none); err != nil {
				return err
			}
		}
		return nil
	}
	digests := make([]Digest, min(pages, batchPages))
	for first := uint64(0); first < pages; first += batchPages {
		if err := c.addBatch(r, first, digests[:min(pages-first, batchPages)]); err != nil {
			return err
		}
	}
	return nil
}

// addBatch measures the pages of r from page first on, of which digests holds
// one each.
func (c *Chain) addBatch(r Range, first uint64, digests []Digest) error {
	chunks := (len(digests) + chunkPages - 1) / chunkPages
	part := func(i int) []Digest { return digests[i*chunkPages : min((i+1)*chunkPages, len(digests))] }
	hashed := make([]atomic.Bool, chunks)
	var next atomic.Int64
	var chain sync.Mutex // held by whoever extends the chain, up to chunk at
	at := 0
	follow := func() error {
		for ; at < chunks && hashed[at].Load(); at++ {
			for i := range part(at) {
				page := at*chunkPages + i
				if err := c.extend(r.Type, r.GPA+(first+uint64(page))*PageSize, &digests[page]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	work := func() error {
		buf := make([]byte, min(len(digests), chunkPages)*PageSize)
		for {
			i := int(next.Add(1)) - 1
			if i >= chunks {
				return nil
			}
			out := part(i)
			if err := readZeroed(r, int64(first)*PageSize+int64(i)*chunkPages*PageSize, buf[:len(out)*PageSize]); err != nil {
				return err
			}
			hashChunk(buf, out)
			hashed[i].Store(true)
			if chain.TryLock() {
				err := follow()
				chain.Unlock()
				if err != nil {
					return err
				}
			}
		}
	}
	workers := min(runtime.GOMAXPROCS(0), chunks)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range errs[1:] {
		wg.Go(func() { errs[w+1] = work() })
	}
	errs[0] = work()
	wg.Wait()
	return errors.Join(append(errs, follow())...)
}

// hashChunk hashes the pages of buf. Images are padded with equal pages, which
// are compared much faster than hashed.
func hashChunk(buf []byte, out []Digest) {
	page := func(i int) []byte { return buf[i*PageSize : (i+1)*PageSize] }
	var equal [chunkPages]bool // to the page before
	var lanes [8]int
	n := 0
	for i := range out {
		if equal[i] = i > 0 && bytes.Equal(page(i), page(i-1)); !equal[i] {
			lanes[n] = i
			n++
		}
		if n == len(lanes) || i == len(out)-1 {
			for k := n; k > 0 && k < len(lanes); k++ {
				lanes[k] = lanes[0]
			}
			if n < 3 || !hashMany(buf, &lanes, out) {
				for _, l := range lanes[:n] {
					out[l] = sha512.Sum384(page(l))
				}
			}
			n = 0
		}
	}
	for i := range out {
		if equal[i] {
			out[i] = out[i-1]
		}
	}
}

// readZeroed fills p with the contents of r from off on, zeros past its data.
func readZeroed(r Range, off int64, p []byte) error {
	n := int64(0)
	if r.Data != nil {
		n = max(0, min(int64(len(p)), r.Data.Size()-off))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if got, err := r.Data.ReadAt(p[:n], off); int64(got) < n {
		return fmt.Errorf("sev: range %q: reading at offset %#x: %w", r.Name, off, err)
	}
	return nil
}

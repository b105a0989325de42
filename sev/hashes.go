package sev

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// Hashes are the SHA-256 digests by which OVMF knows what it may boot.
type Hashes struct{ Kernel, Initrd, Cmdline [sha256.Size]byte }

// HashKernel hashes a kernel file, an initial RAM disk (nil: none, which counts
// as empty) and a command line, which is hashed with one NUL at its end as QEMU
// hands it over (target/i386/sev.c, sev_add_kernel_loader_hashes).
func HashKernel(kernel, initrd Blob, cmdline string) (*Hashes, error) {
	h := &Hashes{Cmdline: sha256.Sum256(append([]byte(cmdline), 0)), Initrd: sha256.Sum256(nil)}
	to := [...]*[sha256.Size]byte{&h.Kernel, &h.Initrd}
	for i, file := range [...]Blob{kernel, initrd} {
		if file == nil {
			continue
		}
		d := sha256.New()
		if _, err := io.Copy(d, io.NewSectionReader(file, 0, file.Size())); err != nil {
			return nil, fmt.Errorf("hashing the %s: %w", [...]string{"kernel", "initrd"}[i], err)
		}
		d.Sum(to[i][:0])
	}
	return h, nil
}

const (
	hashEntrySize = 16 + 2 + sha256.Size
	hashTableSize = 16 + 2 + 3*hashEntrySize
	hashTablePad  = (hashTableSize + 15) &^ 15
)

// Table returns the hash table as it lies in guest memory, padded to 16 bytes.
func (h *Hashes) Table() []byte {
	t := make([]byte, 0, hashTablePad)
	t = binary.LittleEndian.AppendUint16(append(t, guidBytes("9438d606-4f22-4cc9-b479-a793d411fd21")...), hashTableSize)
	for _, e := range []struct {
		guid string
		hash *[sha256.Size]byte
	}{
		{"97d02dd8-bd20-4c94-aa78-e7714d36ab2a", &h.Cmdline},
		{"44baf731-3a2f-4bd7-9af1-41e29169781d", &h.Initrd},
		{"4de79437-abd2-427f-b835-d5b172d2045b", &h.Kernel},
	} {
		t = binary.LittleEndian.AppendUint16(append(t, guidBytes(e.guid)...), hashEntrySize)
		t = append(t, e.hash[:]...)
	}
	return t[:hashTablePad]
}

// Page returns the page that holds the table at guest address gpa.
func (h *Hashes) Page(gpa uint32) ([]byte, error) {
	at := gpa % PageSize
	if at+hashTablePad > PageSize {
		return nil, fmt.Errorf("kernel hash table at %#x crosses its page", gpa)
	}
	p := make([]byte, PageSize)
	copy(p[at:], h.Table())
	return p, nil
}

package verify

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// checkList checks that list is of r's root and valid now. Nothing may be read
// from a list, and none may be stored, before this is nil.
func checkList(list *x509.RevocationList, r *root, now time.Time) error {
	if !bytes.Equal(list.RawIssuer, r.ark.RawSubject) {
		return fmt.Errorf("list of %q, want that of %q", list.Issuer.CommonName, r.ark.Subject.CommonName)
	}
	if err := list.CheckSignatureFrom(r.ark); err != nil {
		return fmt.Errorf("not signed by %s: %w", r.ark.Subject.CommonName, err)
	}
	const day = "2006-01-02 15:04"
	switch {
	case now.Before(list.ThisUpdate):
		return fmt.Errorf("not valid before %s", list.ThisUpdate.Format(day))
	case list.NextUpdate.IsZero():
		return errors.New("it does not say when the next one comes")
	case !now.Before(list.NextUpdate):
		return fmt.Errorf("expired %s: get a new one", list.NextUpdate.Format(day))
	}
	return nil
}

// revoked is an error if list, which checkList has passed, names one of certs. A
// list is taken to speak of the chips' keys too: AMD issues no other for them.
func revoked(list *x509.RevocationList, certs ...*x509.Certificate) error {
	for _, e := range list.RevokedCertificateEntries {
		for _, c := range certs {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("%s, serial %x, was revoked %s", c.Subject.CommonName, c.SerialNumber, e.RevocationTime.Format(time.DateOnly))
			}
		}
	}
	return nil
}

// older says whether a list was issued before another.
func older(a, b *x509.RevocationList) bool {
	if a.Number != nil && b.Number != nil && a.Number.Cmp(b.Number) != 0 {
		return a.Number.Cmp(b.Number) < 0
	}
	return a.ThisUpdate.Before(b.ThisUpdate)
}

// Cache is a directory that keeps the newest revocation list of each product
// line, and the VCEKs that were fetched.
type Cache string

func (c Cache) path(line string) string { return filepath.Join(string(c), line+".crl") }

// load returns the list kept for r, nil if there is none. It has been checked to
// be the root's own, not yet for freshness.
func (c Cache) load(r *root) (*x509.RevocationList, error) {
	data, err := os.ReadFile(c.path(r.line))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(data)
	if err == nil {
		err = list.CheckSignatureFrom(r.ark)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path(r.line), err)
	}
	return list, nil
}

// store keeps list, which checkList has passed.
func (c Cache) store(r *root, list *x509.RevocationList) error {
	return c.write(c.path(r.line), list.Raw)
}

// write puts data in the place of a file of the cache, whole or not at all.
func (c Cache) write(path string, data []byte) error {
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(string(c), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// revocation checks every list given and the one kept in the cache, keeps the
// newest, and looks for certs in all. It returns what it has seen, "" if there
// was no list at all.
func (in *Input) revocation(r *root, certs ...*x509.Certificate) (string, error) {
	var kept *x509.RevocationList
	if in.Cache != "" {
		var err error
		if kept, err = in.Cache.load(r); err != nil {
			return "", err
		}
	}
	newest := kept
	for _, l := range in.Certs.lists {
		if err := checkList(l.it, r, in.Now); err != nil {
			return "", fmt.Errorf("%s: %w", l.name, err)
		}
		if kept != nil && older(l.it, kept) {
			return "", fmt.Errorf("%s: older than the list kept in %s: replaced by somebody", l.name, in.Cache.path(r.line))
		}
		if newest == nil || older(newest, l.it) {
			newest = l.it
		}
	}
	if newest == nil {
		return "", nil
	}
	if newest == kept {
		if err := checkList(kept, r, in.Now); err != nil {
			return "", fmt.Errorf("%s: %w", in.Cache.path(r.line), err)
		}
	} else if in.Cache != "" {
		if err := in.Cache.store(r, newest); err != nil {
			return "", fmt.Errorf("keeping the list: %w", err)
		}
	}
	errs := []error{revoked(newest, certs...)}
	for _, l := range in.Certs.lists {
		errs = append(errs, revoked(l.it, certs...))
	}
	return fmt.Sprintf("not on the list of %s, valid until %s", newest.ThisUpdate.Format(time.DateOnly), newest.NextUpdate.Format(time.DateOnly)), errors.Join(errs...)
}

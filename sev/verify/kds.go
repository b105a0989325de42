package verify

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// KeyService is where AMD hands out certificates and revocation lists (AMD
// 57230, chapter 4).
const KeyService = "https://kdsintf.amd.com"

// KDS fetches what a verdict lacks: the VCEK of a report and the revocation
// list of its product line.
type KDS struct {
	URL    string // [KeyService]
	Client *http.Client
}

// maxFetch bounds an answer: a certificate has 1.4 KB, AMD's lists a few.
const maxFetch = 1 << 20

func (k *KDS) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxFetch+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	case resp.StatusCode == http.StatusTooManyRequests:
		return nil, fmt.Errorf("%s: %s: AMD's service answers only so often: use --cache, or try again later", req.URL, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
	case len(body) > maxFetch:
		return nil, fmt.Errorf("%s: more than %d bytes", req.URL, maxFetch)
	}
	return body, nil
}

// vcekName is a VCEK by product line, chip and firmware levels: the path at the
// key service, and the file in a cache.
func (r *Report) vcekName(line string) (path, file string) {
	t, chip, fmc := tcbOf(r.ReportedTCB, line), r.ChipID, ""
	if line == "Turin" {
		chip, fmc = chip[:8], fmt.Sprintf("fmcSPL=%02d&", t.FMC)
	}
	path = fmt.Sprintf("/vcek/v1/%s/%x?%sblSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d",
		line, chip, fmc, t.Bootloader, t.TEE, t.SNP, t.Microcode)
	return path, fmt.Sprintf("%s-%x-%016x.vcek", line, chip, r.ReportedTCB)
}

// lines are the product lines the report may be of: a report of version 2 does
// not say.
func (r *Report) lines() []string {
	if line := r.line(); line != "" {
		return []string{line}
	}
	return []string{"Milan", "Genoa"}
}

// Complete adds what in lacks and the cache has, and has k, unless it is nil,
// fetch the rest: the VCEK where none was given, and a revocation list where
// the one that is kept is missing or has expired. Nothing is kept before it has
// been verified up to in.Roots.
func (in *Input) Complete(ctx context.Context, k *KDS) error {
	r, err := ParseReport(in.Report)
	if err != nil {
		return nil // [Input.Check] says so
	}
	roots, err := in.Roots.with(in.Certs.ca)
	if err != nil {
		return nil // likewise
	}
	if r.Signer == VCEK && in.Certs.vcek == nil {
		if err := in.completeVCEK(ctx, k, r, roots); err != nil {
			return fmt.Errorf("VCEK: %w", err)
		}
	}
	key := in.Certs.vcek
	if r.Signer == VLEK {
		key = in.Certs.vlek
	}
	if k == nil || key == nil || len(in.Certs.lists) > 0 {
		return nil
	}
	root, _, _, err := roots.chain(key.it, in.Now)
	if err != nil {
		return nil // likewise
	}
	if in.Cache != "" {
		kept, err := in.Cache.load(root)
		if err != nil {
			return err
		}
		if kept != nil && checkList(kept, root, in.Now) == nil {
			return nil
		}
	}
	list, err := k.get(ctx, "/vcek/v1/"+root.line+"/crl")
	if err != nil {
		return fmt.Errorf("revocation list: %w", err)
	}
	return in.Certs.Add(File{"the list fetched", list})
}

func (in *Input) completeVCEK(ctx context.Context, k *KDS, r *Report, roots Roots) error {
	if in.Cache != "" {
		for _, line := range r.lines() {
			_, name := r.vcekName(line)
			kept := filepath.Join(string(in.Cache), name)
			der, err := os.ReadFile(kept)
			if err == nil {
				return in.Certs.Add(File{kept, der})
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if k == nil {
		return nil
	}
	if zero(r.ChipID) {
		return errors.New("the report hides its chip (MASK_CHIP_ID): ask the host for the certificate")
	}
	var errs []error
	for _, line := range r.lines() {
		path, name := r.vcekName(line)
		der, err := k.get(ctx, path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := r.checkVCEK(der, line, roots, in.Now); err != nil {
			return fmt.Errorf("%s%s: %w", k.URL, path, err)
		}
		if in.Cache != "" {
			if err := in.Cache.write(filepath.Join(string(in.Cache), name), der); err != nil {
				return fmt.Errorf("keeping it: %w", err)
			}
		}
		return in.Certs.Add(File{"the certificate fetched", der})
	}
	return errors.Join(errs...)
}

// checkVCEK checks that a certificate is the one that was asked for.
func (r *Report) checkVCEK(der []byte, line string, roots Roots, now time.Time) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if _, _, _, err := roots.chain(cert, now); err != nil {
		return err
	}
	e, err := parseExtensions(cert)
	if err != nil {
		return err
	}
	return r.matches(e, line)
}

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"

	cca "github.com/gvmm/gvmm/cca/verify"
	"github.com/gvmm/gvmm/sev/verify"
)

const snpUsage = `usage: gvmm verify snp --report FILE [--vcek FILE | --certs DIR] [--measurement HEX] [--policy FILE]

Verifies an AMD SEV-SNP attestation report: its signature, the chain of the key's
certificate up to AMD's roots, the match of certificate and report, revocation
where a list is given, and each thing asked for. Prints one line a clause. Exit
status 0 only if every clause held, 1 if one failed. No network is used unless
--fetch is given.

  gvmm verify snp --report report.bin --vcek vcek.der \
      --measurement "$(gvmm measure snp --vmm qemu --firmware OVMF.fd --vcpus 1 --vcpu-type EPYC-Milan)"
  gvmm verify snp --report report.bin --certs certs/ --crl milan.crl --policy policy.json
  gvmm verify snp --report report.bin --fetch --cache ~/.cache/snp

A policy is a JSON object of what is asked for; docs/sev-snp.md lists it.

`

// verifySNP is `gvmm verify snp`.
func verifySNP(args []string, stdout io.Writer) (int, error) {
	var report, vcek, certs, policy, cache, at string
	var lists, roots []string
	var measurement, reportData verify.Hex
	var asJSON, fetch bool
	fs := pflag.NewFlagSet("verify snp", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.Usage = func() { fmt.Fprint(stdout, snpUsage, fs.FlagUsagesWrapped(100)) }
	fs.StringVar(&report, "report", "", "attestation report `FILE`: 1184 bytes, or these in hex")
	fs.StringVar(&vcek, "vcek", "", "certificate `FILE` of the key that signed it (VCEK or VLEK), DER or PEM")
	fs.StringVar(&certs, "certs", "", "`DIRECTORY` with certificates and revocation lists, DER or PEM")
	fs.StringArrayVar(&lists, "crl", nil, "revocation list `FILE` (repeatable)")
	fs.StringVar(&cache, "cache", "", "`DIRECTORY` that keeps the newest revocation list of each product, and certificates fetched; used where it has what is not given")
	fs.BoolVar(&fetch, "fetch", false, "fetch a VCEK and a revocation list that are neither given nor in the cache from AMD's key service")
	fs.Func("measurement", "the launch digest that is expected, `HEX`", func(s string) error { return measurement.UnmarshalText([]byte(s)) })
	fs.Func("report-data", "what the guest put into its report, `HEX`, filled up with zeros to 64 bytes",
		func(s string) error { return reportData.UnmarshalText([]byte(s)) })
	fs.StringVar(&policy, "policy", "", "what else is asked for, JSON `FILE`")
	fs.StringArrayVar(&roots, "roots", nil, "trust the ARK certificates in `FILE` instead of AMD's (repeatable; for tests)")
	fs.StringVar(&at, "at", "", "verify as of `TIME`, such as 2026-01-31T00:00:00Z (default: now)")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("verify snp: %w (`gvmm verify snp --help` explains)", err)
	}
	switch {
	case fs.NArg() > 0:
		return 0, fmt.Errorf("verify snp: unexpected %q: files are given by flags", fs.Arg(0))
	case report == "":
		return 0, errors.New("verify snp: no --report given: name the file with the report")
	}
	in := verify.Input{Cache: verify.Cache(cache), Now: time.Now()}
	p, err := snpPolicy(policy, measurement, reportData)
	in.Policy = p
	if at != "" && err == nil {
		if in.Now, err = time.Parse(time.RFC3339, at); err != nil {
			err = fmt.Errorf("--at: %w", err)
		}
	}
	if err == nil {
		err = snpFiles(&in, report, vcek, certs, lists, roots)
	}
	if err == nil {
		err = complete(&in, fetch)
	}
	if err != nil {
		return 0, fmt.Errorf("verify snp: %w", err)
	}
	var verdict cca.Verdict
	for _, c := range in.Check() {
		verdict = append(verdict, cca.Clause(c))
	}
	status := 1
	if verdict.Held() {
		status = 0
	}
	return status, printVerdict(stdout, verdict, asJSON)
}

// complete has the cache, and with fetch AMD's service, give what the flags did not.
func complete(in *verify.Input, fetch bool) error {
	var kds *verify.KDS
	if fetch {
		kds = &verify.KDS{URL: verify.KeyService, Client: http.DefaultClient}
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	if err := in.Complete(ctx, kds); err != nil {
		return fmt.Errorf("%w (without --fetch: give --vcek and --crl)", err)
	}
	return nil
}

// snpPolicy reads the policy in a file, "" for none; what flags ask for comes first.
func snpPolicy(path string, measurement, reportData verify.Hex) (verify.Policy, error) {
	p := new(verify.Policy)
	if path != "" {
		text, err := readFile(path)
		if err == nil {
			p, err = verify.ParsePolicy(text)
		}
		if err != nil {
			return verify.Policy{}, fmt.Errorf("--policy %s: %w", path, err)
		}
	}
	if measurement != nil {
		p.Measurement = verify.OneOf{measurement}
	}
	if reportData != nil {
		p.ReportData = reportData
	}
	return *p, p.Check()
}

// snpFiles reads the files that flags name. A certificate that cannot be read is
// not left out: it may be one that was tampered with.
func snpFiles(in *verify.Input, report, vcek, certs string, lists, roots []string) (err error) {
	if in.Report, err = readFile(report); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	if b, err := hex.DecodeString(string(bytes.TrimSpace(in.Report))); err == nil {
		in.Report = b
	}
	if in.Roots, err = verify.AMDRoots(); err != nil {
		return err
	}
	if roots != nil {
		files, err := readFiles(roots)
		if err == nil {
			in.Roots, err = verify.ParseRoots(files...)
		}
		if err != nil {
			return fmt.Errorf("--roots: %w", err)
		}
	}
	names := lists
	if vcek != "" {
		names = append(names, vcek)
	}
	if certs != "" {
		entries, err := os.ReadDir(certs)
		if err != nil {
			return fmt.Errorf("--certs: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(certs, e.Name())
			info, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("--certs: %w", err)
			}
			if info.Mode().IsRegular() && (slices.Contains([]string{".der", ".crt", ".cer", ".pem", ".crl"}, filepath.Ext(path)) || looksSigned(path)) {
				names = append(names, path)
			}
		}
	}
	files, err := readFiles(names)
	for _, f := range files {
		err = errors.Join(err, in.Certs.Add(f))
	}
	return err
}

// looksSigned says whether a file begins as certificates and lists do.
func looksSigned(path string) bool {
	b, err := readFile(path)
	return err == nil && (bytes.HasPrefix(b, []byte{0x30, 0x82}) || bytes.HasPrefix(b, []byte("-----BEGIN")))
}

func readFiles(paths []string) ([]verify.File, error) {
	var files []verify.File
	for _, path := range paths {
		data, err := readFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, verify.File{Name: path, Data: data})
	}
	return files, nil
}

// fetchTimeout is how long a verdict waits for the network.
const fetchTimeout = 30 * time.Second

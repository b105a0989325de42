package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/cca/verify"
)

const ccaUsage = `usage: gvmm verify cca --token FILE --platform-key PEM [--rim HEX] [--rpv HEX] [--nonce HEX] [--policy FILE]

Verifies an Arm CCA attestation token: the platform's signature under the given
key, the realm's under the key in it, the binding of the two, that the platform
is secured, and each thing asked for. Prints one line a clause. Exit status 0
only if every clause held, 1 if one failed.

  gvmm verify cca --token realm.cbor --platform-key cpak.pem \
      --rim "$(gvmm measure cca --machine lkvm --dtb realm.dtb Image)" --nonce 00112233...
  gvmm verify cca --token realm.cbor --platform-key cpak.pem --policy policy.json

A policy is a JSON object of what is asked for, unless a flag asks: challenge,
rim, rem, rpv, implementation_id, instance_id, lifecycle, profile and
software_components; docs/cca.md has an example.

`

const maxFile = 4 << 20 // bytes of a file that a flag names

// verifyCCA is `gvmm verify cca`.
func verifyCCA(args []string, stdout io.Writer) (int, error) {
	var tokenFile, keyFile, policyFile string
	var asked verify.Policy
	var asJSON bool
	fs := pflag.NewFlagSet("verify cca", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.Usage = func() { fmt.Fprint(stdout, ccaUsage, fs.FlagUsagesWrapped(100)) }
	fs.StringVar(&tokenFile, "token", "", "attestation token `FILE`")
	fs.StringVar(&keyFile, "platform-key", "", "the platform's public key (CPAK), `PEM`")
	fs.Func("rim", "the realm initial measurement that is expected, `HEX`", func(s string) error {
		asked.RIM = make(verify.OneOf, 1)
		return asked.RIM[0].UnmarshalText([]byte(s))
	})
	fs.Func("rpv", "the realm personalization value, `HEX`, filled up with zeros to 64 bytes",
		func(s string) error { return asked.RPV.UnmarshalText([]byte(s)) })
	fs.Func("nonce", "the challenge that the token answers, `HEX`, filled up likewise",
		func(s string) error { return asked.Challenge.UnmarshalText([]byte(s)) })
	fs.StringVar(&policyFile, "policy", "", "what else is asked for, JSON `FILE`")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("verify cca: %w (`gvmm verify cca --help` explains)", err)
	}
	switch {
	case fs.NArg() > 0:
		return 0, fmt.Errorf("verify cca: unexpected %q: files are given by flags", fs.Arg(0))
	case tokenFile == "":
		return 0, errors.New("verify cca: no --token given: name the file with the token")
	case keyFile == "":
		return 0, errors.New("verify cca: no --platform-key given: without the platform's key nothing in a token can be believed")
	}
	token, err := readFile(tokenFile)
	if err != nil {
		return 0, fmt.Errorf("verify cca: --token: %w", err)
	}
	pem, err := readFile(keyFile)
	if err != nil {
		return 0, fmt.Errorf("verify cca: --platform-key: %w", err)
	}
	key, err := verify.ParseKey(pem)
	if err != nil {
		return 0, fmt.Errorf("verify cca: --platform-key %s: %w", keyFile, err)
	}
	policy, err := ccaPolicy(policyFile, asked)
	if err != nil {
		return 0, fmt.Errorf("verify cca: %w", err)
	}
	verdict := verify.Token(token, key, policy)
	status := 1
	if verdict.Held() {
		status = 0
	}
	return status, printVerdict(stdout, verdict, asJSON)
}

// ccaPolicy reads the policy in a file, "" for none; what flags ask for comes first.
func ccaPolicy(path string, asked verify.Policy) (*verify.Policy, error) {
	var p verify.Policy
	if path != "" {
		text, err := readFile(path)
		if err == nil {
			p, err = verify.ParsePolicy(text)
		}
		if err != nil {
			return nil, fmt.Errorf("--policy %s: %w", path, err)
		}
	}
	if asked.RIM != nil {
		p.RIM = asked.RIM
	}
	if asked.RPV != nil {
		p.RPV = asked.RPV
	}
	if asked.Challenge != nil {
		p.Challenge = asked.Challenge
	}
	return &p, p.Check()
}

// printVerdict prints a line for each clause and the outcome last.
func printVerdict(w io.Writer, v verify.Verdict, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			Held    bool           `json:"held"`
			Clauses verify.Verdict `json:"clauses"`
		}{v.Held(), v})
	}
	mark := map[bool]string{true: "held", false: "FAILED"}
	for _, c := range v {
		if _, err := fmt.Fprintf(w, "%-6s  %-21s  %s\n", mark[c.Held], c.Name, c.Detail); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "verdict: %s\n", mark[v.Held()])
	return err
}

// readFile reads a file of at most maxFile bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	return b, err
}

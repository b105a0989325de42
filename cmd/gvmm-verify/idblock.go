package main

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/gvmm/gvmm/sev/idauth"
)

// signIDBlock is what `gvmm measure snp --id-block` runs: it signs an ID block,
// writes it and its authentication page, and prints the digests of the keys.
func signIDBlock(args []string, stdout io.Writer) error {
	fs := pflag.NewFlagSet("sign-id-block", pflag.ContinueOnError)
	block := fs.BytesHex("block", nil, "the ID block, `HEX`")
	idKey := fs.String("id-key", "", "private key `PEM`")
	authorKey := fs.String("author-key", "", "private key `PEM`")
	blockOut := fs.String("id-block", "", "output `FILE`")
	authOut := fs.String("id-auth", "", "output `FILE`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	id, err := readKey(*idKey)
	if err != nil {
		return fmt.Errorf("--id-key %w", err)
	}
	var author *ecdsa.PrivateKey
	if *authorKey != "" {
		if author, err = readKey(*authorKey); err != nil {
			return fmt.Errorf("--author-key %w", err)
		}
	}
	auth, err := idauth.Sign(*block, id, author)
	if err != nil {
		return err
	}
	digests, err := idauth.Check(*block, auth)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*blockOut, *block, 0o644); err != nil {
		return fmt.Errorf("--id-block: %w", err)
	}
	if err := os.WriteFile(*authOut, auth, 0o644); err != nil {
		return fmt.Errorf("--id-auth: %w", err)
	}
	return json.NewEncoder(stdout).Encode(digests)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	const limit = 1 << 20
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, err
	}
	key, err := idauth.ParseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// Package hexjson reads byte strings from policy files, as hex digits.
package hexjson

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Hex is a byte string, in JSON and on the command line a string of hex digits.
type Hex []byte

// UnmarshalText reads hex digits, with or without 0x before them.
func (h *Hex) UnmarshalText(text []byte) error {
	s := strings.TrimPrefix(string(text), "0x")
	b, err := hex.DecodeString(s)
	if err != nil {
		return fmt.Errorf("%q is not hex: %w", text, err)
	}
	*h = b
	return nil
}

// OneOf is a list of accepted values; in JSON also a single one.
type OneOf []Hex

// UnmarshalJSON implements [json.Unmarshaler].
func (o *OneOf) UnmarshalJSON(data []byte) error {
	var one Hex
	if len(data) > 0 && data[0] == '"' {
		err := json.Unmarshal(data, &one)
		*o = OneOf{one}
		return err
	}
	return json.Unmarshal(data, (*[]Hex)(o))
}

package complete

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// table is one opcode map: rows by mandatory prefix (none, 66, F3, F2, numbered
// as in VEX.pp) and opcode.
type table [4][256]form

// opcodes are the maps 1 to 3 for legacy and VEX encodings, and for EVEX; and for
// D8 to DF by the ModRM byte, of memory operands only with its middle bits.
type opcodes struct {
	plain, evex [4]table
	x87         [8][256]form
}

// rows returns what a section is about, nil for one that does not exist.
func (l *opcodes) rows(section string) (rows []*[256]form) {
	name, which, _ := strings.Cut(section, " ")
	maps := &l.plain
	if plain, ok := strings.CutPrefix(name, "EVEX."); ok {
		maps, name = &l.evex, plain
	}
	mapNo := slices.Index([]string{"x87", "0F", "0F38", "0F3A"}, name)
	for word := range strings.FieldsSeq(which) {
		switch pp := slices.Index([]string{"NP", "66", "F3", "F2"}, word); {
		case mapNo == 0 && hexByte(word) >= 0xD8:
			rows = append(rows, &l.x87[hexByte(word)&7])
		case mapNo < 1 || pp < 0:
			return nil
		default:
			rows = append(rows, &maps[mapNo][pp])
		}
	}
	return rows
}

// opcodeText is the allow-list. It says itself how it is to be read.
//
//go:embed opcodes.txt
var opcodeText string

// opcodeList is read when the first instruction is to be completed.
var opcodeList = sync.OnceValues(func() (*opcodes, error) { return parseOpcodes(opcodeText) })

// vocabulary is what the words of the list mean.
type vocabulary struct{ words, features, hands map[string]form }

func newVocabulary() *vocabulary {
	number := func(names string) map[string]form {
		m := make(map[string]form, 32)
		for name := range strings.FieldsSeq(names) {
			m[name] = form(1 + len(m))
		}
		return m
	}
	return &vocabulary{map[string]form{
		"regG": regG, "regV": regV, "regM": regM, "rmG": rmG, "rmV": rmV, "rmM": rmM, "vvV": vvV, "vvG": vvG, "vvReg": vvReg,
		"m1": m1, "m2": m2, "m4": m4, "m8": m8, "m16": m16, "mVL": mVL, "mVL2": mVL2, "mVL4": mVL4, "mVL8": mVL8,
		"m10": m10, "mEnv": mEnv, "mOp": mOp, "mDup": mDup, "mW": mW, "mK": mK, "store": store, "imm": imm, "is4": is4, "fp": fp, "al": al, "alV": alV,
		"l0": l0, "l1": l1, "l2": l2, "w0": w0, "w1": w1, "w64": w64, "opSize": opSize, "maskVV": maskVV, "maskVS": maskVS,
		"bcst": bcst, "elem1": elem1, "elem2": elem2, "elemW": elemW, "elemB": elemB, "whole": whole,
	}, number(featureNames), number(handNames)}
}

// form returns what a word means, 0 if nothing.
func (v *vocabulary) form(word string) form {
	switch kind, name, _ := strings.Cut(word, ":"); kind {
	case "legacy":
		return v.features[name] << legShift
	case "vex":
		return v.features[name] << vexShift
	case "256":
		return v.features[name] << l1Shift
	case "hand":
		return v.hands[name] << hand
	case "ext":
		return form(hexByte(name)) << extShift
	}
	return v.words[word]
}

// hexByte reads one or two digits. What is no number is 0.
func hexByte(s string) uint8 {
	n, _ := strconv.ParseUint(s, 16, 8)
	return uint8(n)
}

// parseOpcodes reads a list.
func parseOpcodes(text string) (*opcodes, error) {
	list, known, n := new(opcodes), newVocabulary(), 0
	var rows []*[256]form // of the section
	var common form       // to all of them
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line, _, _ = strings.Cut(line, "#")
		if strings.HasPrefix(line, "[") {
			rows, common = list.rows(strings.Trim(line, "[] ")), 0
			if strings.HasPrefix(line, "[EVEX") {
				common = f512 << vexShift
			}
			continue
		}
		at := strings.IndexAny(line, ":=")
		if at < 0 {
			continue
		}
		f := common
		for word := range strings.FieldsSeq(line[at+1:]) {
			v := known.form(word)
			if v == 0 {
				return nil, fmt.Errorf("opcodes.txt, line %d: unknown word %q", n, word)
			}
			f |= v
		}
		if line[at] == '=' {
			known.words[strings.TrimSpace(line[:at])] = f
			continue
		}
		if rows == nil {
			return nil, fmt.Errorf("opcodes.txt, line %d: not in an opcode map", n)
		}
		for ops := range strings.FieldsSeq(line[:at]) {
			first, last, isRange := strings.Cut(ops, "-")
			if !isRange {
				last = first
			}
			for op, end := int(hexByte(first)), int(hexByte(last)); op <= end; op++ {
				for _, row := range rows {
					row[op] = f
				}
			}
		}
	}
	return list, nil
}

package cet

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// Verdict says whether an image can bear a feature.
type Verdict string

// The verdicts.
const (
	Yes     Verdict = "yes"
	No      Verdict = "no"
	Unknown Verdict = "unknown" // nothing against it was found, nor a promise of the compiler's
)

// Judgement is a verdict with its reason.
type Judgement struct {
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason"`
	Breaks  string  `json:"breaks,omitempty"` // the function or object that breaks it
}

// Report is what the lint says about an image.
type Report struct {
	ShadowStack Judgement `json:"shadow_stack"`
	IBT         Judgement `json:"ibt"`

	Property   *Features `json:"property,omitempty"` // the GNU property note's, absent without one
	EntryENDBR bool      `json:"entry_endbr"`        // the entry point has ENDBR64
	ENDBR      int       `json:"endbr"`              // ENDBR64 instructions in code
	Targets    int       `json:"targets"`            // places that can be reached indirectly: relocations, pointers, global functions
	Bare       int       `json:"bare"`               // of these, without ENDBR64
	Sealed     int       `json:"sealed"`             // entries of .ibt_endbr_seal: ENDBR64 that nothing reaches

	certain             bool   // a bare target is in use: its address is taken
	loadsCR3, farReturn string // where code does what a preset shadow stack does not survive
}

// maxTries bounds the disassembling in a section that is made to look suspicious.
const maxTries = 10000

var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// Lint judges an image file of size bytes. The file is hostile; an image that
// is not an ELF file for x86 gets [Unknown].
func Lint(r io.ReaderAt, size int64) *Report {
	e, err := OpenELF(r, size)
	if err != nil {
		j := Judgement{Verdict: Unknown, Reason: err.Error() + ": nothing to judge it by"}
		return &Report{ShadowStack: j, IBT: j}
	}
	rep := &Report{EntryENDBR: bytes.Equal(e.bytesAt(e.Entry, 4), endbr64)}
	rep.Property = e.features()
	var bare []string
	seen := map[uint64]bool{}
	const global = "a global function"
	target := func(addr uint64, how string) {
		// In the middle of a function there are only jump tables, which the
		// compiler reaches with notrack.
		s, named := e.Lookup(addr)
		if e.code(addr) == nil || seen[addr] || named && s.Func && s.Addr != addr {
			return
		}
		seen[addr] = true
		rep.Targets++
		if bytes.Equal(e.bytesAt(addr, 4), endbr64) {
			return
		}
		rep.Bare++
		rep.certain = rep.certain || how != global
		where := e.Name(addr)
		if s.File != "" {
			where += " of " + s.File
		}
		bare = append(bare[:min(len(bare), 2)], where+", "+how)
	}
	starts := map[uint64]bool{}
	for _, s := range e.Symbols {
		starts[s.Addr] = s.Func || starts[s.Addr]
	}
	for i := range e.sections {
		e.pointers(&e.sections[i], starts, target)
	}
	for _, s := range e.Symbols {
		if s.Func && s.Global {
			target(s.Addr, global)
		}
	}
	retpoline := ""
	for _, s := range e.Symbols {
		if retpoline == "" && (strings.Contains(s.Name, "_indirect_thunk") || strings.HasPrefix(s.Name, "__llvm_retpoline")) {
			retpoline = e.Name(s.Addr)
		}
	}
	for _, s := range e.places() {
		if s.name == ".ibt_endbr_seal" {
			rep.Sealed = int(s.size / 4)
		}
		if s.flags&shfExec == 0 || s.kind == shtNobits || s.size > maxCode {
			continue
		}
		b := e.read(s.off, s.size)
		rep.ENDBR += bytes.Count(b, endbr64)
		rep.sweep(e, s.addr, b)
	}
	rep.judge(bare, retpoline)
	return rep
}

// features reads the GNU property note: what every object that was linked
// promises (x86-64 psABI, 4.1.2: GNU_PROPERTY_X86_FEATURE_1_AND).
func (e *ELF) features() *Features {
	const noteProperty, featureAnd = 5, 0xc0000002
	for b := e.property; len(b) >= 16; {
		nameLen, descLen, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		if nameLen != 4 || 16+descLen > uint64(len(b)) {
			return nil
		}
		for d := b[16 : 16+descLen]; kind == noteProperty && string(b[12:16]) == "GNU\x00" && len(d) >= 12; {
			pr, n := le.Uint32(d), uint64(le.Uint32(d[4:]))
			if pr == featureAnd && n == 4 {
				v := le.Uint32(d[8:])
				return &Features{IBT: v&1 != 0, ShadowStack: v&2 != 0}
			}
			d = d[min(8+(n+7)&^7, uint64(len(d))):]
		}
		b = b[min(16+(descLen+7)&^7, uint64(len(b))):]
	}
	return nil
}

// pointers calls target for the addresses of code in a section: relocations'
// targets, and words in data that are the address of a function.
func (e *ELF) pointers(s *section, starts map[uint64]bool, target func(uint64, string)) {
	switch {
	case s.size > maxCode || !e.is64:
	case s.kind == shtRela && s.flags&shfAlloc != 0:
		const relative, irelative = 8, 37
		for b := e.read(s.off, s.size); len(b) >= 24; b = b[24:] {
			if kind := le.Uint32(b[8:]); kind == relative || kind == irelative {
				target(le.Uint64(b[16:]), fmt.Sprintf("relocated at %#x", le.Uint64(b)))
			}
		}
	case s.kind == 1 && s.flags&shfAlloc != 0 && s.flags&shfExec == 0: // SHT_PROGBITS
		b := e.read(s.off, s.size)
		for i := -s.addr & 7; i+8 <= uint64(len(b)); i += 8 {
			if v := le.Uint64(b[i:]); starts[v] {
				target(v, fmt.Sprintf("whose address is at %#x", s.addr+i))
			}
		}
	}
}

// sweep looks for instructions after which a preset shadow stack is gone. The
// bytes alone prove nothing; they count where disassembling from the last
// symbol before them arrives.
func (rep *Report) sweep(e *ELF, base uint64, b []byte) {
	for i, tries := 0, maxTries; i+2 <= len(b) && tries > 0; i++ {
		cr3 := i+3 <= len(b) && b[i] == 0x0f && b[i+1] == 0x22 && b[i+2]&0xf8 == 0xd8
		far := b[i] == 0x48 && b[i+1] == 0xcb
		if (!cr3 || rep.loadsCR3 != "") && (!far || rep.farReturn != "") {
			continue
		}
		tries--
		at := 0
		if s, ok := e.Lookup(base + uint64(i)); ok && s.Addr >= base {
			at = int(s.Addr - base)
		}
		at = max(at, i-4096)
		for at < i {
			if inst, err := x86asm.Decode(b[at:min(at+15, len(b))], 64); err == nil {
				at += inst.Len
			} else {
				at++
			}
		}
		if at == i && cr3 {
			rep.loadsCR3 = e.Name(base + uint64(i))
		} else if at == i {
			rep.farReturn = e.Name(base + uint64(i))
		}
	}
}

func (rep *Report) judge(bare []string, retpoline string) {
	p := rep.Property
	var all string
	if len(bare) > 0 {
		if all = bare[0]; rep.Bare > 1 {
			all += fmt.Sprintf("; and %d more", rep.Bare-1)
		}
	}
	switch j := &rep.IBT; {
	case rep.ENDBR == 0:
		*j = Judgement{No, "no ENDBR64 anywhere: built with -fcf-protection=none or by a compiler without it", ""}
	case rep.Bare > 0:
		*j = Judgement{No, fmt.Sprintf("%d of %d possible targets of indirect branches lack ENDBR64", rep.Bare, rep.Targets), all}
	case p != nil && p.IBT:
		*j = Judgement{Yes, fmt.Sprintf("the property note promises it; %d ENDBR64, all %d targets found have one", rep.ENDBR, rep.Targets), ""}
	case rep.Targets > 0:
		*j = Judgement{Yes, fmt.Sprintf("no property note, but all %d targets found have ENDBR64", rep.Targets), ""}
	default:
		*j = Judgement{Unknown, fmt.Sprintf("%d ENDBR64, but neither symbols nor relocations nor a property note: link it without stripping", rep.ENDBR), ""}
	}
	switch j := &rep.ShadowStack; {
	case retpoline != "":
		*j = Judgement{No, "retpolines return to where nothing called from: build with -mindirect-branch=keep", retpoline}
	case p != nil && p.ShadowStack:
		*j = Judgement{Yes, "the property note promises it", ""}
	case p != nil:
		*j = Judgement{Unknown, "the property note does not promise it: an object linked in is built without -fcf-protection=return, or is assembly without the note", ""}
	default:
		*j = Judgement{Unknown, "no property note: an object linked in has none, or the linker script drops it", ""}
	}
}

// Bears refuses a preset that the image does not survive, naming what breaks
// it. What may break it, if the guest ever gets there, comes as warnings.
func (rep *Report) Bears(p Preset) (warnings []string, err error) {
	j, sure := rep.IBT, rep.ENDBR == 0 || rep.certain
	if p == PresetShadowStack {
		j, sure = rep.ShadowStack, true
		if rep.loadsCR3 != "" {
			warnings = append(warnings, "loads page tables of its own at "+rep.loadsCR3+": the shadow stack is not mapped in them unless the image sees to it")
		}
		if rep.farReturn != "" {
			warnings = append(warnings, "has a far return at "+rep.farReturn+", which needs a far call on the shadow stack")
		}
	}
	why := j.Reason
	if j.Breaks != "" {
		why += ": " + j.Breaks
	}
	switch {
	case j.Verdict == No && sure:
		return warnings, fmt.Errorf("the image cannot bear it: %s", why)
	case j.Verdict != Yes:
		warnings = append(warnings, why)
	}
	return warnings, nil
}

// WriteTo prints the report, for people.
func (rep *Report) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	for _, f := range []struct {
		name string
		j    Judgement
	}{{"shadow stack", rep.ShadowStack}, {"IBT", rep.IBT}} {
		fmt.Fprintf(&b, "%-10s %s: %s: %s\n", "cet", f.name, f.j.Verdict, f.j.Reason)
		if f.j.Breaks != "" {
			fmt.Fprintf(&b, "%-10s   broken by %s\n", "", f.j.Breaks)
		}
	}
	if rep.ENDBR > 0 {
		fmt.Fprintf(&b, "%-10s %d ENDBR64, at the entry: %v, sealed: %d; %d of %d targets bare\n", "cet", rep.ENDBR, rep.EntryENDBR, rep.Sealed, rep.Bare, rep.Targets)
	}
	return b.WriteTo(w)
}

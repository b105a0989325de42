package cet

import (
	"bytes"
	"strings"
	"testing"
)

// image builds small ELF64 files: .text at 0x401000, .data at 0x402000.
type image struct {
	text     []byte
	data     []byte
	symbols  []Symbol // addresses in .text
	relative []uint64 // targets of R_X86_64_RELATIVE
	property []byte   // the descriptor of the GNU property note
	seal     int      // entries of .ibt_endbr_seal
}

const textAddr, dataAddr = 0x401000, 0x402000

func (img image) build() []byte {
	var names, strs, symtab, reloc, note bytes.Buffer
	names.WriteByte(0)
	strs.WriteByte(0)
	put := func(b *bytes.Buffer, v ...any) {
		for _, x := range v {
			switch x := x.(type) {
			case uint64:
				b.Write(le.AppendUint64(nil, x))
			case uint32:
				b.Write(le.AppendUint32(nil, x))
			case uint16:
				b.Write(le.AppendUint16(nil, x))
			case byte:
				b.WriteByte(x)
			}
		}
	}
	for _, s := range img.symbols {
		info := byte(0)
		if s.Func {
			info = sttFunc
		}
		if s.File != "" {
			put(&symtab, uint32(strs.Len()), byte(sttFile), byte(0), uint16(0xfff1), uint64(0), uint64(0))
			strs.WriteString(s.File + "\x00")
		}
		if s.Global {
			info |= 1 << 4
		}
		put(&symtab, uint32(strs.Len()), info, byte(0), uint16(1), s.Addr, uint64(0))
		strs.WriteString(s.Name + "\x00")
	}
	for i, target := range img.relative {
		put(&reloc, uint64(dataAddr+8*i), uint64(8), target)
	}
	if img.property != nil {
		put(&note, uint32(4), uint32(len(img.property)), uint32(5))
		note.WriteString("GNU\x00")
		note.Write(img.property)
	}
	type sec struct {
		name        string
		kind, flags uint64
		addr        uint64
		body        []byte
		link        uint32
	}
	list := []sec{
		{},
		{".text", 1, shfAlloc | shfExec, textAddr, img.text, 0},
		{".data", 1, shfAlloc | 1, dataAddr, img.data, 0},
		{".symtab", shtSymtab, 0, 0, symtab.Bytes(), 4},
		{".strtab", 3, 0, 0, strs.Bytes(), 0},
		{".rela.dyn", shtRela, shfAlloc, 0x403000, reloc.Bytes(), 0},
		{".note.gnu.property", shtNote, shfAlloc, 0x404000, note.Bytes(), 0},
		{".ibt_endbr_seal", 1, shfAlloc, 0x405000, make([]byte, 4*img.seal), 0},
	}
	var body, headers bytes.Buffer
	for _, s := range list {
		put(&headers, uint32(names.Len()), uint32(s.kind), s.flags, s.addr, uint64(64+body.Len()), uint64(len(s.body)), s.link, uint32(0), uint64(8), uint64(0))
		names.WriteString(s.name + "\x00")
		body.Write(s.body)
	}
	put(&headers, uint32(names.Len()), uint32(3), uint64(0), uint64(0), uint64(64+body.Len()), uint64(names.Len()+1), uint32(0), uint32(0), uint64(1), uint64(0))
	names.WriteByte(0)
	body.Write(names.Bytes())
	var out bytes.Buffer
	out.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put(&out, uint16(2), uint16(62), uint32(1), uint64(textAddr), uint64(0), uint64(64+body.Len()), uint32(0),
		uint16(64), uint16(56), uint16(0), uint16(64), uint16(len(list)+1), uint16(len(list)))
	out.Write(body.Bytes())
	out.Write(headers.Bytes())
	return out.Bytes()
}

// Two functions of 16 bytes: "open" with ENDBR64 and "bare" without; both return.
var (
	openFunc = append(append([]byte{}, endbr64...), bytes.Repeat([]byte{0x90}, 11)...)
	twoFuncs = append(append(append(append([]byte{}, openFunc...), 0xc3), bytes.Repeat([]byte{0x90}, 15)...), 0xc3)
	both     = []byte{2, 0, 0, 0xc0, 4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0}
)

var open = Symbol{Name: "open", Addr: textAddr, Func: true, Global: true}

func bare(global bool) Symbol {
	return Symbol{Name: "bare", Addr: textAddr + 16, Func: true, Global: global, File: "bare.c"}
}

func TestLint(t *testing.T) {
	pointer := le.AppendUint64(nil, textAddr+16)
	for _, c := range []struct {
		name       string
		img        image
		ibt, shstk Verdict
		says       string // in the report
		refuses    bool   // the IBT preset
	}{
		{"clean", image{text: twoFuncs, symbols: []Symbol{open, bare(false)}, property: both, seal: 3}, Yes, Yes, "sealed: 3; 0 of 1", false},
		{"global", image{text: twoFuncs, symbols: []Symbol{open, bare(true)}}, No, Unknown, "0x401010 (bare), a global function", false},
		{"pointer", image{text: twoFuncs, data: pointer, symbols: []Symbol{open, bare(false)}, property: both}, No, Yes, "0x401010 (bare) of bare.c, whose address is at 0x402000", true},
		{"relocation", image{text: twoFuncs, relative: []uint64{textAddr, textAddr + 16}}, No, Unknown, "0x401010, relocated at 0x402008", true},
		{"jump table", image{text: twoFuncs, relative: []uint64{textAddr, textAddr + 8}, symbols: []Symbol{open}}, Yes, Unknown, "all 1 targets", false},
		{"stripped", image{text: twoFuncs}, Unknown, Unknown, "link it without stripping", false},
		{"none", image{text: twoFuncs[16:]}, No, Unknown, "-fcf-protection=none", true},
		{"retpoline", image{text: twoFuncs, property: both, symbols: []Symbol{{Name: "__x86_indirect_thunk_rax", Addr: textAddr}}}, Yes, No, "retpolines", false},
		{"property without", image{text: twoFuncs, property: []byte{2, 0, 0, 0xc0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}}, Yes, Unknown, "does not promise", false},
	} {
		b := c.img.build()
		rep := Lint(bytes.NewReader(b), int64(len(b)))
		if rep.IBT.Verdict != c.ibt || rep.ShadowStack.Verdict != c.shstk {
			t.Errorf("%s: IBT %v, shadow stack %v", c.name, rep.IBT, rep.ShadowStack)
		}
		var text bytes.Buffer
		if _, err := rep.WriteTo(&text); err != nil || !strings.Contains(text.String(), c.says) {
			t.Errorf("%s: want %q in\n%s", c.name, c.says, &text)
		}
		if _, err := rep.Bears(PresetIBT); (err != nil) != c.refuses {
			t.Errorf("%s: IBT preset: %v", c.name, err)
		}
	}
}

// What would lose a preset shadow stack is found in the code, not in the bytes
// of an immediate operand.
func TestSweep(t *testing.T) {
	code := append([]byte{0xb8, 0x0f, 0x22, 0xd8, 0x48}, // mov $0x48d8220f,%eax
		0x0f, 0x22, 0xd8, // mov %rax,%cr3
		0x48, 0xcb) // lretq
	for n, want := range map[int]int{5: 0, 8: 1, 10: 2} {
		b := image{text: code[:n], symbols: []Symbol{{Name: "f", Addr: textAddr}}}.build()
		rep := Lint(bytes.NewReader(b), int64(len(b)))
		warnings, err := rep.Bears(PresetShadowStack)
		if err != nil || len(warnings) != want+1 || want > 0 && !strings.Contains(warnings[0], "0x401005 (f+0x5)") {
			t.Errorf("%d bytes: %q, %v", n, warnings, err)
		}
	}
}

func FuzzLint(f *testing.F) {
	f.Add(image{text: twoFuncs, symbols: []Symbol{open, bare(true)}, property: both, relative: []uint64{textAddr}, data: make([]byte, 32), seal: 1}.build())
	f.Add([]byte("\x7fELF\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rep := Lint(bytes.NewReader(b), int64(len(b)))
		if rep.IBT.Verdict == "" || rep.ShadowStack.Verdict == "" || rep.Bare > rep.Targets {
			t.Errorf("%+v", rep)
		}
	})
}

package complete

import (
	"bytes"
	"io"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"github.com/gvmm/gvmm/vmm/memory"
)

// bench is a guest with one instruction to complete.
type bench struct {
	t   testing.TB
	mem *memory.Guest
	bus *testBus
	c   *Completer
	cpu *CPU
}

func newBench(t testing.TB) *bench {
	mem, bus := testMemory(t), &testBus{}
	return &bench{t, mem, bus, testCompleter(t, mem, bus), testCPU()}
}

func (b *bench) run(code string) Result {
	b.t.Helper()
	if err := b.mem.Write(memory.GPA(b.cpu.RIP), []byte(code + "\xf4")[:min(len(code)+1, page-int(b.cpu.RIP%page))]); err != nil {
		b.t.Fatal(err)
	}
	var res Result
	b.c.Complete(b.cpu, &res)
	return res
}

func (b *bench) bytes(gpa uint64, n int) []byte {
	b.t.Helper()
	s, err := b.mem.Slice(memory.GPA(gpa), uint64(n))
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) entry(table uint64, i int, v uint64) { le.PutUint64(b.bytes(table+8*uint64(i), 8), v) }

// Instructions the tests use.
const (
	movupsLoad  = "\x0f\x10\x06"         // movups xmm0, [rsi]
	movupsStore = "\x0f\x11\x06"         // movups [rsi], xmm0
	movapsLoad  = "\x0f\x28\x06"         // movaps xmm0, [rsi]
	addps       = "\x0f\x58\xc1"         // addps xmm0, xmm1
	divps       = "\x0f\x5e\xc1"         // divps xmm0, xmm1
	vaddps      = "\xc5\xfc\x58\xc1"     // vaddps ymm0, ymm0, ymm1
	paddbMMX    = "\x0f\xfc\xc1"         // paddb mm0, mm1
	fld1        = "\xd9\xe8"             // fld1
	fnstsw      = "\xdf\xe0"             // fnstsw ax
	popcnt      = "\xf3\x48\x0f\xb8\xc6" // popcnt rax, rsi
	cx16        = "\x48\x0f\xc7\x0e"     // cmpxchg16b [rsi]
)

// TestExceptions has for each exception of an instruction the state that causes it.
func TestExceptions(t *testing.T) {
	gp := Fault{Vector: vecGP, HasError: true}
	ss := Fault{Vector: vecSS, HasError: true}
	pf := func(code uint32, cr2 uint64) Fault {
		return Fault{Vector: vecPF, HasError: true, ErrorCode: code, CR2: cr2}
	}
	only := func(v uint8) Fault { return Fault{Vector: v} }
	fcw := func(x []byte, cw, sw uint16) { le.PutUint16(x[xFCW:], cw); le.PutUint16(x[xFSW:], sw) }
	const hole = 0x40000000 // not mapped
	for _, e := range []struct {
		name, code string
		set        func(b *bench)
		want       Fault
	}{
		{"SSE with EM", addps, func(b *bench) { b.cpu.CR0 |= cr0EM }, only(vecUD)},
		{"SSE without OSFXSR", addps, func(b *bench) { b.cpu.CR4 &^= cr4OSFXSR }, only(vecUD)},
		{"SSE with TS", addps, func(b *bench) { b.cpu.CR0 |= cr0TS }, only(vecNM)},
		{"#UD goes before #NM", addps, func(b *bench) { b.cpu.CR0 |= cr0TS | cr0EM }, only(vecUD)},
		{"AVX without OSXSAVE", vaddps, func(b *bench) { b.cpu.CR4 &^= cr4OSXSAVE }, only(vecUD)},
		{"AVX without XCR0", vaddps, func(b *bench) { b.cpu.XCR0 = 3 }, only(vecUD)},
		{"AVX with TS", vaddps, func(b *bench) { b.cpu.CR0 |= cr0TS }, only(vecNM)},
		{"AVX with REX", "\x48" + vaddps, nil, only(vecUD)},
		{"AVX with lock", "\xf0" + vaddps, nil, only(vecUD)},
		{"unused vvvv", "\xc5\xec\x28\xc1", nil, only(vecUD)}, // vmovaps
		{"EVEX without XCR0", "\x62\xf1\x7c\x48\x10\x06", func(b *bench) { b.cpu.XCR0 = 7 }, only(vecUD)},
		{"EVEX zeroing without a mask", "\x62\xf1\x7c\xc8\x10\xc1", nil, only(vecUD)},
		{"EVEX zeroing store", "\x62\xf1\x7c\xc9\x11\x06", nil, only(vecUD)},
		{"EVEX unused vvvv", "\x62\xf1\x74\x48\x10\xc1", nil, only(vecUD)},
		{"EVEX broadcast of a move", "\x62\xf1\x7c\x58\x10\x06", nil, only(vecUD)},
		{"EVEX mask register above 7", "\x62\x71\x75\x48\x74\xc2", nil, only(vecUD)}, // vpcmpeqb k8
		{"EVEX misaligned", "\x62\xf1\x7c\x48\x28\x06", func(b *bench) { b.cpu.GPR[RSI] += 32 }, gp},
		{"lock on SSE", "\xf0" + addps, nil, only(vecUD)},
		{"ud2", "\x0f\x0b", nil, only(vecUD)},
		{"MMX with EM", paddbMMX, func(b *bench) { b.cpu.CR0 |= cr0EM }, only(vecUD)},
		{"MMX with pending x87 exception", paddbMMX, func(b *bench) { fcw(b.cpu.XSAVE, 0x37b, 0x8084) }, only(vecMF)},
		{"x87 with EM", fld1, func(b *bench) { b.cpu.CR0 |= cr0EM }, only(vecNM)},
		{"x87 with TS", fld1, func(b *bench) { b.cpu.CR0 |= cr0TS }, only(vecNM)},
		{"x87 with pending exception", fld1, func(b *bench) { fcw(b.cpu.XSAVE, 0x37e, 0x8081) }, only(vecMF)},
		{"fwait with TS and MP", "\x9b", func(b *bench) { b.cpu.CR0 |= cr0TS }, only(vecNM)},
		{"fwait with pending exception", "\x9b", func(b *bench) { fcw(b.cpu.XSAVE, 0x37e, 0x8081) }, only(vecMF)},
		{"fxsave with EM", "\x0f\xae\x06", func(b *bench) { b.cpu.CR0 |= cr0EM }, only(vecNM)},
		{"fxsave misaligned", "\x0f\xae\x06", func(b *bench) { b.cpu.GPR[RSI]++ }, gp},
		{"xsave misaligned", "\x0f\xae\x26", func(b *bench) { b.cpu.GPR[RSI] += 16 }, gp},
		{"xsave without OSXSAVE", "\x0f\xae\x26", func(b *bench) { b.cpu.CR4 &^= cr4OSXSAVE }, only(vecUD)},
		{"xrstor of a component that XCR0 lacks", "\x0f\xae\x2e", func(b *bench) { b.bytes(testData+xBV, 8)[1] = 0x80 }, gp},
		{"xrstor with reserved header bytes", "\x0f\xae\x2e", func(b *bench) { b.bytes(testData+xBV, 64)[17] = 1 }, gp},
		{"xrstor with reserved MXCSR bits", "\x0f\xae\x2e", func(b *bench) { b.bytes(testData, 64)[xMXCSR+3] = 1; b.cpu.GPR[RAX] = 2 }, gp},
		{"ldmxcsr with reserved bits", "\x0f\xae\x16", func(b *bench) { b.bytes(testData, 4)[3] = 1 }, gp},
		{"xgetbv(5)", "\x0f\x01\xd0", func(b *bench) { b.cpu.GPR[RCX] = 5 }, gp},
		{"wrfsbase not canonical", "\xf3\x48\x0f\xae\xd0", func(b *bench) { b.cpu.GPR[RAX] = 1 << 60 }, gp},
		{"rdfsbase without FSGSBASE", "\xf3\x48\x0f\xae\xc0", func(b *bench) { b.cpu.CR4 &^= cr4FSGSBASE }, only(vecUD)},
		{"cmpxchg16b misaligned", cx16, func(b *bench) { b.cpu.GPR[RSI] += 8 }, gp},
		{"movaps misaligned", movapsLoad, func(b *bench) { b.cpu.GPR[RSI] += 8 }, gp},
		{"vmovaps ymm misaligned", "\xc5\xfc\x28\x06", func(b *bench) { b.cpu.GPR[RSI] += 16 }, gp},
		{"0/0 unmasked", divps, func(b *bench) { le.PutUint32(b.cpu.XSAVE[xMXCSR:], 0x1f80&^(1<<7)) }, only(vecXM)},
		{"0/0 unmasked without OSXMMEXCPT", divps, func(b *bench) {
			le.PutUint32(b.cpu.XSAVE[xMXCSR:], 0x1f80&^(1<<7))
			b.cpu.CR4 &^= cr4OSXMMEXCPT
		}, only(vecUD)},
		{"not canonical", movupsLoad, func(b *bench) { b.cpu.GPR[RSI] = 1 << 50 }, gp},
		{"end not canonical", movupsLoad, func(b *bench) { b.cpu.GPR[RSI] = 1<<47 - 8 }, gp},
		{"stack not canonical", "\x0f\x10\x04\x24", func(b *bench) { b.cpu.GPR[RSP] = 1 << 50 }, ss},
		{"read of a hole", movupsLoad, func(b *bench) { b.cpu.GPR[RSI] = hole }, pf(0, hole)},
		{"write of a hole", movupsStore, func(b *bench) { b.cpu.GPR[RSI] = hole }, pf(pfW, hole)},
		{"user read of a hole", movupsLoad, func(b *bench) { b.cpu.GPR[RSI], b.cpu.CPL = hole, 3 }, pf(pfU, hole)},
		{"write of a read-only page", movupsStore, func(b *bench) { b.entry(testPT, testData/page, testData|ptP) }, pf(pfP|pfW, testData)},
		{"user access to a supervisor page", movupsLoad, func(b *bench) {
			b.entry(testPT, testData/page, testData|ptP|ptW)
			b.cpu.CPL = 3
		}, pf(pfP|pfU, testData)},
		{"second page missing", movupsStore, func(b *bench) {
			b.cpu.GPR[RSI] = testData + page - 8
			b.entry(testPT, testData/page+1, 0)
		}, pf(pfW, testData+page)},
		{"SMAP", movupsLoad, func(b *bench) { b.cpu.CR4 |= cr4SMAP }, pf(pfP, testData)},
		{"SMEP", movupsLoad, func(b *bench) { b.cpu.CR4 |= cr4SMEP }, pf(pfP|pfI, testCode)},
		{"NX", movupsLoad, func(b *bench) { b.entry(testPT, testCode/page, testCode|pageFlags|ptNX) }, pf(pfP|pfI, testCode)},
		{"code page missing", movupsLoad, func(b *bench) { b.entry(testPT, testCode/page, 0) }, pf(pfI, testCode)},
		{"code goes on into a missing page", "\x0f", func(b *bench) {
			b.cpu.RIP = testCode + page - 1
			b.entry(testPT, testCode/page+1, 0)
		}, pf(pfI, testCode+page)},
		{"reserved bit", movupsLoad, func(b *bench) { b.entry(testPT, testData/page, testData|pageFlags|1<<51) }, pf(pfP|pfRSVD, testData)},
		{"too long", "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66", nil, gp},
		{"null segment", movupsLoad, func(b *bench) {
			b.cpu.Seg[CS].L, b.cpu.Seg[CS].DB = false, true
			b.cpu.Seg[DS].Unusable = true
		}, gp},
		{"behind the limit", movupsLoad, func(b *bench) {
			b.cpu.Seg[CS].L, b.cpu.Seg[CS].DB = false, true
			b.cpu.Seg[DS].Limit = testData + 14
		}, gp},
		{"behind the stack's limit", "\x0f\x10\x04\x24", func(b *bench) {
			b.cpu.Seg[CS].L, b.cpu.Seg[CS].DB = false, true
			b.cpu.GPR[RSP], b.cpu.Seg[SS].Limit = 0x1000, 0xfff
		}, ss},
	} {
		t.Run(e.name, func(t *testing.T) {
			b := newBench(t)
			if e.code[0] == 0x62 && !b.c.has(f512) {
				t.Skip("no AVX-512")
			}
			b.cpu.GPR[RSI] = testData
			if e.set != nil {
				e.set(b)
			}
			before := clone(b.cpu)
			memory := bytes.Clone(b.bytes(testData, 2*page))
			res := b.run(e.code)
			if res.Outcome != Faulted || res.Fault != e.want {
				t.Fatalf("got %v, want %+v", &res, e.want)
			}
			if b.cpu.GPR != before.GPR || b.cpu.RIP != before.RIP || b.cpu.RFLAGS != before.RFLAGS {
				t.Error("registers changed")
			}
			if !bytes.Equal(b.cpu.XSAVE[xXMM:xXMMEnd], before.XSAVE[xXMM:xXMMEnd]) || !bytes.Equal(memory, b.bytes(testData, 2*page)) {
				t.Error("vector registers or memory changed")
			}
		})
	}
}

// TestBadRIP fetches from an address that is not canonical.
func TestBadRIP(t *testing.T) {
	b := newBench(t)
	b.cpu.RIP = 1 << 60
	var res Result
	if b.c.Complete(b.cpu, &res); res.Outcome != Faulted || res.Fault != (Fault{Vector: vecGP, HasError: true}) {
		t.Errorf("%v", &res)
	}
}

// TestNoException has states that cause none, one bit beside those above.
func TestNoException(t *testing.T) {
	for _, e := range []struct {
		name, code string
		set        func(b *bench)
	}{
		{"popcnt without an FPU", popcnt, func(b *bench) { b.cpu.CR0 |= cr0EM | cr0TS; b.cpu.CR4 = cr4PAE }},
		{"vmovups misaligned", "\xc5\xfc\x10\x06", func(b *bench) { b.cpu.GPR[RSI]++ }},
		{"vaddps misaligned", "\xc5\xfc\x58\x06", func(b *bench) { b.cpu.GPR[RSI]++ }},
		{"fnstsw with pending exception", fnstsw, func(b *bench) { le.PutUint16(b.cpu.XSAVE[xFCW:], 0x37e); le.PutUint16(b.cpu.XSAVE[xFSW:], 0x8081) }},
		{"fwait with TS without MP", "\x9b", func(b *bench) { b.cpu.CR0 = b.cpu.CR0&^cr0MP | cr0TS }},
		{"SMAP with AC", movupsLoad, func(b *bench) { b.cpu.CR4 |= cr4SMAP; b.cpu.RFLAGS |= flagAC }},
		{"WP off", movupsStore, func(b *bench) { b.entry(testPT, testData/page, testData|ptP); b.cpu.CR0 &^= cr0WP }},
		{"EVEX masked load of a hole", "\x62\xf1\x7c\x49\x10\x06", func(b *bench) {
			if !b.c.has(f512) {
				b.t.Skip("no AVX-512")
			}
			b.cpu.GPR[RSI] = 0x40000000
		}},
		{"masked load of a hole", "\xc4\xe2\x71\x2c\x06", func(b *bench) { b.cpu.GPR[RSI] = 0x40000000 }},
		{"maskmovdqu to a hole", "\x66\x0f\xf7\xc1", func(b *bench) { b.cpu.GPR[RDI] = 0x40000000 }},
		{"four-level large page", movupsLoad, func(b *bench) { b.cpu.GPR[RSI] = 0x200000 }},
	} {
		t.Run(e.name, func(t *testing.T) {
			b := newBench(t)
			b.cpu.GPR[RSI] = testData
			e.set(b)
			if res := b.run(e.code); res.Outcome != Done {
				t.Fatal(&res)
			}
		})
	}
}

// TestNotOnList: what is privileged, or KVM's own business, stays undone.
func TestNotOnList(t *testing.T) {
	for name, code := range map[string]string{
		"xsetbv": "\x0f\x01\xd1", "wrmsr": "\x0f\x30", "mov cr3": "\x0f\x22\xd8", "lgdt": "\x0f\x01\x16", "hlt": "\xf4", "out": "\xe6\x10",
		"xsaves": "\x0f\xc7\x2e", "invlpg": "\x0f\x01\x3e", "mov": "\x89\xc0", "syscall": "\x0f\x05", "vmcall": "\x0f\x01\xc1", "swapgs": "\x0f\x01\xf8",
		"clts": "\x0f\x06", "wbinvd": "\x0f\x09", "evex with rounding": "\x62\xf1\x7c\x18\x58\xc1", "emms with a prefix": "\xf3\x0f\x77", "movbe register": "\x0f\xc8",
	} {
		b := newBench(t)
		before := clone(b.cpu)
		res := b.run(code)
		if res.Outcome != NotOnList || res.Reason == "" || res.Asm == "" || !bytes.HasPrefix(res.Bytes[:res.Len], []byte(code)) {
			t.Errorf("%s: %v", name, &res)
		}
		if b.cpu.GPR != before.GPR || b.cpu.RIP != before.RIP || !bytes.Equal(b.cpu.XSAVE, before.XSAVE) {
			t.Errorf("%s: the state changed", name)
		}
	}
	b := newBench(t)
	b.cpu.CR4 |= cr4CET
	if res := b.run("\xf3\x48\x0f\x1e\xc8"); res.Outcome != NotOnList {
		t.Errorf("rdssp with CET: %v", &res)
	}
	b = newBench(t)
	b.cpu.CR3 = 1 << 40
	if res := b.run(movupsLoad); res.Outcome != NotOnList {
		t.Errorf("page tables outside RAM: %v", &res)
	}
}

// TestMMIO: an operand that is not RAM goes to the bus, in aligned parts of at
// most eight bytes, once each.
func TestMMIO(t *testing.T) {
	b := newBench(t)
	for i := range b.bus.data {
		b.bus.data[i] = byte(i)
	}
	const mmio = testMMIO
	b.cpu.GPR[RSI] = mmio + 4
	if res := b.run(movupsLoad); res.Outcome != Done {
		t.Fatal(&res)
	}
	want := []recordedAccess{{mmio + 4, false, 4}, {mmio + 8, false, 8}, {mmio + 16, false, 4}}
	if len(b.bus.log) != 3 || b.bus.log[0] != want[0] || b.bus.log[1] != want[1] || b.bus.log[2] != want[2] {
		t.Errorf("bus saw %v", b.bus.log)
	}
	if !bytes.Equal(b.cpu.XSAVE[xXMM:xXMM+16], b.bus.data[4:20]) {
		t.Errorf("loaded % x", b.cpu.XSAVE[xXMM:xXMM+16])
	}
	b.bus.log = nil
	b.cpu.RIP, b.cpu.GPR[RSI] = testCode, mmio+32
	if res := b.run("\x0f\x29\x06"); res.Outcome != Done { // movaps [rsi], xmm0
		t.Fatal(&res)
	}
	if len(b.bus.log) != 2 || b.bus.log[0] != (recordedAccess{mmio + 32, true, 8}) || !bytes.Equal(b.bus.data[32:48], b.bus.data[4:20]) {
		t.Errorf("bus saw %v", b.bus.log)
	}
	// A masked store touches only its elements.
	b.bus.log = nil
	b.cpu.RIP = testCode
	b.cpu.XSAVE[xXMM+16+7] = 0x80                                                          // xmm1: only the second element
	if res := b.run("\xc4\xe2\x71\x2e\x06"); res.Outcome != Done || len(b.bus.log) != 1 || // vmaskmovps [rsi], xmm1, xmm0
		b.bus.log[0] != (recordedAccess{mmio + 36, true, 4}) {
		t.Errorf("%v, bus saw %v", &res, b.bus.log)
	}
}

// TestPageCrossing: an operand in two pages that do not lie side by side.
func TestPageCrossing(t *testing.T) {
	b := newBench(t)
	b.entry(testPT, testData/page+1, 0x30000|pageFlags)
	b.cpu.GPR[RSI] = testData + page - 6
	for i := range 16 {
		b.cpu.XSAVE[xXMM+i] = byte(i + 1)
	}
	if res := b.run(movupsStore); res.Outcome != Done {
		t.Fatal(&res)
	}
	if !bytes.Equal(b.bytes(testData+page-6, 6), b.cpu.XSAVE[xXMM:xXMM+6]) || !bytes.Equal(b.bytes(0x30000, 10), b.cpu.XSAVE[xXMM+6:xXMM+16]) {
		t.Error("bytes in the wrong places")
	}
	// The accessed and dirty bits are as the processor leaves them.
	for _, e := range []struct {
		at   uint64
		want uint64
	}{{testPT + 8*(testData/page), ptA | ptD}, {testPT + 8*(testData/page+1), ptA | ptD}, {testPT + 8*(testCode/page), ptA}, {testPD, ptA}, {testPML4, ptA}, {testPT + 8*7, 0}} {
		if got := le.Uint64(b.bytes(e.at, 8)) & (ptA | ptD); got != e.want {
			t.Errorf("entry at %#x: accessed and dirty bits %#x, want %#x", e.at, got, e.want)
		}
	}
}

// TestPagingModes translates one address in each paging mode.
func TestPagingModes(t *testing.T) {
	put32 := func(b *bench, at uint64, v uint32) { le.PutUint32(b.bytes(at, 4), v) }
	for name, set := range map[string]func(b *bench){
		"none": func(b *bench) { b.cpu.CR0 &^= cr0PG },
		"32-bit": func(b *bench) {
			b.cpu.CR4 &^= cr4PAE
			b.cpu.CR3 = 0x40000
			put32(b, 0x40000, 0x41000|pageFlags)
			for i := range uint32(64) {
				put32(b, 0x41000+4*uint64(i), i*page|pageFlags)
			}
		},
		"32-bit, 4 MiB pages": func(b *bench) {
			b.cpu.CR4 = b.cpu.CR4&^cr4PAE | cr4PSE
			b.cpu.CR3 = 0x40000
			put32(b, 0x40000, pageFlags|ptPS)
		},
		"PAE": func(b *bench) {
			b.cpu.CR3 = 0x40020
			b.entry(0x40020, 0, testPD|ptP)
		},
		"five levels": func(b *bench) {
			b.cpu.CR3 = 0x40000
			b.cpu.CR4 |= cr4LA57
			b.entry(0x40000, 0, testPML4|pageFlags)
			b.cpu.EFER |= eferLMA
			b.cpu.Seg[CS].L, b.cpu.Seg[CS].DB = true, false
		},
	} {
		b := newBench(t)
		b.cpu.EFER &^= eferLMA
		b.cpu.Seg[CS].L, b.cpu.Seg[CS].DB = false, true
		set(b)
		b.cpu.GPR[RSI] = testData + 8
		copy(b.bytes(testData+8, 16), "0123456789abcdef")
		if res := b.run(movupsLoad); res.Outcome != Done || string(b.cpu.XSAVE[xXMM:xXMM+16]) != "0123456789abcdef" {
			t.Errorf("%s: %v, xmm0 %q", name, &res, b.cpu.XSAVE[xXMM:xXMM+16])
		}
	}
}

// TestRealMode: 16-bit addresses and segment bases.
func TestRealMode(t *testing.T) {
	b := newBench(t)
	b.cpu.CR0, b.cpu.EFER = 0x10, 0
	for i := range b.cpu.Seg {
		b.cpu.Seg[i] = Segment{Base: 0x20000, Limit: 0xffff, Type: 3}
	}
	b.cpu.Seg[CS].Base = testCode
	b.cpu.RIP, b.cpu.GPR[RBX], b.cpu.GPR[RSI] = 0x10, 0xfff0, 0x50030
	copy(b.bytes(testData+0x22, 16), "fedcba9876543210")
	copy(b.bytes(testCode+0x10, 4), "\x0f\x10\x40\x02") // movups xmm0, [bx+si+2]
	var res Result
	b.c.Complete(b.cpu, &res)
	if res.Outcome != Done || b.cpu.RIP != 0x14 || string(b.cpu.XSAVE[xXMM:xXMM+16]) != "fedcba9876543210" {
		t.Errorf("%v, rip %#x, xmm0 %q", &res, b.cpu.RIP, b.cpu.XSAVE[xXMM:xXMM+16])
	}
}

// TestAhead: listed instructions that follow are completed too, up to one that
// is KVM's, that faults, or that has used the bus.
func TestAhead(t *testing.T) {
	const pxor, mov = "\x66\x0f\xef\xc1", "\x89\xc0"
	for name, e := range map[string]struct {
		code   string
		count  int
		length uint64
		want   Outcome
		fault  Fault
	}{
		"up to mov":     {pxor + addps + mov + pxor, 2, 7, Done, Fault{}},
		"up to a fault": {pxor + movapsLoad, 1, 4, Faulted, Fault{Vector: vecGP, HasError: true}},
		"up to the bus": {pxor + "\x0f\x10\x07" + pxor, 2, 7, Done, Fault{}},
		"bounded":       {strings.Repeat(pxor, 100), maxAhead, 4 * maxAhead, Done, Fault{}},
	} {
		b := newBench(t)
		b.cpu.GPR[RSI], b.cpu.GPR[RDI] = testData+1, testMMIO
		if res := b.run(e.code); res.Outcome != e.want || res.Count != e.count || res.Fault != e.fault || b.cpu.RIP != testCode+e.length {
			t.Errorf("%s: %v, %d completed, rip %#x", name, &res, res.Count, b.cpu.RIP)
		}
	}
	b := newBench(t)
	b.entry(testPT, testCode/page+1, 0)
	b.cpu.RIP = testCode + page - 4
	if res := b.run(pxor); res.Outcome != Done || res.Count != 1 {
		t.Errorf("code ends at a missing page: %v", &res)
	}
}

// TestSingleStep: with TF the completed instruction ends in #DB.
func TestSingleStep(t *testing.T) {
	b := newBench(t)
	b.cpu.RFLAGS |= flagTF | flagRF
	if res := b.run(addps); res.Outcome != Faulted || res.Fault != (Fault{Vector: vecDB}) || b.cpu.RIP != testCode+3 || b.cpu.RFLAGS&flagRF != 0 {
		t.Errorf("%v, rip %#x", &res, b.cpu.RIP)
	}
}

// TestX87Pointers: the guest sees its own addresses as the last x87 instruction
// and operand, never the host's.
func TestX87Pointers(t *testing.T) {
	b := newBench(t)
	b.cpu.GPR[RSI] = testData
	le.PutUint16(b.cpu.XSAVE[xFCW:], 0x37e)
	le.PutUint32(b.bytes(testData, 4), 0x7f800001) // a signaling NaN, so that the exception stays
	if res := b.run("\xd8\x06"); res.Outcome != Done {
		t.Fatal(&res)
	}
	x := b.cpu.XSAVE
	if ip, dp, op := le.Uint64(x[xFIP:]), le.Uint64(x[xFDP:]), le.Uint16(x[xFOP:]); ip != testCode || dp != testData || op != 0x06 {
		t.Errorf("instruction pointer %#x, operand pointer %#x, opcode %#x", ip, dp, op)
	}
}

// TestGuestFeatures: what the guest's CPUID lacks is #UD.
func TestGuestFeatures(t *testing.T) {
	mem := testMemory(t)
	c, err := New(mem, &testBus{})
	if err != nil {
		t.Fatal(err)
	}
	c.guest.has &^= 1<<fAVX | 1<<fSSSE3
	defer func() { _ = c.Close() }()
	b := &bench{t, mem, nil, c, testCPU()}
	for _, code := range []string{vaddps, "\x66\x0f\x38\x00\xc1"} {
		if res := b.run(code); res.Outcome != Faulted || res.Fault != (Fault{Vector: vecUD}) {
			t.Errorf("% x: %v", code, &res)
		}
	}
	if res := b.run(addps); res.Outcome != Done {
		t.Errorf("%v", &res)
	}
}

// TestCompareExchangeIsAtomic has two vCPUs count in one 16-byte word.
func TestCompareExchangeIsAtomic(t *testing.T) {
	mem := testMemory(t)
	const each = 2000
	var wg sync.WaitGroup
	if err := mem.Write(testCode, []byte("\xf0"+cx16)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := New(mem, &testBus{})
		if err != nil {
			t.Fatal(err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { _ = c.Close() }()
			cpu := testCPU()
			cpu.GPR[RSI] = testData
			for n := 0; n < each; {
				g := &cpu.GPR
				g[RBX], g[RCX] = g[RAX]+1, g[RDX]+3
				cpu.RIP = testCode
				var res Result
				if c.Complete(cpu, &res); res.Outcome != Done {
					t.Error(&res)
					return
				}
				if cpu.RFLAGS&flagZF != 0 {
					n++
				}
			}
		}()
	}
	wg.Wait()
	var p [16]byte
	if err := mem.Read(testData, p[:]); err != nil {
		t.Fatal(err)
	}
	if lo, hi := le.Uint64(p[:]), le.Uint64(p[8:]); lo != 2*each || hi != 6*each {
		t.Errorf("counted %d and %d, want %d and %d", lo, hi, 2*each, 6*each)
	}
}

// TestLengths compares the decoder's lengths with x86asm's for everything both know.
func TestLengths(t *testing.T) {
	b := newBench(t)
	tails := []string{"\xc1", "\x06", "\x46\x10", "\x86\x10\x00\x00\x00", "\x04\x25\x00\x00\x02\x00", "\x05\x00\x00\x01\x00", "\x44\x24\x08"}
	compared := 0
	for m, tab := range map[string]*table{"\x0f": &b.c.list.plain[1], "\x0f\x38": &b.c.list.plain[2], "\x0f\x3a": &b.c.list.plain[3]} {
		for pp, prefix := range []string{"", "\x66", "\xf3", "\xf2"} {
			for op := range 256 {
				if tab[pp][op].legacy() == 0 {
					continue
				}
				for _, tail := range tails {
					for _, rex := range []string{"", "\x48", "\x45"} {
						code := append([]byte(prefix+rex+m), byte(op))
						code = append(code, tail...)
						code = append(code, 1, 0x90, 0x90, 0x90)[:min(maxLen, len(code)+4)]
						ref, err := x86asm.Decode(code, 64)
						if err != nil || ref.Len < len(prefix+rex+m)+1 {
							continue
						}
						b.cpu.RIP = testCode
						if err := b.mem.Write(testCode, code); err != nil {
							t.Fatal(err)
						}
						b.c.cpu, b.c.why = b.cpu, ""
						if !b.c.decode() {
							continue
						}
						if compared++; b.c.in.n != ref.Len {
							t.Errorf("% x: length %d, x86asm says %d (%v)", code, b.c.in.n, ref.Len, ref)
						}
					}
				}
			}
		}
	}
	if compared < 3000 {
		t.Errorf("only %d compared", compared)
	}
}

// TestSignals: profiling and preemption signals arrive inside the trampoline, and
// neither the runtime nor a result suffers.
func TestSignals(t *testing.T) {
	b := newBench(t)
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Skip(err)
	}
	defer pprof.StopCPUProfile()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC() // preempts every goroutine by signal
			}
		}
	}()
	defer wg.Wait()
	defer close(stop)
	var res Result
	if err := b.mem.Write(testCode, []byte("\xc5\xfd\xd4\xc1\xd8\xc1\xf3\x48\x0f\xb8\xc6\xf4")); err != nil { // vpaddq ymm0, ymm0, ymm1; fadd st, st(1); popcnt rax, rsi
		t.Fatal(err)
	}
	x := b.cpu.XSAVE
	x[xFTW] = 0xff
	le.PutUint64(x[xXMM+16:], 3)
	le.PutUint64(x[xST:], 1<<63)
	le.PutUint16(x[xST+8:], 0x3fff) // 1
	copy(x[xST+16:xST+26], x[xST:])
	const rounds = 100000
	for range rounds {
		b.cpu.RIP, b.cpu.GPR[RSI] = testCode, 0xff
		if b.c.Complete(b.cpu, &res); res.Outcome != Done || res.Count != 3 {
			t.Fatal(&res)
		}
	}
	if sum := le.Uint64(x[xXMM:]); sum != 3*rounds {
		t.Errorf("vector sum %d, want %d", sum, 3*rounds)
	}
	if exp, man := le.Uint16(x[xST+8:]), le.Uint64(x[xST:]); exp != 0x3fff+16 || man != (rounds+1)<<47 {
		t.Errorf("x87 sum %#x %#x", exp, man)
	}
	if b.cpu.GPR[RAX] != 8 {
		t.Errorf("popcnt %d", b.cpu.GPR[RAX])
	}
}

func TestNoAllocation(t *testing.T) {
	b := newBench(t)
	b.cpu.GPR[RSI] = testData
	var res Result
	for _, code := range []string{movupsLoad, movupsStore, "\x0f\xae\x0e", "\x0f\xae\x26", cx16, vaddps, "\x0f\x01\xd0"} {
		if err := b.mem.Write(testCode, []byte(code+"\xf4")); err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(100, func() {
			b.cpu.RIP, b.cpu.GPR[RCX] = testCode, 0
			b.c.Complete(b.cpu, &res)
		})
		if n != 0 || res.Outcome != Done {
			t.Errorf("% x: %v allocations, %v", code, n, &res)
		}
	}
}

func BenchmarkComplete(b *testing.B) {
	for name, code := range map[string]string{
		"pxor": "\x66\x0f\xef\xc0", "movups load": movupsLoad, "fxrstor": "\x0f\xae\x0e", "xrstor": "\x48\x0f\xae\x2e", "popcnt": popcnt, "vaddps": vaddps, "xgetbv": "\x0f\x01\xd0",
	} {
		b.Run(name, func(b *testing.B) {
			g := newBench(b)
			g.cpu.GPR[RSI] = testData
			if err := g.mem.Write(testCode, []byte(code)); err != nil {
				b.Fatal(err)
			}
			var res Result
			b.ReportAllocs()
			for b.Loop() {
				g.cpu.RIP, g.cpu.GPR[RCX] = testCode, 0
				if g.c.Complete(g.cpu, &res); res.Outcome != Done {
					b.Fatal(&res)
				}
			}
		})
	}
}

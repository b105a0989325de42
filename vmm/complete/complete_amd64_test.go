package complete

import (
	"runtime"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Where the test guest's things lie; everything is mapped one to one.
const (
	testRAM   = 4 << 20
	testPML4  = 0x1000
	testPDPT  = 0x2000
	testPD    = 0x3000
	testPT    = 0x4000 // the first 2 MiB in small pages
	testCode  = 0x10000
	testData  = 0x20000 // 16 KiB of operands
	testMMIO  = 0x100000000 - 0x200000
	pageFlags = ptP | ptW | ptU
)

type recordedAccess struct {
	addr  uint64
	write bool
	n     int
}

// testBus answers reads with a counter pattern and records what it sees.
type testBus struct {
	log  []recordedAccess
	data [64]byte
}

func (b *testBus) Read(addr uint64, data []byte) bool {
	b.log = append(b.log, recordedAccess{addr, false, len(data)})
	copy(data, b.data[addr%64:])
	return true
}

func (b *testBus) Write(addr uint64, data []byte) bool {
	b.log = append(b.log, recordedAccess{addr, true, len(data)})
	copy(b.data[addr%64:], data)
	return true
}

func testMemory(t testing.TB) *memory.Guest {
	t.Helper()
	mem, err := memory.New(memory.Range{Size: testRAM})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	mapTestMemory(t, mem)
	return mem
}

// mapTestMemory writes the page tables.
func mapTestMemory(t testing.TB, mem *memory.Guest) {
	t.Helper()
	put := func(table uint64, i int, v uint64) {
		var b [8]byte
		le.PutUint64(b[:], v)
		if err := mem.Write(memory.GPA(table+8*uint64(i)), b[:]); err != nil {
			t.Fatal(err)
		}
	}
	put(testPML4, 0, testPDPT|pageFlags)
	put(testPDPT, 0, testPD|pageFlags)
	put(testPDPT, 3, 0x5000|pageFlags)
	put(0x5000, 511, testMMIO|pageFlags|ptPS) // the last 2 MiB below 4 GiB: not RAM
	put(testPD, 0, testPT|pageFlags)
	put(testPD, 1, 0x200000|pageFlags|ptPS)
	for i := range 512 {
		put(testPT, i, uint64(i)*page|pageFlags)
	}
}

func testCompleter(t testing.TB, mem *memory.Guest, bus Bus) *Completer {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	c, err := New(mem, bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// testCPU is a vCPU in 64-bit mode at ring 0 with everything enabled.
func testCPU() *CPU {
	cpu := &CPU{
		RIP: testCode, RFLAGS: 2,
		CR0: cr0PG | cr0PE | cr0WP | cr0MP | 1<<5, CR3: testPML4,
		CR4:  cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT | cr4OSXSAVE | cr4FSGSBASE,
		EFER: eferLMA | eferNXE | 1<<8, XCR0: xgetbv() & 0xe7,
		XSAVE: make([]byte, page),
	}
	for i := range cpu.Seg {
		cpu.Seg[i] = Segment{Limit: 0xffffffff, Type: 3, DB: true}
	}
	cpu.Seg[CS] = Segment{Limit: 0xffffffff, Type: 11, L: true}
	le.PutUint16(cpu.XSAVE[xFCW:], fcwInit)
	le.PutUint32(cpu.XSAVE[xMXCSR:], mxcsrInit)
	le.PutUint64(cpu.XSAVE[xBV:], cpu.XCR0)
	return cpu
}

func TestSmoke(t *testing.T) {
	mem := testMemory(t)
	c := testCompleter(t, mem, &testBus{})
	for _, code := range []string{
		"\x66\x0f\xef\xc0",             // pxor xmm0,xmm0
		"\x66\x49\x0f\x6e\xc4",         // movq xmm0,r12
		"\x66\x0f\x6c\xc1",             // punpcklqdq
		"\x0f\x01\xd0",                 // xgetbv
		"\xc5\xf5\xfe\xc2",             // vpaddd ymm0,ymm1,ymm2
		"\xd9\xe8",                     // fld1
		"\xf3\x48\x0f\xb8\xc4",         // popcnt rax,rsp
		"\x0f\x77",                     // emms
		"\xc5\xf8\x77",                 // vzeroupper
		"\xd9\x3c\x25\x00\x00\x02\x00", // fnstcw [0x20000]
	} {
		cpu := testCPU()
		cpu.GPR[12] = 0x1122334455667788
		cpu.GPR[RSP] = 0xff
		cpu.GPR[RCX] = 0
		if err := mem.Write(testCode, []byte(code)); err != nil {
			t.Fatal(err)
		}
		var res Result
		c.Complete(cpu, &res)
		if res.Outcome != Done || cpu.RIP != testCode+uint64(len(code)) {
			t.Errorf("% x: %v rip %#x", code, res.String(), cpu.RIP)
		}
		t.Logf("% x rax=%x xmm0=%x", code, cpu.GPR[RAX], cpu.XSAVE[xXMM:xXMM+16])
	}
}

func TestOpcodeList(t *testing.T) {
	list, err := parseOpcodes("two = regV rmV\n[0F38 NP F2] # a section\n10-12 1F: two m16 vex:AVX\n[EVEX.0F NP]\nFF: ext:81")
	if err != nil {
		t.Fatal(err)
	}
	row := regV | rmV | m16 | fAVX<<vexShift
	for pp, want := range []form{row, 0, 0, row} {
		for op, f := range list.plain[2][pp] {
			if on := op >= 0x10 && op <= 0x12 || op == 0x1f; on && f != want || !on && f != 0 {
				t.Errorf("prefix %d opcode %#x: form %#x", pp, op, f)
			}
		}
	}
	if f := list.evex[1][0][0xff]; f.ext() != 0x81 {
		t.Errorf("EVEX row %#x", f)
	}
	for _, text := range []string{"[0F NP]\n10: nonsense", "[0F NP]\n10: legacy:none", "10: m1", "[1F NP]\n10: m1"} {
		if _, err := parseOpcodes(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	all, err := opcodeList()
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, maps := range []*[4]table{&all.plain, &all.evex} {
		for _, m := range maps {
			for _, p := range m {
				for _, f := range p {
					if f != 0 {
						rows++
					}
				}
			}
		}
	}
	if rows != 716 {
		t.Errorf("%d opcodes are on the list: say so here when that was meant", rows)
	}
}

package complete

import (
	"math/rand/v2"
	"testing"

	"github.com/gvmm/gvmm/vmm/memory"
)

// FuzzComplete hands any bytes in any state to the completer: neither it nor
// the host processor may fault, and what it does not complete it must not change.
func FuzzComplete(f *testing.F) {
	for _, s := range []string{
		"\x66\x0f\xef\xc0", "\x0f\xae\x0e", "\x0f\xae\x2e", "\x0f\xc7\x0e", "\x0f\x01\xd0", "\xc4\xe2\x7d\x90\x04\x0e", "\xd9\x36",
		"\xc4\xe2\x75\x8c\x06", "\x0f\xf7\xc1", "\xf2\x0f\x38\xf0\xc4", "\xdd\x26", "\xc5\xf8\x77", "\x62\xf1\x7c\x48\x10\x06",
	} {
		f.Add([]byte(s), uint64(1), uint32(0))
		f.Add([]byte(s), uint64(2), uint32(0x1234567))
	}
	mem := testMemory(f)
	c := testCompleter(f, mem, &testBus{})
	data, err := mem.Slice(testData, dataLen)
	if err != nil {
		f.Fatal(err)
	}
	small, err := mem.Slice(testPT, page)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, code []byte, seed uint64, knobs uint32) {
		r := rand.New(rand.NewPCG(seed, 0))
		cpu := randomCPU(r)
		bit := func(i int) bool { return knobs>>i&1 != 0 }
		cpu.CPL = uint8(knobs & 3)
		if bit(2) { // 32-bit code, by paging mode
			cpu.Seg[CS].L, cpu.Seg[CS].DB = false, bit(3)
			if bit(4) {
				cpu.EFER &^= eferLMA
			}
			if bit(5) {
				cpu.CR4 &^= cr4PAE
			}
			if bit(6) {
				cpu.CR0 &^= cr0PG
			}
			if bit(7) {
				cpu.CR0 &^= cr0PE
			}
		}
		if bit(8) {
			cpu.CR3 = uint64(r.IntN(testRAM))
		}
		if bit(9) {
			cpu.CR0 ^= 1 << r.IntN(32) & (cr0EM | cr0TS | cr0MP | cr0WP)
		}
		if bit(10) {
			cpu.CR4 ^= 1 << r.IntN(32)
			cpu.CR4 ^= 1 << r.IntN(32)
		}
		if bit(11) {
			cpu.XCR0 = r.Uint64()
		}
		if bit(12) {
			cpu.XSAVE = cpu.XSAVE[:r.IntN(page)]
		}
		if bit(13) {
			for i := range cpu.XSAVE {
				cpu.XSAVE[i] = byte(r.Uint32())
			}
		}
		if bit(14) {
			cpu.RFLAGS = r.Uint64()
		}
		for i := range 16 {
			if r.IntN(2) == 0 {
				cpu.GPR[i] = testData + uint64(r.IntN(256))*16
			}
		}
		if bit(15) {
			cpu.Seg[r.IntN(6)] = Segment{Base: r.Uint64(), Limit: r.Uint32(), Type: uint8(r.IntN(16)), DB: bit(3), L: bit(4)}
		}
		randomFill(r, data)
		if bit(17) {
			clear(data[xBV:xHeaderEnd])
		}
		at := uint64(testCode)
		if bit(16) {
			at += page - uint64(r.IntN(16))
		}
		cpu.RIP = at
		for i := range 512 {
			le.PutUint64(small[8*i:], uint64(i)*page|pageFlags)
			if bit(18) && r.IntN(4) == 0 {
				le.PutUint64(small[8*i:], randomWord(r)<<r.IntN(30))
			}
		}
		if len(code) > 64 {
			code = code[:64]
		}
		if err := mem.Write(memory.GPA(at), code); err != nil {
			t.Fatal(err)
		}
		before := clone(cpu)
		var res Result
		c.Complete(cpu, &res)
		switch res.Outcome {
		case Done:
			if cpu.RIP == before.RIP || res.Len > maxLen {
				t.Fatalf("completed, but RIP is still %#x", cpu.RIP)
			}
		case NotOnList:
			if cpu.GPR != before.GPR || cpu.RIP != before.RIP || cpu.RFLAGS != before.RFLAGS || cpu.FPUChanged {
				t.Fatalf("%v, but the state changed", &res)
			}
			_ = res.String()
		case Faulted:
			if v := res.Fault.Vector; v > 19 {
				t.Fatalf("exception %d", v)
			}
		}
		if len(cpu.XSAVE) >= xHeaderEnd && res.Outcome == Done {
			if m := le.Uint32(cpu.XSAVE[xMXCSR:]); cpu.FPUChanged && !bit(13) && m&^c.mxcsrMask != 0 {
				t.Fatalf("MXCSR %#x has reserved bits", m)
			}
		}
		for _, p := range []uint64{xFIP, xFDP} {
			if len(cpu.XSAVE) >= xHeaderEnd && (c.exec.isCode(le.Uint64(cpu.XSAVE[p:])) || c.exec.isScratch(le.Uint64(cpu.XSAVE[p:]))) {
				t.Fatalf("a host address in the guest's state")
			}
		}
	})
}

// TestRandomTable walks the opcode maps with random operands and states, which
// reaches deeper than random bytes.
func TestRandomTable(t *testing.T) {
	mem := testMemory(t)
	c := testCompleter(t, mem, &testBus{})
	r := rand.New(rand.NewPCG(3, 4))
	n := 200000
	if testing.Short() {
		n = 20000
	}
	var ends [3]int
	prefixes := []byte{0x66, 0xF2, 0xF3, 0xF0, 0x67, 0x2E, 0x64, 0x65, 0x48, 0x4F}
	cpus := make([]*CPU, 64)
	for i := range cpus {
		cpus[i] = randomCPU(r)
	}
	for i := range n {
		if i%64 == 0 {
			mapTestMemory(t, mem) // stray stores hit it
		}
		var code []byte
		for r.IntN(2) == 0 {
			code = append(code, prefixes[r.IntN(len(prefixes))])
		}
		switch r.IntN(6) {
		case 0:
			code = append(code, 0xD8+byte(r.IntN(8)))
		case 1:
			code = append(code, 0x0F)
		case 2:
			code = append(code, 0x0F, []byte{0x38, 0x3A}[r.IntN(2)])
		case 3:
			code = append(code, 0xC5)
		case 4:
			code = append(code, 0x62, byte(r.Uint32())&0xF0|byte(1+r.IntN(3)), byte(r.Uint32())|4)
		case 5:
			code = append(code, 0xC4, byte(r.Uint32())&0xE0|byte(1+r.IntN(3)))
		}
		for len(code) < maxLen {
			code = append(code, byte(r.Uint32()))
		}
		cpu := clone(cpus[r.IntN(len(cpus))])
		for i := range cpu.GPR {
			cpu.GPR[i] = testData + uint64(r.IntN(page))
		}
		switch r.IntN(4) {
		case 0:
			cpu.Seg[CS].L, cpu.Seg[CS].DB = false, true
		case 1:
			cpu.Seg[CS].L, cpu.Seg[CS].DB = false, false
		}
		if err := mem.Write(testCode, code); err != nil {
			t.Fatal(err)
		}
		var res Result
		c.Complete(cpu, &res)
		ends[res.Outcome]++
	}
	t.Logf("completed %d, faulted %d, not on the list %d", ends[Done], ends[Faulted], ends[NotOnList])
	if ends[Done] < n/20 {
		t.Error("too few completed to mean anything")
	}
}

package complete

import (
	"errors"
	"testing"

	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// Where the parts of the guest that only the real processor needs lie.
const (
	testGDT    = 0x6000
	testIDT    = 0x7000
	testTSS    = 0x8000
	testStubs  = 0x9000
	testKStack = 0xb000 // grows down
	portDone   = 0x10
	portVector = 0x40
)

// ring3 runs single instructions natively in ring 3 of a guest on /dev/kvm.
type ring3 struct {
	t    testing.TB
	vcpu *kvm.VCPU
	mem  *memory.Guest
	base *kvm.Sregs
	size int
}

func newRing3(t testing.TB, mem *memory.Guest) *ring3 {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sys, err := kvm.Open(kvm.Host{})
	if errors.Is(err, kvm.ErrUnavailable) {
		t.Skip(err)
	}
	must(err)
	t.Cleanup(func() { _ = sys.Close() })
	vm, err := sys.CreateVM(0)
	must(err)
	t.Cleanup(func() { _ = vm.Close() })
	r := &mem.Regions()[0]
	must(vm.SetMemory(0, uint64(r.Base), r.Size, r.HostAddr()))
	must(vm.SetTSSAddr(0xfffbd000))
	vcpu, err := vm.CreateVCPU(0)
	must(err)
	t.Cleanup(func() { _ = vcpu.Close() })
	leaves, err := sys.SupportedCPUID()
	must(err)
	must(vcpu.SetCPUID(leaves))
	vcpu.Bind()

	put64 := func(gpa uint64, v uint64) {
		var b [8]byte
		le.PutUint64(b[:], v)
		must(mem.Write(memory.GPA(gpa), b[:]))
	}
	put64(testGDT+0x08, 0x00af9b000000ffff) // ring 0 code
	put64(testGDT+0x10, 0x00cf93000000ffff) // ring 0 data
	put64(testGDT+0x18, 0x00cff3000000ffff) // ring 3 data
	put64(testGDT+0x20, 0x00affb000000ffff) // ring 3 code
	put64(testGDT+0x28, 0x00008b0000000067|testTSS<<16)
	put64(testGDT+0x38, 0x00cffb000000ffff) // ring 3 code, 32 bits
	put64(testTSS+4, testKStack)
	for v := range uint64(32) {
		stub := testStubs + 16*v
		put64(testIDT+16*v, stub&0xffff|8<<16|0x8e00<<32|stub>>16<<48)
		put64(testIDT+16*v+8, 0)
		must(mem.Write(memory.GPA(stub), []byte{0xE6, portVector + byte(v), 0xF4}))
	}

	s, err := vcpu.Sregs()
	must(err)
	seg := func(sel uint16, typ, dpl, l, db uint8) kvm.Segment {
		return kvm.Segment{Limit: 0xffffffff, Selector: sel, Typ: typ, Present: 1, DPL: dpl, DB: db, S: 1, L: l, G: 1}
	}
	s.CR0, s.CR3 = 0x80050033, testPML4
	s.CR4, s.EFER = testCPU().CR4, 0xd01
	s.GDT.Base, s.GDT.Limit = testGDT, 0x3f
	s.IDT.Base, s.IDT.Limit = testIDT, 0x1ff
	s.TR = kvm.Segment{Base: testTSS, Limit: 0x67, Selector: 0x28, Typ: 11, Present: 1}
	s.LDT = kvm.Segment{Unusable: 1}
	s.CS, s.SS = seg(8, 11, 0, 1, 0), seg(0x10, 3, 0, 0, 1)
	s.DS, s.ES, s.FS, s.GS = s.SS, s.SS, s.SS, s.SS
	must(vcpu.SetSregs(s))

	// Ring 0 enables the state components: xsetbv, then out.
	must(mem.Write(testCode, []byte{0x0f, 0x01, 0xd1, 0xE6, portDone, 0xF4}))
	must(vcpu.SetRegs(&kvm.Regs{RIP: testCode, RFLAGS: 2, RAX: testCPU().XCR0}))
	x := &ring3{t: t, vcpu: vcpu, mem: mem, base: s, size: vm.XSaveSize()}
	if port := x.toPort(); port != portDone {
		t.Fatalf("xsetbv in the guest: port %#x", port)
	}
	if got, err := vcpu.XCR0(); err != nil || got != testCPU().XCR0 {
		t.Fatalf("XCR0 %#x, %v", got, err)
	}
	s.CS, s.SS = seg(0x23, 11, 3, 1, 0), seg(0x1b, 3, 3, 0, 1)
	s.DS, s.ES, s.FS, s.GS = s.SS, s.SS, s.SS, s.SS
	return x
}

// toPort runs the guest to its next port write.
func (x *ring3) toPort() uint16 {
	x.t.Helper()
	for {
		ok, err := x.vcpu.Run()
		if err != nil {
			x.t.Fatal(err)
		}
		if !ok {
			x.vcpu.Unkick()
			continue
		}
		if reason := x.vcpu.ExitReason(); reason != kvm.ExitIO {
			regs, _ := x.vcpu.Regs()
			sub, data := x.vcpu.InternalError()
			x.t.Fatalf("exit reason %d at rip %#x (internal %d %#x)", reason, regs.RIP, sub, data)
		}
		port, _, _, _ := x.vcpu.IO()
		return port
	}
}

// run runs the instruction of n bytes at cpu.RIP, which hlt follows, and changes
// cpu as the processor does. In ring 3 hlt is #GP, which tells that the
// instruction has ended.
func (x *ring3) run(cpu *CPU, n int) (res Result) {
	x.t.Helper()
	must := func(err error) {
		x.t.Helper()
		if err != nil {
			x.t.Fatal(err)
		}
	}
	g := &cpu.GPR
	s := *x.base
	s.FS.Base, s.GS.Base = cpu.Seg[FS].Base, cpu.Seg[GS].Base
	s.CR2 = 0
	if !cpu.Seg[CS].L {
		s.CS.Selector, s.CS.L, s.CS.DB = 0x3b, 0, 1
	}
	must(x.vcpu.SetSregs(&s))
	must(x.vcpu.SetXSave(cpu.XSAVE))
	must(x.vcpu.SetRegs(&kvm.Regs{
		RAX: g[0], RCX: g[1], RDX: g[2], RBX: g[3], RSP: g[4], RBP: g[5], RSI: g[6], RDI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
		RIP: cpu.RIP, RFLAGS: cpu.RFLAGS,
	}))
	port := x.toPort()
	after, err := x.vcpu.Sregs()
	must(err)
	must(x.vcpu.XSave(cpu.XSAVE))
	cpu.Seg[FS].Base, cpu.Seg[GS].Base = after.FS.Base, after.GS.Base
	r, err := x.vcpu.Regs()
	must(err)
	frame := make([]byte, 48)
	switch {
	case port >= portVector && port < portVector+32:
		res.Outcome = Faulted
		res.Fault.Vector = uint8(port - portVector)
		switch res.Fault.Vector {
		case 8, 10, 11, vecSS, vecGP, vecPF, 17:
			res.Fault.HasError = true
			must(x.mem.Read(testKStack-48, frame))
			res.Fault.ErrorCode = le.Uint32(frame)
			frame = frame[8:]
		default:
			must(x.mem.Read(testKStack-40, frame[:40]))
		}
		if res.Fault.Vector == vecPF {
			res.Fault.CR2 = after.CR2
		}
		end := cpu.RIP + uint64(n)
		if cpu.RIP = le.Uint64(frame); cpu.RIP == end && res.Fault.Vector == vecGP {
			res = Result{}
		}
		cpu.RFLAGS = le.Uint64(frame[16:])
		*g = [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, le.Uint64(frame[24:]), r.RBP, r.RSI, r.RDI, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
	default:
		x.t.Fatalf("port %#x", port)
	}
	return res
}

package cetstate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/cet"
	"github.com/gvmm/gvmm/vmm/kvm"
	"github.com/gvmm/gvmm/vmm/memory"
)

// The guest's memory, mapped one to one by one large page each.
const (
	pml4At   = 0x1000
	pdptAt   = 0x2000
	pdAt     = 0x3000
	codeAt   = 0x10000
	stackTop = 0x20000
	shadow   = 0x200000 // the second 2 MiB: a shadow stack
	token    = 0x3ffff8
	size     = 0x400000
)

// The registers that are state, besides the shadow stack pointer. U_CET and the
// other pointers mean nothing to the guest; they have values so that losing
// them shows.
var registers = map[uint32]uint64{
	0xda0: 0x1800,         // IA32_XSS: CET_U, CET_S
	0x6a0: 5,              // IA32_U_CET
	0x6a2: 5,              // IA32_S_CET: shadow stack, IBT
	0x6a5: 0x7ffff5550008, // IA32_PL1_SSP
	0x6a6: 0x7ffff6660008,
	0x6a7: 0x7ffff7770008,
	0x6a8: 0x300100, // IA32_INTERRUPT_SSP_TABLE_ADDR
}

// code is the guest: three calls deep it writes to port 1; behind that it writes
// each register to port 2, returns three times, and writes to port 3 how often.
// At "track" it jumps through a pointer to a place without ENDBR64.
var code = func() []byte {
	var b []byte
	at := map[string]int{}
	patch := map[int]string{}
	mark := func(name string) { at[name] = len(b) }
	call := func(to string) {
		b = append(b, 0xe8, 0, 0, 0, 0)
		patch[len(b)] = to
	}
	out := func(port byte) { b = append(b, 0xe7, port) } // out %eax,$port
	b = append(b, 0x31, 0xf6)                            // xor %esi,%esi
	call("one")
	b = append(b, 0x89, 0xf0) // mov %esi,%eax
	out(3)
	b = append(b, 0xf4)
	for _, f := range [][2]string{{"one", "two"}, {"two", "three"}, {"three", ""}} {
		mark(f[0])
		if f[1] != "" {
			call(f[1])
		} else {
			out(1)
			for _, index := range order {
				b = append(b, 0xb9)
				b = binary.LittleEndian.AppendUint32(b, index) // mov $index,%ecx
				b = append(b, 0x0f, 0x32)                      // rdmsr
				out(2)
				b = append(b, 0x89, 0xd0) // mov %edx,%eax
				out(2)
			}
		}
		b = append(b, 0xff, 0xc6, 0xc3) // inc %esi; ret
	}
	for len(b) < trackAt {
		b = append(b, 0x90)
	}
	b = append(b, 0xb8) // mov $here,%eax
	b = binary.LittleEndian.AppendUint32(b, codeAt+trackAt+7)
	b = append(b, 0xff, 0xe0) // jmp *%rax
	out(4)                    // here
	for end, to := range patch {
		binary.LittleEndian.PutUint32(b[end-4:], uint32(at[to]-end))
	}
	return b
}()

const trackAt = 0x200

var order = []uint32{0xda0, 0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8}

// machine is one VM with one vCPU on the memory.
type machine struct {
	vm   *kvm.VM
	vcpu *kvm.VCPU
}

func newMachine(t *testing.T, sys *kvm.System, mem *memory.Guest) (*machine, cet.Features) {
	t.Helper()
	m := &machine{}
	var err error
	if m.vm, err = sys.CreateVM(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.vm.Close() })
	r := mem.Regions()[0]
	if err := m.vm.SetMemory(0, 0, r.Size, r.HostAddr()); err != nil {
		t.Fatal(err)
	}
	if m.vcpu, err = m.vm.CreateVCPU(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.vcpu.Close() })
	leaves, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.vcpu.SetCPUID(leaves); err != nil {
		t.Fatal(err)
	}
	return m, cet.Offered(leaves)
}

// run runs to the next write to a port.
func (m *machine) run() (port uint16, v uint32, err error) {
	for {
		switch ok, err := m.vcpu.Run(); {
		case err != nil:
			return 0, 0, err
		case !ok:
		case m.vcpu.ExitReason() == kvm.ExitIO:
			port, _, data, _ := m.vcpu.IO()
			return port, binary.LittleEndian.Uint32(data), nil
		default:
			return 0, 0, fmt.Errorf("exit %d", m.vcpu.ExitReason())
		}
	}
}

// start makes memory and a vCPU that is about to run at the offset of the code.
func start(t *testing.T, sys *kvm.System, offset uint64) (*machine, *memory.Guest, cet.Features) {
	t.Helper()
	mem, err := memory.New(memory.Range{Base: 0, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	put := func(at memory.GPA, v uint64) {
		if err := mem.Write(at, binary.LittleEndian.AppendUint64(nil, v)); err != nil {
			t.Fatal(err)
		}
	}
	put(pml4At, pdptAt|3)
	put(pdptAt, pdAt|3)
	put(pdAt, 0xe3)
	put(pdAt+8, shadow|0xe1) // dirty and not writable: a shadow stack
	put(token, token|1)      // a busy supervisor token
	if err := mem.Write(codeAt, code); err != nil {
		t.Fatal(err)
	}
	m, has := newMachine(t, sys, mem)
	if !has.ShadowStack || !has.IBT {
		t.Skip("NOT TESTED: this KVM gives no CET to guests: ", has)
	}
	s, err := m.vcpu.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	flat := kvm.Segment{Limit: 0xffffffff, Selector: 8, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	s.CS = flat
	flat.Selector, flat.Typ, flat.L, flat.DB = 16, 3, 0, 1
	s.DS, s.ES, s.SS, s.FS, s.GS = flat, flat, flat, flat, flat
	s.CR0, s.CR3, s.CR4, s.EFER = 0x80010001, pml4At, 1<<23|0x20, 0x500
	if err := m.vcpu.SetSregs(s); err != nil {
		t.Fatal(err)
	}
	if err := m.vcpu.SetRegs(&kvm.Regs{RIP: codeAt + offset, RSP: stackTop, RFLAGS: 2}); err != nil {
		t.Fatal(err)
	}
	state := &cet.State{Features: has, Enabled: true, XSS: registers[0xda0], UCET: registers[0x6a0], SCET: registers[0x6a2],
		PLSSP: [4]uint64{token, registers[0x6a5], registers[0x6a6], registers[0x6a7]}, IntSSPTab: registers[0x6a8], SSP: token}
	if err := state.Restore(m.vcpu); err != nil {
		t.Fatal(err)
	}
	return m, mem, has
}

// move takes the vCPU to another VM; change may change what is moved.
func (m *machine) move(t *testing.T, sys *kvm.System, mem *memory.Guest, has cet.Features, change func(*kvm.Sregs, *cet.State)) (*machine, error) {
	t.Helper()
	if _, err := m.vcpu.Settle(); err != nil {
		t.Fatal(err)
	}
	regs, err := m.vcpu.Regs()
	if err != nil {
		t.Fatal(err)
	}
	sregs, err := m.vcpu.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	state, err := cet.Save(m.vcpu, has)
	if err != nil {
		t.Fatal(err)
	}
	change(sregs, state)
	to, _ := newMachine(t, sys, mem)
	if err := to.vcpu.SetSregs(sregs); err != nil {
		t.Fatal(err)
	}
	if err := to.vcpu.SetRegs(regs); err != nil {
		t.Fatal(err)
	}
	return to, state.Restore(to.vcpu)
}

// finish runs what is behind the move and says what went wrong.
func (m *machine) finish() error {
	want := map[uint32]uint64{0x6a4: token}
	for i, v := range registers {
		want[i] = v
	}
	for _, index := range order {
		var got [2]uint32
		for i := range got {
			port, v, err := m.run()
			if err != nil || port != 2 {
				return errors.Join(fmt.Errorf("read MSR %#x: port %d", index, port), err)
			}
			got[i] = v
		}
		if v := uint64(got[1])<<32 | uint64(got[0]); v != want[index] {
			return fmt.Errorf("MSR %#x is %#x, want %#x", index, v, want[index])
		}
	}
	if port, v, err := m.run(); err != nil || port != 3 || v != 3 {
		return errors.Join(fmt.Errorf("returned %d times to port %d", v, port), err)
	}
	return nil
}

func TestMove(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys, err := kvm.Open(kvm.Host{})
	if err != nil {
		t.Skip("NOT TESTED: ", err)
	}
	defer func() { _ = sys.Close() }()
	for _, c := range []struct {
		lost  string
		lose  func(*kvm.Sregs, *cet.State)
		fails string // what shows the loss
	}{
		{"nothing", func(*kvm.Sregs, *cet.State) {}, ""},
		{"CR4.CET", func(s *kvm.Sregs, _ *cet.State) { s.CR4 &^= 1 << 23 }, "CR4.CET"},
		{"XSS", func(_ *kvm.Sregs, s *cet.State) { s.XSS = 0 }, "MSR 0xda0"},
		{"U_CET", func(_ *kvm.Sregs, s *cet.State) { s.UCET = 0 }, "MSR 0x6a0"},
		{"S_CET", func(_ *kvm.Sregs, s *cet.State) { s.SCET = 0 }, "MSR 0x6a2"},
		{"PL0_SSP", func(_ *kvm.Sregs, s *cet.State) { s.PLSSP[0] = 0 }, "MSR 0x6a4"},
		{"PL1_SSP", func(_ *kvm.Sregs, s *cet.State) { s.PLSSP[1] = 0 }, "MSR 0x6a5"},
		{"PL2_SSP", func(_ *kvm.Sregs, s *cet.State) { s.PLSSP[2] = 0 }, "MSR 0x6a6"},
		{"PL3_SSP", func(_ *kvm.Sregs, s *cet.State) { s.PLSSP[3] = 0 }, "MSR 0x6a7"},
		{"INT_SSP_TAB", func(_ *kvm.Sregs, s *cet.State) { s.IntSSPTab = 0 }, "MSR 0x6a8"},
		{"SSP", func(_ *kvm.Sregs, s *cet.State) { s.SSP = 0 }, "exit 8"}, // the first return ends in a triple fault
	} {
		t.Run("without "+c.lost, func(t *testing.T) {
			m, mem, has := start(t, sys, 0)
			if port, _, err := m.run(); err != nil || port != 1 {
				t.Fatalf("three calls deep: port %d, %v", port, err)
			}
			to, err := m.move(t, sys, mem, has, c.lose)
			if err == nil {
				err = to.finish()
			}
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%v, want %q", err, c.fails)
			}
		})
	}
	// Between an indirect jump and its target the tracker in S_CET is state too.
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprint("tracker lost ", lost), func(t *testing.T) {
			m, mem, has := start(t, sys, trackAt)
			for range 2 {
				if err := m.vcpu.SingleStep(); err != nil {
					t.Fatal(err)
				}
				if ok, err := m.vcpu.Run(); err != nil || !ok || m.vcpu.ExitReason() != kvm.ExitDebug {
					t.Fatalf("single step: %v, %v, exit %d", ok, err, m.vcpu.ExitReason())
				}
			}
			to, err := m.move(t, sys, mem, has, func(_ *kvm.Sregs, s *cet.State) {
				if lost {
					s.SCET &^= 1 << 11
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if port, _, err := to.run(); (err == nil) != lost {
				t.Errorf("behind the jump: port %d, %v", port, err)
			}
		})
	}
}

package psp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Every exit that a script makes comes out of KVM_RUN, and what user space
// answers reaches the script.
func TestScript(t *testing.T) {
	var said []string
	say := func(format string, a ...any) { said = append(said, fmt.Sprintf(format, a...)) }
	shared := uint64(ramGPA + 8*pageSize)
	script := func(g *Guest) {
		g.Print("hello %d\n", 1)
		g.Out(0x604, 2, 0xabcd)
		say("in %#x", g.In(0x61, 1))
		b := []byte{1, 2, 3, 4}
		g.MMIO(0xfee00000, b, true)
		g.MMIO(0xfee00000, b, false)
		say("mmio %v", b)
		if err := g.Memory(ramGPA, b, true, false); err != nil || !bytes.Equal(b, []byte("page")) {
			say("private: %q %v", b, err)
		}
		answer, err := g.Convert(shared, 2, false)
		say("convert %d %v", answer, err)
		if err := g.Memory(shared, []byte("to the host"), false, true); err != nil {
			say("shared: %v", err)
		}
		if err := g.Memory(shared+2*pageSize, []byte("mine"), true, true); err != nil { // never launched: fresh
			say("fresh: %v", err)
		}
		if err := g.Memory(shared+3*pageSize, b, false, false); err != nil { // an implicit conversion
			say("implicit: %v", err)
		}
		say("memory %v", g.Memory(1<<40, b, true, false))
		errno, pages := g.Certificates(shared, 1)
		say("certificates %d %d", errno, pages)
		report, err := g.Report(ReportRequest{Data: [64]byte{5}})
		say("report %d %v", len(report), err)
		g.Terminate(1, 2)
		g.Shutdown()
	}
	m := newMonitor(t, Options{Script: script})
	m.init()
	m.do(cmdEnableReqCerts, nil)
	m.must(0, m.ioctl(m.vm, reqEnableCap, m.make(104, field{0, 4, capExitHypercall}, field{8, 8, 1 << hcMapGPARange})))
	if fw, err := m.start(0x30000); err != nil {
		t.Fatal(err, fw)
	}
	memfd := m.memory()
	cpu := m.cpu(0)
	copy(m.arena, "page")
	for i := range uint64(10) {
		if _, fw, err := m.update(pageNormal, ramGPA+i*pageSize, m.arena[i*pageSize:(i+1)*pageSize], pageSize); err != nil {
			t.Fatal(err, fw)
		}
	}
	if fw, err := m.finish(); err != nil {
		t.Fatal(err, fw)
	}
	machine := m.k.Machines()[0]
	if got := len(machine.Owned()); got != 10 {
		t.Errorf("%d pages owned", got)
	}
	run, err := m.k.Map(cpu, runSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(run) }()
	attributes := func(gpa, size, v uint64) {
		m.must(0, m.ioctl(m.vm, reqSetMemoryAttrs, m.make(32, field{0, 8, gpa}, field{8, 8, size}, field{16, 8, v})))
	}
	u := run[runUnion:]
	var exits []string
	for reason := uint32(0); reason != exitShutdown; {
		run[1] = 1 // a kick before the entry: it ends that entry and costs nothing
		if _, err := m.k.Call(cpu, reqRun, 0); !errors.Is(err, unix.EINTR) {
			t.Fatalf("kicked: %v", err)
		}
		run[1] = 0
		_, err := m.k.Call(cpu, reqRun, 0)
		reason = le.Uint32(run[runExitReason:])
		if (err != nil) != (reason == exitMemoryFault) {
			t.Fatalf("exit %d: %v", reason, err)
		}
		switch reason {
		case exitIO:
			data := run[get(u, 8, 8):][:uint64(u[1])*get(u, 4, 4)]
			exits = append(exits, fmt.Sprintf("io %d %#x %x", u[0], get(u, 2, 2), data))
			if u[0] == 0 {
				data[0] = 0x77
			}
		case exitMMIO:
			exits = append(exits, fmt.Sprintf("mmio %d %#x %v", u[20], get(u, 0, 8), u[8:8+get(u, 16, 4)]))
			copy(u[8:], []byte{9, 8, 7, 6})
		case exitHypercall:
			gpa, pages, attrs := get(u, 8, 8), get(u, 16, 8), get(u, 24, 8)
			exits = append(exits, fmt.Sprintf("hypercall %d %d pages, %#x", get(u, 0, 8), pages, attrs))
			attributes(gpa, pages*pageSize, 0)
			m.must(0, m.k.PunchHole(memfd, int64(gpa-ramGPA), int64(pages*pageSize)))
			le.PutUint64(u[56:], 0)
		case exitMemoryFault:
			exits = append(exits, fmt.Sprintf("fault %#x at %#x", get(u, 0, 8), get(u, 8, 8)))
			attributes(get(u, 8, 8), get(u, 16, 8), get(u, 0, 8))
		case exitSNPReqCerts:
			exits = append(exits, fmt.Sprintf("certs %#x %d", get(u, 0, 8), get(u, 8, 8)))
			le.PutUint64(u[8:], 3)
			le.PutUint64(u[16:], uint64(unix.ENOSPC))
		case exitSystemEvent:
			exits = append(exits, fmt.Sprintf("event %d %#x", get(u, 0, 4), get(u, 8, 8)))
		case exitShutdown:
			exits = append(exits, "shutdown")
		default:
			t.Fatalf("exit %d", reason)
		}
	}
	compare(t, "exits", exits, `io 1 0x3f8 68656c6c6f20310a
io 1 0x604 cdab
io 0 0x61 00
mmio 1 0xfee00000 [1 2 3 4]
mmio 0 0xfee00000 [0 0 0 0]
hypercall 12 2 pages, 0x0
fault 0x0 at 0x10b000
certs 0x108000 1
event 6 0x21100
shutdown`)
	compare(t, "guest", said, `in 0x77
mmio [9 8 7 6]
convert 0 <nil>
memory no memory at 0x10000000000
certificates 28 3
report 1184 <nil>`)
	if !bytes.HasPrefix(m.arena[8*pageSize:], []byte("to the host")) {
		t.Error("the shared page does not hold what the guest wrote")
	}
	// Pages 8 and 9 were given back; 10 was used by the guest.
	if owned := machine.Owned(); len(owned) != 9 || owned[8] != (Page{GPA: ramGPA + 10*pageSize}) || machine.Private(shared) || !machine.Private(ramGPA) {
		t.Errorf("%d pages owned: %+v", len(owned), owned)
	}
	if at, err := machine.SharedResident(ramGPA + 40*pageSize); at || err != nil {
		t.Errorf("a page that nobody touched is resident: %v", err)
	}
	if at, err := machine.SharedResident(shared); !at || err != nil {
		t.Errorf("a page that the guest wrote is not resident: %v", err)
	}
}

func compare(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if got := strings.Join(got, "\n"); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

// A vCPU that has nothing to do stands still until it is kicked, and a script
// ends with its VM.
func TestKick(t *testing.T) {
	ended := make(chan bool, 1)
	m := ready(t, Options{Script: func(g *Guest) {
		defer func() { ended <- true }()
		g.Print("x")
	}})
	m.cpu(1)
	if fw, err := m.finish(); err != nil {
		t.Fatal(err, fw)
	}
	for i, cpu := range m.cpus {
		run, err := m.k.Map(cpu, runSize)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			m.must(m.k.Call(cpu, reqRun, 0)) // the script now waits in its exit
		} else {
			go func() { run[1] = 1 }()
			if _, err := m.k.Call(cpu, reqRun, 0); !errors.Is(err, unix.EINTR) {
				t.Errorf("vCPU %d: %v", i, err)
			}
		}
		run[288] = 1
		if _, err := m.k.Call(cpu, reqRun, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("synced registers: %v", err)
		}
		m.must(0, m.k.Close(cpu))
		m.must(0, unix.Munmap(run))
	}
	m.cpus = nil
	<-ended
}

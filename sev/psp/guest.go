package psp

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Script is what a guest's first vCPU does, in the place of instructions. Each
// call on g that needs the monitor is an exit of KVM_RUN and returns with the
// KVM_RUN after it. When the script returns the vCPU halts; when the VM is closed
// meanwhile, it does not return from its call.
type Script func(g *Guest)

// Guest is the vCPU that plays a [Script].
type Guest struct{ c *cpu }

// Exits (KVM_EXIT_*) and places in struct kvm_run.
const (
	exitIO          = 2
	exitHypercall   = 3
	exitMMIO        = 6
	exitShutdown    = 8
	exitSystemEvent = 24
	exitMemoryFault = 39
	exitSNPReqCerts = 43

	runExitReason = 8
	runUnion      = 32
	eventSEVTerm  = 6
	comPort       = 0x3f8
)

// player is the part of a vCPU that plays a script.
type player struct {
	mu      sync.Mutex // held in KVM_RUN
	started bool
	exits   chan exit     // from the script
	resume  chan struct{} // to it
	quit    chan struct{} // closed with the vCPU
	once    sync.Once
	pending func(run []byte) error // completes the exit that user space was given
}

// exit is an exit that a script makes: fill writes it into kvm_run, done reads
// what user space answered, errno is what KVM_RUN returns.
type exit struct {
	reason uint32
	fill   func(u []byte)
	done   func(run []byte) error
	errno  error
}

// pollTime is how often a vCPU that stands still looks whether it was kicked: a
// signal, which wakes KVM_RUN, does not wake a goroutine.
const pollTime = time.Millisecond

// enter is KVM_RUN.
func (c *cpu) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.quit:
		return unix.EBADF // closed meanwhile
	default:
	}
	if get(c.run, 288, 8)|get(c.run, 296, 8) != 0 { // synced registers, of a protected guest
		return unix.EINVAL
	}
	if c.m.kind != typeSNP || !c.protected {
		return unix.EINVAL // no VMSA to enter the guest with
	}
	if c.pending != nil {
		if err := c.pending(c.run); err != nil {
			return err
		}
		c.pending = nil
		if c.immediateExit() {
			return c.interrupted(true)
		}
		c.resume <- struct{}{}
	}
	if c.immediateExit() {
		return c.interrupted(false)
	}
	if !c.started && c == c.m.cpus[0] && c.m.k.opt.Script != nil {
		c.started = true
		c.exits, c.resume = make(chan exit), make(chan struct{})
		go func() {
			c.m.k.opt.Script(&Guest{c})
		}()
	}
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		select {
		case e := <-c.exits:
			return c.leave(e)
		case <-tick.C:
			if c.immediateExit() {
				return c.interrupted(false)
			}
		case <-c.quit:
			return unix.EINTR
		}
	}
}

// completed completes an exit that wants no answer.
func completed([]byte) error { return nil }

// interrupted leaves KVM_RUN as a signal does. The script, where it waits for the
// end of its exit, goes on with the next entry.
func (c *cpu) interrupted(waits bool) error {
	if waits {
		c.pending = completed
	}
	le.PutUint32(c.run[runExitReason:], 10) // KVM_EXIT_INTR
	return unix.EINTR
}

func (c *cpu) leave(e exit) error {
	clear(c.run[runUnion:288])
	le.PutUint32(c.run[runExitReason:], e.reason)
	if e.fill != nil {
		e.fill(c.run[runUnion:])
	}
	if c.pending = e.done; e.done == nil {
		c.pending = completed
	}
	return e.errno
}

// close ends the script.
func (c *cpu) close() {
	c.once.Do(func() { close(c.quit) })
	c.mu.Lock() // until no KVM_RUN is under way
	defer c.mu.Unlock()
	_ = unix.Munmap(c.run)
}

// exit makes an exit and waits for the next entry.
func (g *Guest) exit(e exit) {
	select {
	case g.c.exits <- e:
	case <-g.c.quit:
		runtime.Goexit()
	}
	select {
	case <-g.c.resume:
	case <-g.c.quit:
		runtime.Goexit()
	}
}

// Out writes value to a port, size bytes (1, 2 or 4).
func (g *Guest) Out(port uint16, size int, value uint32) {
	g.io(port, size, le.AppendUint32(nil, value)[:size], true)
}

// In reads size bytes from a port.
func (g *Guest) In(port uint16, size int) uint32 {
	b := make([]byte, 4)
	g.io(port, size, b[:size], false)
	return le.Uint32(b)
}

// Print writes to the first serial port, as a string instruction does. At most a
// page goes into one exit.
func (g *Guest) Print(format string, args ...any) {
	for s := []byte(fmt.Sprintf(format, args...)); len(s) > 0; {
		n := min(len(s), pageSize)
		g.io(comPort, 1, s[:n], true)
		s = s[n:]
	}
}

func (g *Guest) io(port uint16, size int, data []byte, write bool) {
	area := g.c.run[pageSize : pageSize+len(data)]
	g.exit(exit{reason: exitIO, fill: func(u []byte) {
		if write {
			u[0] = 1
		}
		copy(area, data)
		u[1] = byte(size)
		le.PutUint16(u[2:], port)
		le.PutUint32(u[4:], uint32(len(data)/size))
		le.PutUint64(u[8:], pageSize)
	}, done: func([]byte) error {
		if !write {
			copy(data, area)
		}
		return nil
	}})
}

// MMIO reads or writes up to eight bytes of a device.
func (g *Guest) MMIO(addr uint64, data []byte, write bool) {
	g.exit(exit{reason: exitMMIO, fill: func(u []byte) {
		le.PutUint64(u, addr)
		if write {
			copy(u[8:16], data)
			u[20] = 1
		}
		le.PutUint32(u[16:], uint32(len(data)))
	}, done: func(run []byte) error {
		if !write {
			copy(data, run[runUnion+8:])
		}
		return nil
	}})
}

// Convert asks for pages to become private or shared: a page state change of the
// GHCB protocol, which reaches user space as the hypercall MAP_GPA_RANGE. It
// returns user space's answer, 0 for done. Nothing is asked where user space has
// not enabled that exit.
func (g *Guest) Convert(gpa, pages uint64, private bool) (answer uint64, err error) {
	if g.c.m.exits&(1<<hcMapGPARange) == 0 {
		return 0, errors.New("page state change: user space does not take hypercalls")
	}
	g.exit(exit{reason: exitHypercall, fill: func(u []byte) {
		le.PutUint64(u, hcMapGPARange)
		le.PutUint64(u[8:], gpa)
		le.PutUint64(u[16:], pages)
		if private {
			le.PutUint64(u[24:], 1<<4) // encrypted, 4 KiB
		}
	}, done: func(run []byte) error {
		answer = get(run, runUnion+56, 8)
		return nil
	}})
	return answer, nil
}

// faults bounds how often an access is tried again.
const faults = 4

// access finds the page at gpa in the given state. While user space has it in the
// other, that is an exit MEMORY_FAULT, which comes as the error EFAULT.
func (g *Guest) access(gpa uint64, private bool) (*slot, error) {
	for range faults {
		g.c.m.k.mu.Lock()
		s, is := g.c.m.find(gpa/pageSize), g.c.m.private[gpa/pageSize]
		if s != nil && is == private {
			if at := gpa/pageSize - s.first + s.offset; private {
				if _, ok := s.mem.owned[at]; !ok { // a fresh page of the guest_memfd
					s.mem.owned[at] = Page{GPA: gpa &^ (pageSize - 1)}
				}
			}
			g.c.m.k.mu.Unlock()
			return s, nil
		}
		g.c.m.k.mu.Unlock()
		if s == nil {
			return nil, fmt.Errorf("no memory at %#x", gpa)
		}
		g.exit(exit{reason: exitMemoryFault, errno: unix.EFAULT, fill: func(u []byte) {
			if private {
				le.PutUint64(u, attrPrivate)
			}
			le.PutUint64(u[8:], gpa&^(pageSize-1))
			le.PutUint64(u[16:], pageSize)
		}})
	}
	return nil, fmt.Errorf("page at %#x does not become private=%v", gpa, private)
}

// Memory reads or writes p, which lies in one page at gpa, as private or as shared
// memory.
func (g *Guest) Memory(gpa uint64, p []byte, private, write bool) error {
	s, err := g.access(gpa, private)
	switch at := gpa - s.base(); {
	case err != nil:
		return err
	case private && write:
		_, err = unix.Pwrite(s.mem.fd, p, int64(at+s.offset*pageSize))
	case private:
		_, err = unix.Pread(s.mem.fd, p, int64(at+s.offset*pageSize))
	case write:
		err = copyOut(s.host+at, p)
	default:
		err = copyIn(s.host+at, p)
	}
	return err
}

func (s *slot) base() uint64 {
	if s == nil {
		return 0
	}
	return s.first * pageSize
}

// Certificates is the half of an extended guest request that user space answers:
// it asks for certificates at gpa, in shared memory of so many pages, and returns
// the answer, an errno, and the pages that are wanted. Where user space has not
// asked for these exits KVM answers itself: nothing, and no error.
func (g *Guest) Certificates(gpa, pages uint64) (answer, wanted uint64) {
	if !g.c.m.certs {
		return 0, 0
	}
	g.exit(exit{reason: exitSNPReqCerts, fill: func(u []byte) {
		le.PutUint64(u, gpa)
		le.PutUint64(u[8:], pages)
	}, done: func(run []byte) error {
		wanted, answer = get(run, runUnion+8, 8), get(run, runUnion+16, 8)
		if !slices.Contains([]uint64{0, uint64(unix.EIO), uint64(unix.EAGAIN), uint64(unix.ENOSPC)}, answer) {
			return unix.EINVAL
		}
		return nil
	}})
	return answer, wanted
}

// Report asks the firmware for an attestation report.
func (g *Guest) Report(q ReportRequest) ([]byte, error) { return g.c.m.Report(q) }

// Machine returns the vCPU's VM.
func (g *Guest) Machine() *Machine { return g.c.m }

// Launch returns what the firmware knows of the guest.
func (g *Guest) Launch() Launch {
	l, _ := g.c.m.Launched()
	return l
}

// RAM returns the end of the memory that begins at address 0.
func (g *Guest) RAM() uint64 {
	g.c.m.k.mu.Lock()
	defer g.c.m.k.mu.Unlock()
	page := uint64(0)
	for s := g.c.m.find(page); s != nil; s = g.c.m.find(page) {
		page = s.first + s.pages
	}
	return page * pageSize
}

// Terminate ends the guest by a termination request with a reason of the GHCB
// protocol: set 0 code 0 is "general". It is a system event SEV_TERM.
func (g *Guest) Terminate(set, code uint8) {
	g.exit(exit{reason: exitSystemEvent, fill: func(u []byte) {
		le.PutUint32(u, eventSEVTerm)
		le.PutUint32(u[4:], 1)
		le.PutUint64(u[8:], 0x100|uint64(set&15)<<12|uint64(code)<<16)
	}})
}

// Shutdown is a triple fault.
func (g *Guest) Shutdown() { g.exit(exit{reason: exitShutdown}) }

// Exit makes any other exit: fill writes its part of struct kvm_run, from the
// union on.
func (g *Guest) Exit(reason uint32, fill func(u []byte)) { g.exit(exit{reason: reason, fill: fill}) }

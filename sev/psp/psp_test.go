package psp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/idauth"
	"github.com/gvmm/gvmm/sev/verify"
)

// monitor is a monitor of a few lines that knows the kernel's structures by
// offsets alone.
type monitor struct {
	t            *testing.T
	k            *Kernel
	sys, sev, vm int
	cpus         []int
	arena        []byte // memory of the process that the host reads
	used         int
}

const (
	ramPages = 64
	ramGPA   = 0x100000
)

func newMonitor(t *testing.T, o Options) *monitor {
	t.Helper()
	arena, err := unix.Mmap(-1, 0, 256*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	m := &monitor{t: t, k: New(o), arena: arena, used: ramPages * pageSize}
	t.Cleanup(func() {
		for _, fd := range append(m.cpus, m.vm, m.sev, m.sys) {
			_ = m.k.Close(fd)
		}
		_ = unix.Munmap(arena)
	})
	m.sys, m.sev = m.must(m.k.Open("/dev/kvm")), m.must(m.k.Open("/dev/sev"))
	m.vm = m.must(m.k.Call(m.sys, reqCreateVM, typeSNP))
	return m
}

func (m *monitor) must(n int, err error) int {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *monitor) addr(b []byte) uint64 {
	if len(b) == 0 {
		return m.base()
	}
	return addressOf(b)
}

// field is a number at an offset of a structure.
type field struct {
	at, size int
	v        uint64
}

// make lays out a structure in the arena.
func (m *monitor) make(size int, fields ...field) []byte {
	b := m.arena[m.used : m.used+size]
	m.used += (size + 7) &^ 7
	if m.used > len(m.arena)-32*pageSize {
		m.used = ramPages * pageSize
	}
	clear(b)
	for _, f := range fields {
		var v [8]byte
		le.PutUint64(v[:], f.v)
		copy(b[f.at:f.at+f.size], v[:])
	}
	return b
}

func (m *monitor) ioctl(fd int, request uint32, b []byte) error {
	_, err := m.k.Call(fd, uintptr(request), uintptr(m.addr(b)))
	return err
}

// command is KVM_MEMORY_ENCRYPT_OP.
func (m *monitor) command(id uint32, data []byte) (fw uint32, err error) {
	var at uint64
	if data != nil {
		at = m.addr(data)
	}
	c := m.make(24, field{0, 4, uint64(id)}, field{8, 8, at}, field{20, 4, uint64(m.sev)})
	err = m.ioctl(m.vm, reqMemoryEncryptOp, c)
	return uint32(get(c, 16, 4)), err
}

func (m *monitor) do(id uint32, data []byte) {
	m.t.Helper()
	if fw, err := m.command(id, data); err != nil {
		m.t.Fatalf("command %d: %v, firmware %#x", id, err, fw)
	}
}

func (m *monitor) init() { m.do(cmdInit2, m.make(48)) }
func (m *monitor) start(policy uint64) (uint32, error) {
	return m.command(cmdLaunchStart, m.make(64, field{0, 8, policy}))
}

// memory gives the VM ramPages pages at ramGPA, all private.
func (m *monitor) memory() (memfd int) {
	memfd, err := m.k.Call(m.vm, reqCreateGuestMemFD, uintptr(m.addr(m.make(64, field{0, 8, ramPages * pageSize}))))
	m.must(memfd, err)
	region := m.make(160, field{4, 4, 4}, field{8, 8, ramGPA}, field{16, 8, ramPages * pageSize}, field{24, 8, m.base()}, field{40, 4, uint64(memfd)})
	m.must(0, m.ioctl(m.vm, reqSetMemory2, region))
	m.must(0, m.ioctl(m.vm, reqSetMemoryAttrs, m.make(32, field{0, 8, ramGPA}, field{8, 8, ramPages * pageSize}, field{16, 8, attrPrivate})))
	m.t.Cleanup(func() { _ = m.k.Close(memfd) })
	return memfd
}

func (m *monitor) base() uint64 { return addressOf(m.arena) }

func (m *monitor) cpu(id uintptr) int {
	fd := m.must(m.k.Call(m.vm, reqCreateVCPU, id))
	m.cpus = append(m.cpus, fd)
	return fd
}

// update launches the pages of src at gpa; src is a multiple of pages in the arena.
func (m *monitor) update(typ uint8, gpa uint64, src []byte, size uint64) (u []byte, fw uint32, err error) {
	at := uint64(0)
	if src != nil {
		at = m.addr(src)
	}
	u = m.make(64, field{0, 8, gpa / pageSize}, field{8, 8, at}, field{16, 8, size}, field{24, 1, uint64(typ)})
	fw, err = m.command(cmdLaunchUpdate, u)
	return u, fw, err
}

func (m *monitor) finish(fields ...field) (uint32, error) {
	return m.command(cmdLaunchFinish, m.make(88, fields...))
}

// ready returns a monitor whose guest is being launched, with one vCPU.
func ready(t *testing.T, o Options) *monitor {
	t.Helper()
	m := newMonitor(t, o)
	m.init()
	m.must(m.k.Call(m.vm, reqCreateIRQChip, 0))
	m.must(0, m.ioctl(m.vm, reqEnableCap, m.make(104, field{0, 4, capExitHypercall}, field{8, 8, 1 << hcMapGPARange})))
	if fw, err := m.start(sev.DefaultPolicy); err != nil {
		t.Fatal(err, fw)
	}
	m.memory()
	m.cpu(0)
	return m
}

func (m *monitor) launched() Launch {
	m.t.Helper()
	l, ok := m.k.Machines()[0].Launched()
	if !ok {
		m.t.Fatal("not launched")
	}
	return l
}

// A launch has the digest that package sev predicts, whatever is in the way.
func TestLaunch(t *testing.T) {
	for _, o := range []Options{{}, {EAGAIN: 2}, {PartialPages: 1}, {PartialPages: 2, EAGAIN: 3}} {
		m := ready(t, o)
		m.cpu(1)
		for i := range 5 * pageSize {
			m.arena[i] = byte(i * 7 >> 3)
		}
		var want sev.Chain
		for _, r := range []struct {
			typ   uint8
			page  int
			pages int
		}{{pageNormal, 0, 3}, {pageZero, 10, 4}, {pageUnmeasured, 4, 1}, {pageSecrets, 5, 1}, {pageNormal, 3, 1}} {
			gpa := uint64(ramGPA + r.page*pageSize)
			src := m.arena[r.page*pageSize : (r.page+r.pages)*pageSize]
			if err := want.Add(sev.Range{Type: sev.PageType(r.typ), GPA: gpa, Size: uint64(len(src)), Data: bytes.NewReader(src)}); err != nil {
				t.Fatal(err)
			}
			for size := uint64(len(src)); size > 0; {
				u, fw, err := m.update(r.typ, gpa, src, size)
				if errors.Is(err, unix.EAGAIN) {
					continue
				}
				if err != nil {
					t.Fatal(err, fw)
				}
				size, gpa = get(u, 16, 8), get(u, 0, 8)*pageSize
				src = src[len(src)-int(size):]
				if size > 0 && r.typ != pageZero && get(u, 8, 8) != m.addr(src) {
					t.Fatalf("address %#x behind a part, want %#x", get(u, 8, 8), m.addr(src))
				}
			}
		}
		reset := resetRegisters()
		for range 2 {
			if err := want.Update(sev.PageVMSA, sev.VMSAGPA, reset.Page()); err != nil {
				t.Fatal(err)
			}
		}
		if fw, err := m.finish(); err != nil {
			t.Fatal(err, fw)
		}
		for i, b := range reset.Page() {
			if got := m.launched().VMSAs[0][i]; got != b {
				t.Errorf("VMSA at %#x: %#x, want %#x", i, got, b)
			}
		}
		if l := m.launched(); l.Digest != want.Digest() || len(l.Pages) != 12 || len(m.k.Machines()[0].Owned()) != 10 {
			t.Errorf("%+v: digest %x, want %s; %d pages", o, l.Digest, want.Digest(), len(l.Pages))
		}
	}
}

// resetRegisters are those with which KVM makes a vCPU.
func resetRegisters() sev.Registers {
	r := sev.ResetRegisters(sev.EC2, 0xfffffff0, 0x600, 1)
	r.MXCSR, r.FCW = 0x1f80, 0x37f
	r.ES.Attrib, r.DS.Attrib, r.FS.Attrib, r.GS.Attrib = 0x92, 0x92, 0x92, 0x92 // nobody has read and written them back
	return r
}

// What the kernel refuses is refused with its errors.
func TestOrder(t *testing.T) {
	m := newMonitor(t, Options{})
	expect := func(what string, got error, want unix.Errno) {
		t.Helper()
		if want == 0 && got != nil || want != 0 && !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	command := func(id uint32, size int, fields ...field) error {
		_, err := m.command(id, m.make(size, fields...))
		return err
	}
	expect("START before INIT2", command(cmdLaunchStart, 64, field{0, 8, 0x30000}), unix.ENOTTY)
	expect("UPDATE before INIT2", command(cmdLaunchUpdate, 64), unix.EINVAL)
	expect("FINISH before INIT2", command(cmdLaunchFinish, 88), unix.ENOTTY)
	expect("INIT2 with SNP active", command(cmdInit2, 48, field{0, 8, 1}), unix.EINVAL)
	expect("INIT2 with flags", command(cmdInit2, 48, field{8, 4, 1}), unix.EINVAL)
	expect("INIT2 with GHCB 3", command(cmdInit2, 48, field{12, 2, 3}), unix.EINVAL)
	expect("an unknown command", command(99, 48), unix.EINVAL)
	expect("a structure of another size", m.ioctl(m.vm, reqSetMemory2-0x80000, m.make(160)), unix.ENOTTY)
	_, err := m.k.Call(m.vm, reqMemoryEncryptOp, 0x1000)
	expect("a bad pointer", err, unix.EFAULT)

	m.init()
	expect("a second INIT2", command(cmdInit2, 48), unix.EPERM)
	expect("FINISH before START", command(cmdLaunchFinish, 88), unix.EINVAL)
	for _, policy := range []uint64{0, 0x10000, 0x70000, 1<<40 | 0x30000} {
		expect("a policy", command(cmdLaunchStart, 64, field{0, 8, policy}), unix.EINVAL)
	}
	for _, policy := range []uint64{0x20000, 0x30000 | 2<<8, 0x30000 | 1<<8 | 56, 0x30000 | 1<<22} {
		if fw, err := m.start(policy); !errors.Is(err, unix.EIO) || fw != fwPolicyFailure {
			t.Errorf("policy %#x: %v, firmware %#x", policy, err, fw)
		}
	}
	sevFD := m.sev
	m.sev = m.sys
	expect("START with another descriptor", command(cmdLaunchStart, 64, field{0, 8, 0x30000}), unix.ENOTTY)
	m.sev = sevFD
	if fw, err := m.start(0x30000); err != nil {
		t.Fatal(err, fw)
	}
	expect("a second START", command(cmdLaunchStart, 64, field{0, 8, 0x30000}), unix.EINVAL)

	memfd := m.memory()
	page := m.arena[:pageSize]
	update := func(typ uint8, gpa uint64, src []byte, size uint64) error {
		_, _, err := m.update(typ, gpa, src, size)
		return err
	}
	expect("no pages", update(pageNormal, ramGPA, page, 0), unix.EINVAL)
	expect("part of a page", update(pageNormal, ramGPA, page, 100), unix.EINVAL)
	expect("no source", update(pageNormal, ramGPA, nil, pageSize), unix.EINVAL)
	expect("a crooked source", update(pageNormal, ramGPA, m.arena[8:], pageSize), unix.EINVAL)
	expect("a VMSA", update(pageVMSA, ramGPA, page, pageSize), unix.EINVAL)
	expect("type 7", update(7, ramGPA, page, pageSize), unix.EINVAL)
	expect("no memory", update(pageNormal, 0, page, pageSize), unix.EINVAL)
	expect("a page", update(pageNormal, ramGPA, page, pageSize), 0)
	expect("a page twice", update(pageNormal, ramGPA, page, pageSize), unix.EIO)
	attributes := func(gpa, size, v uint64) error {
		return m.ioctl(m.vm, reqSetMemoryAttrs, m.make(32, field{0, 8, gpa}, field{8, 8, size}, field{16, 8, v}))
	}
	expect("shared", attributes(ramGPA+pageSize, pageSize, 0), 0)
	expect("a shared page", update(pageNormal, ramGPA+pageSize, page, pageSize), unix.EIO)
	expect("an unknown attribute", attributes(ramGPA, pageSize, 1), unix.EINVAL)
	expect("attributes of no pages", attributes(ramGPA, 0, 0), unix.EINVAL)
	expect("attributes of part of a page", attributes(ramGPA, 5, 0), unix.EINVAL)
	expect("a hole", m.k.PunchHole(memfd, 0, pageSize), 0)
	expect("the page again", update(pageNormal, ramGPA, page, pageSize), 0)
	_, err = m.k.Map(memfd, pageSize)
	expect("a mapping of private memory", err, unix.ENODEV)

	region := func(fields ...field) error { return m.ioctl(m.vm, reqSetMemory2, m.make(160, fields...)) }
	expect("overlap", region(field{0, 4, 1}, field{8, 8, ramGPA}, field{16, 8, pageSize}, field{24, 8, m.base()}), unix.EEXIST)
	expect("a read-only slot", region(field{0, 4, 1}, field{4, 4, 2}, field{16, 8, pageSize}, field{24, 8, m.base()}), unix.EINVAL)
	expect("a logged private slot", region(field{0, 4, 1}, field{4, 4, 5}, field{16, 8, pageSize}, field{24, 8, m.base()}, field{40, 4, uint64(memfd)}), unix.EINVAL)
	expect("no guest_memfd", region(field{0, 4, 1}, field{4, 4, 4}, field{16, 8, pageSize}, field{24, 8, m.base()}, field{40, 4, uint64(m.sev)}), unix.EINVAL)
	expect("bound twice", region(field{0, 4, 1}, field{4, 4, 4}, field{16, 8, pageSize}, field{24, 8, m.base()}, field{40, 4, uint64(memfd)}), unix.EEXIST)
	expect("mapped private memory", m.ioctl(m.vm, reqCreateGuestMemFD, m.make(64, field{0, 8, pageSize}, field{8, 8, 1})), unix.EINVAL)

	cpu := m.cpu(0)
	expect("REQ_CERTS behind a vCPU", command(cmdEnableReqCerts, 0), unix.EINVAL)
	_, err = m.k.Call(cpu, reqRun, 0)
	expect("KVM_RUN before FINISH", err, unix.EINVAL)
	expect("FINISH with flags", command(cmdLaunchFinish, 88, field{54, 2, 1}), unix.EINVAL)
	expect("FINISH", command(cmdLaunchFinish, 88), 0)
	expect("registers behind FINISH", m.ioctl(cpu, reqGetRegs, m.make(144)), unix.EINVAL)
	expect("UPDATE behind FINISH", update(pageNormal, ramGPA+2*pageSize, page, pageSize), unix.EIO)
	expect("a second FINISH", command(cmdLaunchFinish, 88), unix.EIO)

	late := newMonitor(t, Options{})
	late.cpu(0)
	_, err = late.command(cmdInit2, late.make(48))
	expect("INIT2 behind a vCPU", err, unix.EINVAL)
	_, err = New(Options{NoSNP: true}).Call(late.sys, reqCreateVM, typeSNP)
	expect("another kernel's descriptor", err, unix.EBADF)
	without := New(Options{NoSNP: true})
	sys, err := without.Open("/dev/kvm")
	expect("open", err, 0)
	_, err = without.Call(sys, reqCreateVM, typeSNP)
	expect("a host without SNP", err, unix.EINVAL)
	expect("close", without.Close(sys), 0)
}

// Registers that user space sets come into the VMSA as KVM puts them there, and
// what KVM refuses is refused.
func TestVMSA(t *testing.T) {
	m := ready(t, Options{})
	cpu := m.cpus[0]
	sregs := m.make(312)
	m.must(0, m.ioctl(cpu, reqGetSregs, sregs))
	if sregs[24+14] != 3 || sregs[6*24+14] != 3 || sregs[5*24+14] != 2 {
		t.Errorf("types of DS, TR, SS as read: %d, %d, %d", sregs[24+14], sregs[6*24+14], sregs[5*24+14])
	}
	for _, bad := range []func(b []byte){
		func(b []byte) { le.PutUint64(b[224:], 1<<31) },                  // PG without PE
		func(b []byte) { le.PutUint64(b[224:], 1<<29) },                  // NW without CD
		func(b []byte) { le.PutUint64(b[264:], 0x500) },                  // LMA without paging
		func(b []byte) { b[19] = 1 },                                     // CS.L likewise
		func(b []byte) { le.PutUint64(b[248:], 1<<18) },                  // OSXSAVE without CPUID
		func(b []byte) { longMode(b); le.PutUint64(b[248:], 0) },         // no PAE
		func(b []byte) { longMode(b); le.PutUint64(b[240:], 1<<51|0x1) }, // the C-bit, which CPUID does not name yet
	} {
		b := m.make(312)
		copy(b, sregs)
		bad(b)
		if err := m.ioctl(cpu, reqSetSregs, b); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%x: %v", b[224:], err)
		}
	}
	table := m.make(8 + 40*64)
	le.PutUint32(table, 64)
	m.must(0, m.ioctl(m.sys, reqGetSupportedCPUID, table))
	m.must(0, m.ioctl(cpu, reqSetCPUID2, table))
	b := m.make(312)
	copy(b, sregs)
	longMode(b)
	le.PutUint64(b[232:], 0xdead)        // CR2, which is not in the VMSA
	le.PutUint64(b[240:], 1<<51|0x5000)  // CR3
	le.PutUint64(b[224:], 1<<31|1<<30|1) // CR0 with CD
	m.must(0, m.ioctl(cpu, reqSetSregs, b))
	regs := m.make(144)
	for i := range 18 {
		le.PutUint64(regs[8*i:], uint64(0x100+i))
	}
	m.must(0, m.ioctl(cpu, reqSetRegs, regs))
	msrs := m.make(8 + 16*3)
	le.PutUint32(msrs, 3)
	for i, v := range [][2]uint64{{0xc0000082, 0x1234}, {0x176, 0x1_0000_0001}, {0x277, 0x70106}} {
		le.PutUint64(msrs[8+16*i:], v[0])
		le.PutUint64(msrs[16+16*i:], v[1])
	}
	if n := m.must(m.k.Call(cpu, reqSetMSRs, uintptr(m.addr(msrs)))); n != 3 {
		t.Errorf("%d MSRs", n)
	}
	xsave := m.make(4096)
	m.must(0, m.ioctl(cpu, reqGetXSave, xsave))
	le.PutUint32(xsave[24:], 0x1fa0)
	copy(xsave[32:], bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 0, 0, 0, 0}, 8))
	copy(xsave[160:], "xmm")
	copy(xsave[576:], "ymm")
	le.PutUint64(xsave[512:], 7)
	m.must(0, m.ioctl(cpu, reqSetXSave, xsave))
	m.must(0, m.ioctl(cpu, reqSetXCRS, m.make(392, field{0, 4, 1}, field{16, 8, 7})))
	if fw, err := m.finish(); err != nil {
		t.Fatal(err, fw)
	}
	want := resetRegisters()
	want.DS.Attrib, want.ES.Attrib, want.FS.Attrib, want.GS.Attrib, want.TR.Attrib = 0x93, 0x93, 0x93, 0x93, 0x83
	want.CS.Attrib = 0x29b
	want.CR0, want.CR3, want.CR4, want.EFER = 1<<31|1, 1<<51|0x5000, 1<<5|1<<6, 0x1500
	want.RAX, want.RBX, want.RCX, want.RDX, want.RSI, want.RDI, want.RSP, want.RBP = 0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107
	want.R8, want.R9, want.R10, want.R11, want.R12, want.R13, want.R14, want.R15 = 0x108, 0x109, 0x10a, 0x10b, 0x10c, 0x10d, 0x10e, 0x10f
	want.RIP, want.RFLAGS = 0x110, 0x113
	want.LSTAR, want.SysenterEIP, want.PAT, want.XCR0, want.MXCSR = 0x1234, 1, 0x70106, 7, 0x1fa0
	for i := range 8 {
		copy(want.ST[8*i:], []byte{1, 2, 3, 4, 5, 6, 7, 8})
		copy(want.ST[64+2*i:], []byte{9, 10})
	}
	copy(want.XMM[:], "xmm")
	copy(want.YMM[:], "ymm")
	got := m.launched().VMSAs[0]
	for i, b := range want.Page() {
		if got[i] != b {
			t.Errorf("offset %#x: %#x, want %#x", i, got[i], b)
		}
	}
	breakpoint := ready(t, Options{})
	breakpoint.must(0, breakpoint.ioctl(breakpoint.cpus[0], reqSetDebugRegs, breakpoint.make(128, field{40, 8, 0x401})))
	if _, err := breakpoint.finish(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a breakpoint: %v", err)
	}
}

// longMode makes a struct kvm_sregs one of 64-bit mode.
func longMode(b []byte) {
	le.PutUint64(b[224:], 1<<31|1)
	le.PutUint64(b[248:], 1<<5)
	le.PutUint64(b[264:], 0x500)
	b[14], b[19], b[17] = 11, 1, 0
}

// The firmware takes an ID block only for the launch that it is for.
func TestIDBlock(t *testing.T) {
	var keys [3]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	var want sev.Chain
	reset := resetRegisters()
	if err := want.Update(sev.PageVMSA, sev.VMSAGPA, reset.Page()); err != nil {
		t.Fatal(err)
	}
	block := sev.IDBlock{Digest: want.Digest(), Policy: sev.DefaultPolicy, GuestSVN: 7, FamilyID: [16]byte{1}, ImageID: [16]byte{2}}
	sign := func(author *ecdsa.PrivateKey) ([]byte, []byte) {
		b := block.Bytes()
		auth, err := idauth.Sign(b, keys[0], author)
		if err != nil {
			t.Fatal(err)
		}
		return b, auth
	}
	for _, c := range []struct {
		name   string
		author bool
		change func(b *sev.IDBlock)
		after  func(block, auth []byte)
		want   uint32
	}{
		{"good", false, nil, nil, 0},
		{"with author", true, nil, nil, 0},
		{"digest", false, func(b *sev.IDBlock) { b.Digest[0] ^= 1 }, nil, fwBadMeasurement},
		{"policy", false, func(b *sev.IDBlock) { b.Policy |= 1 << 19 }, nil, fwPolicyFailure},
		{"block changed", false, nil, func(b, _ []byte) { b[50] ^= 1 }, fwBadSignature},
		{"signature changed", false, nil, func(_, a []byte) { a[idBlockSig] ^= 1 }, fwBadSignature},
		{"author's signature changed", true, nil, func(_, a []byte) { a[idKeySig] ^= 1 }, fwBadSignature},
		{"key changed", false, nil, func(_, a []byte) { a[idKey+4] ^= 1 }, fwInvalidKey},
		{"algorithm", false, nil, func(_, a []byte) { a[0] = 2 }, fwInvalidKey},
	} {
		saved := block
		if c.change != nil {
			c.change(&block)
		}
		var author *ecdsa.PrivateKey
		if c.author {
			author = keys[1]
		}
		b, a := sign(author)
		if c.after != nil {
			c.after(b, a)
		}
		block = saved
		m := ready(t, Options{})
		mb, ma := m.make(96), m.make(pageSize)
		copy(mb, b)
		copy(ma, a)
		fields := []field{{0, 8, m.addr(mb)}, {8, 8, m.addr(ma)}, {16, 1, 1}, {19, 8, 0x55}}
		if c.author {
			fields = append(fields, field{17, 1, 1})
		}
		fw, err := m.finish(fields...)
		if fw != c.want || (err == nil) != (c.want == 0) {
			t.Errorf("%s: %v, firmware %#x, want %#x", c.name, err, fw, c.want)
		}
		if c.want != 0 {
			continue
		}
		digests, err := idauth.Check(b, a)
		if err != nil {
			t.Fatal(err)
		}
		l := m.launched()
		if l.IDKey != digests.ID || l.HasAuthor != c.author || c.author && l.AuthorKey != *digests.Author || l.SVN != 7 || l.HostData[0] != 0x55 {
			t.Errorf("%s: %+v", c.name, l)
		}
	}
}

// A CPUID page that claims too much comes back corrected and is taken then.
func TestCPUID(t *testing.T) {
	m := ready(t, Options{})
	page := m.arena[pageSize : 2*pageSize]
	le.PutUint32(page, 2)
	entry := func(i int, v ...uint32) {
		for n, x := range v {
			le.PutUint32(page[16+48*i+4*n:], x)
		}
	}
	entry(0, 1, 0, 0, 0, 0, 0, 0xa00f11, 0x800, 1|1<<24|1<<31, 1) // TSC deadline is KVM's
	entry(1, 0xd, 0, 7, 0, 0, 0, 0x207, 0x240, 0xa88, 0)          // XCR0_IN has AVX: 0x340 bytes
	_, fw, err := m.update(pageCPUID, ramGPA, page, pageSize)
	if !errors.Is(err, unix.EIO) || fw != fwInvalidParam || get(page, 16+32, 4) != 1|1<<31 || get(page, 16+48+28, 4) != 0x340 {
		t.Fatalf("%v, firmware %#x, ECX %#x, size %#x", err, fw, get(page, 16+32, 4), get(page, 16+48+28, 4))
	}
	if _, fw, err := m.update(pageCPUID, ramGPA, page, pageSize); err != nil {
		t.Errorf("corrected: %v, firmware %#x", err, fw)
	}
	m = ready(t, Options{RewriteCPUID: true})
	for i, want := range []uint32{fwInvalidParam, 0} {
		if _, fw, _ := m.update(pageCPUID, ramGPA, m.arena[:pageSize], pageSize); fw != want {
			t.Errorf("time %d: firmware %#x, want %#x", i, fw, want)
		}
	}
	if fw, err := ready(t, Options{Fail: map[uint32]uint32{cmdLaunchFinish: 0x17}}).finish(); fw != 0x17 || !errors.Is(err, unix.EIO) {
		t.Errorf("injected: %v, firmware %#x", err, fw)
	}
}

// Reports of every product, version and key verify, and name what was launched.
func TestReports(t *testing.T) {
	for _, product := range []Product{Milan, Genoa, Turin} {
		m := ready(t, Options{Product: product})
		if fw, err := m.finish(field{19, 8, 0x1122}); err != nil {
			t.Fatal(err, fw)
		}
		certs, err := m.k.Certificates()
		if err != nil {
			t.Fatal(err)
		}
		roots, err := verify.ParseRoots(verify.File{Name: "ark", Data: certs.ARK})
		if err != nil {
			t.Fatal(err)
		}
		digest := m.launched().Digest
		for _, version := range []uint32{2, 3, 5} {
			for _, key := range []Key{VCEK, VLEK} {
				report, err := m.k.Machines()[0].Report(ReportRequest{Data: [64]byte{9}, Key: key, Version: version})
				if err != nil {
					t.Fatal(err)
				}
				check := func(report []byte, policy verify.Policy) verify.Verdict {
					in := verify.Input{Report: report, Roots: roots, Now: time.Now(), Policy: policy}
					for _, der := range [][]byte{certs.ASK, certs.ASVK, certs.VCEK, certs.VLEK} {
						if err := in.Certs.Add(verify.File{Data: der}); err != nil {
							t.Fatal(err)
						}
					}
					return in.Check()
				}
				policy := verify.Policy{Measurement: verify.OneOf{digest[:]}, ReportData: []byte{9}, HostData: verify.OneOf{append([]byte{0x22, 0x11}, make([]byte, 30)...)}}
				if v := check(report, policy); !v.Held() {
					t.Errorf("%s version %d key %d: %+v", product.Name, version, key, v)
				}
				changed := slices.Clone(report)
				changed[0x90] ^= 1
				if check(changed, policy).Held() {
					t.Errorf("%s version %d key %d: a changed measurement holds", product.Name, version, key)
				}
			}
		}
	}
	m := ready(t, Options{})
	machine := m.k.Machines()[0]
	if _, err := machine.Report(ReportRequest{}); err == nil {
		t.Error("a report before the launch")
	}
	if fw, err := m.finish(field{18, 1, 1}); err != nil {
		t.Fatal(err, fw)
	}
	if _, err := machine.Report(ReportRequest{}); err == nil {
		t.Error("a report by a VCEK that is disabled")
	}
}

// Whatever a monitor asks for, the host answers.
func TestRandomCalls(t *testing.T) {
	requests := []uint32{
		reqCheckExtension, reqGetSupportedCPUID, reqGetDeviceAttr, reqCreateVCPU, reqSetMemory, reqSetMemory2, reqEnableCap, reqMemoryEncryptOp,
		reqSetMemoryAttrs, reqCreateGuestMemFD, reqGetSregs, reqSetSregs, reqSetRegs, reqGetMSRs, reqSetMSRs, reqSetFPU, reqSetLAPIC, reqSetCPUID2,
		reqSetXSave, reqSetXCRS, reqSetDebugRegs, reqSEVIssueCmd, reqIRQFD,
	}
	for seed := range uint64(30) {
		r := mrand.New(mrand.NewPCG(seed, 0))
		m := newMonitor(t, Options{PartialPages: 3})
		files := []int{m.sys, m.sev, m.vm}
		if seed%3 > 0 { // not before there is a guest to launch
			m.init()
			if _, err := m.start(0x30000); err != nil {
				t.Fatal(err)
			}
			files = append(files, m.memory(), m.cpu(0))
		}
		for range 300 {
			b := m.make(4096)
			for range r.IntN(6) {
				le.PutUint64(b[8*r.IntN(40):], []uint64{0, 1, 8, 22, 100, 101, 102, ramGPA, ramGPA >> 12, pageSize, m.base(), ^uint64(0), r.Uint64(), uint64(r.IntN(300))}[r.IntN(14)])
			}
			request := requests[r.IntN(len(requests))]
			if request == reqMemoryEncryptOp && r.IntN(4) > 0 { // one that reaches its command
				copy(b, m.make(24, field{0, 4, uint64(100 + r.IntN(4))}, field{8, 8, m.addr(b) + 64}, field{20, 4, uint64(m.sev)}))
			}
			arg := uintptr(m.addr(b))
			if request == reqCreateVCPU || r.IntN(20) == 0 {
				arg = uintptr(r.IntN(5000))
			}
			fd := files[r.IntN(len(files))]
			if n, err := m.k.Call(fd, uintptr(request), arg); err == nil && (request == reqCreateVCPU || request == reqCreateGuestMemFD) {
				files = append(files, n)
				m.cpus = append(m.cpus, n) // to be closed
			}
			_ = m.k.PunchHole(fd, int64(r.IntN(3)*pageSize-pageSize), int64(r.IntN(3)*pageSize))
		}
	}
}

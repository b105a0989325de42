package lkvm

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The guest's init, as machine code of a few hundred bytes: it mounts what a
// guest on the host's own files needs, runs /virt/sandbox.sh or a shell, and
// restarts the machine when that has ended.

// pointer is an argument that lies in the program: a string, or a list of them.
type pointer []string

// systemCall is a Linux system call; its result is looked at by the code behind it.
type systemCall struct {
	amd64, arm64 uint64
	args         []any // uint64, or pointer
}

const atFDCWD = ^uint64(99) // -100

// assembler makes a program for one architecture. References to data are right
// once it has been through twice.
type assembler struct {
	arm        bool
	code, data []byte
	dataAt     uint64 // address of data
}

func (a *assembler) word(v uint32) { a.code = binary.LittleEndian.AppendUint32(a.code, v) }

// put places data and returns its address.
func (a *assembler) put(p pointer) uint64 {
	var at []uint64
	for _, s := range p {
		at = append(at, a.dataAt+uint64(len(a.data)))
		a.data = append(append(a.data, s...), 0)
	}
	if len(p) == 1 {
		return at[0]
	}
	list := a.dataAt + uint64(len(a.data))
	for _, v := range append(at, 0) {
		a.data = binary.LittleEndian.AppendUint64(a.data, v)
	}
	return list
}

// load sets an argument register (6: that of the call's number).
func (a *assembler) load(reg int, v uint64) {
	if a.arm {
		x := [...]uint32{0, 1, 2, 3, 4, 5, 8}[reg]
		for i := range uint32(4) { // movz, movk
			a.word([...]uint32{0xd2800000, 0xf2800000}[min(i, 1)] | i<<21 | uint32(v>>(16*i)&0xffff)<<5 | x)
		}
		return
	}
	a.code = append(a.code, [...][]byte{{0x48, 0xbf}, {0x48, 0xbe}, {0x48, 0xba}, {0x49, 0xba}, {0x49, 0xb8}, {0x49, 0xb9}, {0x48, 0xb8}}[reg]...)
	a.code = binary.LittleEndian.AppendUint64(a.code, v)
}

func (a *assembler) call(c systemCall) {
	for i, v := range c.args {
		switch v := v.(type) {
		case pointer:
			a.load(i, a.put(v))
		case uint64:
			a.load(i, v)
		}
	}
	if a.arm {
		a.load(6, c.arm64)
		a.word(0xd4000001) // svc 0
		return
	}
	a.load(6, c.amd64)
	a.code = append(a.code, 0x0f, 0x05)
}

// branch leads to back if the last result is not the child's process id (match),
// or to where [assembler.here] says if it is not 0.
func (a *assembler) branch(match bool, back int) (at int) {
	at = len(a.code)
	switch {
	case a.arm && match:
		a.word(0xeb13001f)                                    // cmp x0, x19
		a.word(0x54000001 | uint32((back-at-4)/4)&0x7ffff<<5) // b.ne
	case a.arm:
		a.word(0xb5000000) // cbnz x0
	case match:
		a.code = append(a.code, 0x48, 0x39, 0xd8, 0x0f, 0x85) // cmp rax, rbx; jne
		a.code = binary.LittleEndian.AppendUint32(a.code, uint32(back-at-9))
	default:
		a.code = append(a.code, 0x48, 0x85, 0xc0, 0x0f, 0x85, 0, 0, 0, 0) // test rax, rax; jne
	}
	return at
}

// here makes a branch lead to the end of the code so far.
func (a *assembler) here(at int) {
	if a.arm {
		binary.LittleEndian.PutUint32(a.code[at:], 0xb5000000|uint32((len(a.code)-at)/4)&0x7ffff<<5)
		return
	}
	binary.LittleEndian.PutUint32(a.code[at+5:], uint32(len(a.code)-at-9))
}

func (a *assembler) program() {
	null := uint64(0)
	str := func(s string) pointer { return pointer{s} }
	mount := func(what, where, kind string, flags uint64, data any) {
		a.call(systemCall{165, 40, []any{str(what), str(where), str(kind), flags, data}})
	}
	const hello = "Mounting...\n"
	a.call(systemCall{1, 64, []any{uint64(1), str(hello), uint64(len(hello))}})
	mount("hostfs", "/host", "9p", unix.MS_RDONLY, str("trans=virtio,version=9p2000.L"))
	mount("sysfs", "/sys", "sysfs", 0, null)
	mount("proc", "/proc", "proc", 0, null)
	mount("devtmpfs", "/dev", "devtmpfs", 0, null)
	a.call(systemCall{258, 34, []any{atFDCWD, str("/dev/pts"), uint64(0o755)}}) // mkdirat
	mount("devpts", "/dev/pts", "devpts", 0, null)
	a.call(systemCall{112, 157, nil})                                                // setsid
	a.call(systemCall{16, 29, []any{null, uint64(unix.TIOCSCTTY), uint64(1)}})       // ioctl
	a.call(systemCall{56, 220, []any{uint64(unix.SIGCHLD), null, null, null, null}}) // clone
	if a.arm {
		a.word(0xaa0003f3) // mov x19, x0
	} else {
		a.code = append(a.code, 0x48, 0x89, 0xc3) // mov rbx, rax
	}
	parent := a.branch(false, 0)
	const sandbox = "/virt/sandbox.sh"
	a.call(systemCall{269, 48, []any{atFDCWD, str(sandbox), uint64(unix.R_OK)}}) // faccessat
	shell := a.branch(false, 0)
	a.call(systemCall{59, 221, []any{str("/bin/sh"), pointer{"/bin/sh", sandbox}, pointer{"TERM=linux", "HOME=/virt/home"}}})
	a.here(shell)
	a.call(systemCall{59, 221, []any{str("/bin/sh"), pointer{"/bin/sh", "-i"}, pointer{"TERM=linux", "HOME=/virt/home", "DISPLAY=" + defaultGateway + ":0"}}})
	a.call(systemCall{60, 93, []any{uint64(127)}}) // exit
	a.here(parent)
	wait := len(a.code)
	a.call(systemCall{61, 260, []any{^uint64(0), null, null, null}}) // wait4
	a.branch(true, wait)
	a.call(systemCall{162, 81, nil}) // sync
	a.call(systemCall{169, 142, []any{uint64(unix.LINUX_REBOOT_MAGIC1), uint64(unix.LINUX_REBOOT_MAGIC2), uint64(unix.LINUX_REBOOT_CMD_RESTART), null}})
	a.call(systemCall{60, 93, []any{uint64(1)}})
}

// guestInit returns the init as a static ELF file (System V ABI, ELF-64) for
// "amd64" or "arm64".
func guestInit(arch string) []byte {
	const load, headers = 0x400000, 64 + 56
	a := &assembler{arm: arch == "arm64"}
	for range 2 {
		a.dataAt = load + headers + uint64(len(a.code)+7)&^7
		a.code, a.data = nil, nil
		a.program()
	}
	for len(a.code)%8 != 0 {
		a.code = append(a.code, 0)
	}
	body := append(a.code, a.data...)
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 2) // executable
	b = le.AppendUint16(b, map[bool]uint16{false: 62, true: 183}[a.arm])
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{load + headers, 64, 0} { // entry, program headers, no sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	size := uint64(headers + len(body))
	for _, v := range []uint64{0, load, load, size, size, 0x10000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, body...)
}

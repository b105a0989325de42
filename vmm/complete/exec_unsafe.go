//go:build amd64

package complete

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	slotSize  = 32
	slotCount = page / slotSize
)

// execArea is the memory that run works in: the frame, the XSAVE area and the
// scratch page lie between inaccessible pages; the code page is mapped twice,
// once to write and once to execute.
type execArea struct {
	arena    []byte // guard, frame and state, guard, scratch, guard
	frame    *runFrame
	state    []byte
	scratch  []byte
	writable []byte
	runnable []byte
	slots    [slotCount]code // what the code page holds
}

const (
	statePages = 1
	frameSize  = 128
	stateSize  = statePages*page - frameSize
)

func (e *execArea) open() (err error) {
	defer func() {
		if err != nil {
			_ = e.close()
		}
	}()
	const rw = unix.PROT_READ | unix.PROT_WRITE
	e.arena, err = unix.Mmap(-1, 0, (4+statePages)*page, rw, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for _, guard := range []int{0, 1 + statePages, 3 + statePages} {
		if err = unix.Mprotect(e.arena[guard*page:(guard+1)*page], unix.PROT_NONE); err != nil {
			return err
		}
	}
	work := e.arena[page : (1+statePages)*page]
	e.frame = (*runFrame)(unsafe.Pointer(unsafe.SliceData(work)))
	e.state = work[frameSize:]
	e.scratch = e.arena[(2+statePages)*page : (3+statePages)*page]
	e.frame.state = uintptr(unsafe.Pointer(unsafe.SliceData(e.state)))
	if xgetbv()&xAVX != 0 {
		e.frame.avx = 1
	}

	fd, err := unix.MemfdCreate("gvmm-complete", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.Ftruncate(fd, page); err != nil {
		return err
	}
	if e.writable, err = unix.Mmap(fd, 0, page, rw, unix.MAP_SHARED); err != nil {
		return err
	}
	e.runnable, err = unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
	return err
}

func (e *execArea) close() error {
	var first error
	for _, m := range []*[]byte{&e.arena, &e.writable, &e.runnable} {
		if *m == nil {
			continue
		}
		if err := unix.Munmap(*m); err != nil && first == nil {
			first = err
		}
		*m = nil
	}
	return first
}

// place makes frame.code point to the instruction followed by RET. The same
// instruction keeps its place, so that most runs write no code.
func (e *execArea) place(k *code) {
	h := uint32(2166136261)
	for _, b := range k.b {
		h = (h ^ uint32(b)) * 16777619
	}
	slot := (h ^ h>>16) % slotCount
	e.frame.fresh = 0
	if e.slots[slot] != *k {
		w := e.writable[slot*slotSize:][:slotSize]
		n := copy(w, k.b[:k.n])
		w[n] = 0xC3
		e.slots[slot] = *k
		e.frame.fresh = 1
	}
	e.frame.code = uintptr(unsafe.Pointer(unsafe.SliceData(e.runnable))) + uintptr(slot*slotSize)
}

// operand returns n zeroed bytes of the scratch area.
func (e *execArea) operand(n int) []byte {
	clear(e.scratch[:128])
	return e.scratch[:n]
}

func (e *execArea) scratchAddr() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(e.scratch))) }

func (e *execArea) isScratch(a uint64) bool { return a-uint64(e.scratchAddr()) < page }

func (e *execArea) isCode(a uint64) bool {
	return a-uint64(uintptr(unsafe.Pointer(unsafe.SliceData(e.runnable)))) < page
}

// mxcsrMask returns the bits of MXCSR that the processor has (SDM vol. 1, 11.6.6).
func (e *execArea) mxcsrMask() uint32 {
	clear(e.state[:512])
	fxsave(unsafe.SliceData(e.state))
	if m := le.Uint32(e.state[xMXCSRMask:]); m != 0 {
		return m
	}
	return 0xffbf
}

//go:noescape
func fxsave(p *byte)

//go:noescape
func casUint64(p *byte, old, new uint64) (prev uint64)

//go:noescape
func casUint128(p *byte, oldLo, oldHi, newLo, newHi uint64) (prevLo, prevHi uint64)

// swap8 does lock cmpxchg on 8 bytes within a cache line.
func swap8(b []byte, old, new uint64) uint64 {
	_ = b[7]
	return casUint64(unsafe.SliceData(b), old, new)
}

// swap16 does lock cmpxchg16b on 16 aligned bytes.
func swap16(b []byte, old, new [2]uint64) (lo, hi uint64) {
	_ = b[15]
	return casUint128(unsafe.SliceData(b), old[0], old[1], new[0], new[1])
}

// loadEntry and swapEntry read and change a page-table entry of 4 or 8 bytes
// as the processor does; b starts at a multiple of its length.
func loadEntry(b []byte) uint64 {
	if len(b) == 8 {
		return atomic.LoadUint64((*uint64)(unsafe.Pointer(unsafe.SliceData(b))))
	}
	return uint64(atomic.LoadUint32((*uint32)(unsafe.Pointer(unsafe.SliceData(b)))))
}

func swapEntry(b []byte, old, new uint64) bool {
	if len(b) == 8 {
		return atomic.CompareAndSwapUint64((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), old, new)
	}
	return atomic.CompareAndSwapUint32((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), uint32(old), uint32(new))
}

package psp

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

var le = binary.LittleEndian

// copyIn fills p from the monitor's memory at addr, as copy_from_user does.
func copyIn(addr uint64, p []byte) error { return copyUser(addr, p, unix.ProcessVMReadv) }

// copyOut writes p to the monitor's memory at addr, as copy_to_user does.
func copyOut(addr uint64, p []byte) error { return copyUser(addr, p, unix.ProcessVMWritev) }

func copyUser(addr uint64, p []byte, do func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) error {
	if len(p) == 0 {
		return nil
	}
	local := unix.Iovec{Base: &p[0]}
	local.SetLen(len(p))
	n, err := do(os.Getpid(), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}, 0)
	if err != nil || n != len(p) {
		return unix.EFAULT
	}
	return nil
}

// get reads a number of size bytes at off.
func get(b []byte, off, size int) uint64 {
	var v [8]byte
	copy(v[:size], b[off:])
	return le.Uint64(v[:])
}

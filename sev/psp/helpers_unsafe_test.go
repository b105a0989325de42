package psp

import (
	"unsafe"
)

// addressOf is where mapped memory lies.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

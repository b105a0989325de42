package qcow2

import (
	"sync/atomic"
	"unsafe"
)

// touch makes the mapped pages of b writable, so that stores into them right
// behind it are not faults: in a fault a killed process ends. b is not changed.
func touch(b []byte) {
	for at := 0; at < len(b); at += 4096 {
		touchByte(b, at)
	}
	touchByte(b, len(b)-1)
}

func touchByte(b []byte, at int) {
	p := unsafe.Pointer(&b[at])
	atomic.OrUint32((*uint32)(unsafe.Add(p, -int(uintptr(p)&3))), 0)
}

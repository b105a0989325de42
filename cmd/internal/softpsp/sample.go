package main

import "encoding/binary"

// sampleELF returns an SNP guest of a few instructions: an ELF64 entered in 64-bit
// mode, with C-bit page tables and all memory validated, that asks the host for
// its own end by the MSR protocol (GHCB 2.03, 2.3.1).
func sampleELF() []byte {
	const base, headers, loaded = 0x200000, 64 + 56, 0x2000
	code := []byte{
		0xb9, 0x30, 0x01, 0x01, 0xc0, // mov $0xc0010130, %ecx: the GHCB MSR
		0xb8, 0x00, 0x01, 0x00, 0x00, // mov $0x100, %eax: termination request, set 0, code 0
		0x31, 0xd2, // xor %edx, %edx
		0x0f, 0x30, // wrmsr
		0xf3, 0x0f, 0x01, 0xd9, // vmgexit
		0xf4,       // hlt
		0xeb, 0xfd, // jmp back to it
	}
	code = append(code, "\nAn SEV-SNP guest to try gvmm with. Change a byte of it and it is another guest.\n"...)
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 15: 0}
	for _, v := range []uint16{2, 62} { // an executable, for x86-64
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + headers, 64, 0} { // entry, program headers, sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} { // sizes and numbers of headers
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 7)
	for _, v := range []uint64{0, base, base, uint64(headers + len(code)), loaded, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

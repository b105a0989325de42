#include "textflag.h"

// func run(f *runFrame)
//
// Only rax, rbx, rcx, rdx, rsi, rdi, the flags and the FPU change between
// loading and storing, so r8 and r9 survive the instruction. The host's own
// FPU state is MXCSR and the x87 control word: assembly functions may lose all
// vector, mask and x87 registers.
TEXT ·run(SB), NOSPLIT, $0-8
	MOVQ f+0(FP), R9
	STMXCSR 80(R9)
	BYTE $0x41; BYTE $0xD9; BYTE $0x79; BYTE $84 // FNSTCW 84(R9)
	MOVQ 64(R9), R10
	MOVQ 72(R9), AX
	TESTQ AX, AX
	JZ loaded
	XORL DX, DX
	XRSTOR64 (R10)
loaded:
	CMPB 86(R9), $0
	JE ready
	CALL serialize<>(SB)
ready:
	MOVQ 56(R9), R8
	PUSHFQ
	POPQ AX
	ANDQ $~0x8D5, AX
	ORQ 48(R9), AX
	PUSHQ AX
	MOVQ 0(R9), AX
	MOVQ 8(R9), CX
	MOVQ 16(R9), DX
	MOVQ 24(R9), BX
	MOVQ 32(R9), SI
	MOVQ 40(R9), DI
	POPFQ
	CALL R8
	MOVQ AX, 0(R9)
	MOVQ CX, 8(R9)
	MOVQ DX, 16(R9)
	MOVQ BX, 24(R9)
	MOVQ SI, 32(R9)
	MOVQ DI, 40(R9)
	PUSHFQ
	POPQ AX
	MOVQ AX, 48(R9)
	MOVQ 72(R9), AX
	TESTQ AX, AX
	JZ done
	XORL DX, DX
	MOVQ 64(R9), R10
	XSAVE64 (R10)
	BYTE $0xDB; BYTE $0xE3 // FNINIT
	BYTE $0x41; BYTE $0xD9; BYTE $0x69; BYTE $84 // FLDCW 84(R9)
	LDMXCSR 80(R9)
	CMPB 87(R9), $0
	JE done
	VZEROUPPER
done:
	RET

// serialize executes CPUID, which serializes: code written through the other
// mapping is fetched anew (SDM vol. 3, 10.3 and 12.1.3). IRET to the same ring
// would be cheaper in a virtual machine, but QEMU's emulator reads its frame as
// the supervisor does, and SMAP then kills the host kernel's task.
TEXT serialize<>(SB), NOSPLIT|NOFRAME, $0
	XORL AX, AX
	XORL CX, CX
	CPUID
	RET

// func cpuidex(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuidex(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL subleaf+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET

// func xgetbv() uint64
TEXT ·xgetbv(SB), NOSPLIT, $0-8
	XORL CX, CX
	XGETBV
	SHLQ $32, DX
	ORQ DX, AX
	MOVQ AX, ret+0(FP)
	RET

// func fxsave(p *byte)
TEXT ·fxsave(SB), NOSPLIT, $0-8
	MOVQ p+0(FP), AX
	FXSAVE64 (AX)
	RET

// func casUint64(p *byte, old, new uint64) (prev uint64)
TEXT ·casUint64(SB), NOSPLIT, $0-32
	MOVQ p+0(FP), DI
	MOVQ old+8(FP), AX
	MOVQ new+16(FP), CX
	LOCK
	CMPXCHGQ CX, 0(DI)
	MOVQ AX, prev+24(FP)
	RET

// func casUint128(p *byte, oldLo, oldHi, newLo, newHi uint64) (prevLo, prevHi uint64)
TEXT ·casUint128(SB), NOSPLIT, $0-56
	MOVQ p+0(FP), DI
	MOVQ oldLo+8(FP), AX
	MOVQ oldHi+16(FP), DX
	MOVQ newLo+24(FP), BX
	MOVQ newHi+32(FP), CX
	LOCK
	CMPXCHG16B (DI)
	MOVQ AX, prevLo+40(FP)
	MOVQ DX, prevHi+48(FP)
	RET

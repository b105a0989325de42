#include "textflag.h"

// func loadAcquire16(p *uint16) uint16
TEXT ·loadAcquire16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	(AX), AX
	MOVW	AX, ret+8(FP)
	RET

// func storeRelease16(p *uint16, v uint16)
TEXT ·storeRelease16(SB), NOSPLIT, $0-10
	MOVQ	p+0(FP), AX
	MOVWLZX	v+8(FP), CX
	MOVW	CX, (AX)
	RET

// func Fence()
TEXT ·Fence(SB), NOSPLIT, $0-0
	MFENCE
	RET

#include "textflag.h"

// SHA-512 (FIPS 180-4, 6.4.2) of eight messages at a time: lane i of a vector
// register belongs to message i. a to h are Z0 to Z7, the schedule's sixteen
// words Z16 to Z31; Z8 to Z11 are scratch.

#define XOR3(x, y, z) VPTERNLOGQ $0x96, x, y, z

#define ROUND(a, b, c, d, e, f, g, h, w, k) \
	VPADDQ      w, h, h            \
	VPADDQ.BCST k(CX), h, h        \
	VPRORQ      $14, e, Z8         \
	VPRORQ      $18, e, Z9         \
	VPRORQ      $41, e, Z10        \
	XOR3(Z9, Z10, Z8)              \
	VMOVDQA64   e, Z11             \
	VPTERNLOGQ  $0xca, g, f, Z11   \ // e ? f : g
	VPADDQ      Z8, h, h           \
	VPADDQ      Z11, h, h          \
	VPADDQ      h, d, d            \
	VPRORQ      $28, a, Z8         \
	VPRORQ      $34, a, Z9         \
	VPRORQ      $39, a, Z10        \
	XOR3(Z9, Z10, Z8)              \
	VMOVDQA64   a, Z11             \
	VPTERNLOGQ  $0xe8, c, b, Z11   \ // the majority of a, b and c
	VPADDQ      Z8, h, h           \
	VPADDQ      Z11, h, h

// NEXT makes word i+16 in the place of word i.
#define NEXT(w, w1, w9, w14) \
	VPRORQ $1, w1, Z8   \
	VPRORQ $8, w1, Z9   \
	VPSRLQ $7, w1, Z10  \
	XOR3(Z9, Z10, Z8)   \
	VPADDQ w9, w, w     \
	VPADDQ Z8, w, w     \
	VPRORQ $19, w14, Z8 \
	VPRORQ $61, w14, Z9 \
	VPSRLQ $6, w14, Z10 \
	XOR3(Z9, Z10, Z8)   \
	VPADDQ Z8, w, w

#define BOTH(a, b, c, d, e, f, g, h, w, k, w1, w9, w14) \
	ROUND(a, b, c, d, e, f, g, h, w, k) \
	NEXT(w, w1, w9, w14)

// LOAD gathers big-endian word i of the block from all messages.
#define LOAD(i, w) \
	KXNORW     K1, K1, K1               \
	VPGATHERQQ (8*i)(SI)(Z12*1), K1, w  \
	VPSHUFB    Z13, w, w

#define ADD(i, r) \
	VPADDQ    (64*i)(DI), r, r \
	VMOVDQU64 r, (64*i)(DI)

DATA swap<>+0(SB)/8, $0x0001020304050607
DATA swap<>+8(SB)/8, $0x08090a0b0c0d0e0f
GLOBL swap<>(SB), RODATA|NOPTR, $16

// func sha512x8(state *[8][8]uint64, base *byte, offsets *[8]uint64, blocks int, k *[80]uint64)
TEXT ·sha512x8(SB), NOSPLIT, $0-40
	MOVQ         state+0(FP), DI
	MOVQ         base+8(FP), SI
	MOVQ         offsets+16(FP), AX
	MOVQ         blocks+24(FP), BX
	VMOVDQU64    (AX), Z12
	VBROADCASTI32X4 swap<>(SB), Z13

block:
	MOVQ k+32(FP), CX
	LOAD(0, Z16)
	LOAD(1, Z17)
	LOAD(2, Z18)
	LOAD(3, Z19)
	LOAD(4, Z20)
	LOAD(5, Z21)
	LOAD(6, Z22)
	LOAD(7, Z23)
	LOAD(8, Z24)
	LOAD(9, Z25)
	LOAD(10, Z26)
	LOAD(11, Z27)
	LOAD(12, Z28)
	LOAD(13, Z29)
	LOAD(14, Z30)
	LOAD(15, Z31)
	VMOVDQU64 (DI), Z0
	VMOVDQU64 64(DI), Z1
	VMOVDQU64 128(DI), Z2
	VMOVDQU64 192(DI), Z3
	VMOVDQU64 256(DI), Z4
	VMOVDQU64 320(DI), Z5
	VMOVDQU64 384(DI), Z6
	VMOVDQU64 448(DI), Z7
	MOVQ      $4, DX

sixteen:
	BOTH(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 0, Z17, Z25, Z30)
	BOTH(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 8, Z18, Z26, Z31)
	BOTH(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 16, Z19, Z27, Z16)
	BOTH(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 24, Z20, Z28, Z17)
	BOTH(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 32, Z21, Z29, Z18)
	BOTH(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 40, Z22, Z30, Z19)
	BOTH(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 48, Z23, Z31, Z20)
	BOTH(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 56, Z24, Z16, Z21)
	BOTH(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z24, 64, Z25, Z17, Z22)
	BOTH(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z25, 72, Z26, Z18, Z23)
	BOTH(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z26, 80, Z27, Z19, Z24)
	BOTH(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z27, 88, Z28, Z20, Z25)
	BOTH(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z28, 96, Z29, Z21, Z26)
	BOTH(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z29, 104, Z30, Z22, Z27)
	BOTH(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z30, 112, Z31, Z23, Z28)
	BOTH(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z31, 120, Z16, Z24, Z29)
	ADDQ $128, CX
	DECQ DX
	JNZ  sixteen
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 0)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 8)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 16)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 24)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 32)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 40)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 48)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 56)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z24, 64)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z25, 72)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z26, 80)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z27, 88)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z28, 96)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z29, 104)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z30, 112)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z31, 120)
	ADD(0, Z0)
	ADD(1, Z1)
	ADD(2, Z2)
	ADD(3, Z3)
	ADD(4, Z4)
	ADD(5, Z5)
	ADD(6, Z6)
	ADD(7, Z7)
	ADDQ $128, SI
	DECQ BX
	JNZ  block
	VZEROUPPER
	RET

// One test an instruction (or a few that belong together): in at %rsi (bytes 0,
// 1, 2, ...), 32 bytes of result at (%rdi). The wanted result stands beside the
// name, lowest 8 bytes first.
	.macro	test name:req, a=0, b=0, c=0, d=0, needs=0
	.section .rodata.str, "a"
1:	.asciz	"\name"
	.section .simd, "aw"
	.quad	1b, 2f, \a, \b, \c, \d, \needs
	.text
2:
	.endm
	.set	AVX, 1
	.set	AVX2, 2
	.set	WINDOW, 4
	.set	XSAVE, 8

	.macro	out
	movdqu	%xmm0, (%rdi)
	ret
	.endm
	.macro	yout
	vmovdqu	%ymm0, (%rdi)
	vzeroupper
	ret
	.endm

	.section .simd, "aw"
	.global simd_tests
simd_tests:
	.text

// Moves.
	test	"movq from and to a register", 0x123456789
	mov	$0x123456789, %rax
	movq	%rax, %xmm0
	movq	%xmm0, %rcx
	mov	%rcx, (%rdi)
	ret
	test	"movq memory", 0x0706050403020100
	movq	(%rsi), %xmm0
	out
	test	"movq store", 0x0f0e0d0c0b0a0908
	movdqu	8(%rsi), %xmm0
	movq	%xmm0, (%rdi)
	ret
	test	"movd", 0x03020100
	movd	(%rsi), %xmm0
	movd	%xmm0, %eax
	mov	%rax, (%rdi)
	ret
	test	"movdqa, movdqu", 0x1716151413121110, 0x1f1e1d1c1b1a1918
	movdqa	16(%rsi), %xmm3
	movdqu	%xmm3, (%rdi)
	ret
	test	"movups odd address", 0x0a09080706050403, 0x1211100f0e0d0c0b
	movups	3(%rsi), %xmm15
	movups	%xmm15, (%rdi)
	ret
	test	"movaps register", 0x0706050403020100, 0x0f0e0d0c0b0a0908
	movaps	(%rsi), %xmm1
	movaps	%xmm1, %xmm0
	out
	test	"movhps, movlps", 0x2726252423222120, 0x1716151413121110
	pxor	%xmm0, %xmm0
	movhps	16(%rsi), %xmm0
	movlps	32(%rsi), %xmm0
	movhps	%xmm0, 8(%rdi)
	movlps	%xmm0, (%rdi)
	ret
	test	"movhlps, movlhps", 0x0f0e0d0c0b0a0908, 0x0f0e0d0c0b0a0908
	movdqu	(%rsi), %xmm0
	movhlps	%xmm0, %xmm0
	movlhps	%xmm0, %xmm0
	out
	test	"movss, movsd", 0x0706050403020100, 0
	movdqu	16(%rsi), %xmm0
	movsd	(%rsi), %xmm0
	out
	test	"movss store", 0x03020100
	movss	(%rsi), %xmm0
	movss	%xmm0, (%rdi)
	ret
	test	"movntdq, movnti", 0x0706050403020100, 0x55
	movdqu	(%rsi), %xmm0
	mov	%rdi, %rcx
	add	$15, %rcx
	and	$-16, %rcx
	movntdq	%xmm0, (%rcx)
	sfence
	mov	(%rcx), %rdx
	movq	$0, (%rcx)
	movq	$0, 8(%rcx)
	mov	%rdx, (%rdi)
	mov	$0x55, %eax
	movnti	%eax, 8(%rdi)
	ret
	test	"lddqu", 0x0807060504030201, 0x100f0e0d0c0b0a09
	lddqu	1(%rsi), %xmm0
	out
	test	"rip-relative operand", 0x1122334455667788
	movq	constant(%rip), %xmm0
	out
	test	"indexed operand, r8 and up", 0x2f2e2d2c2b2a2928, 0x3736353433323130
	mov	$5, %r9d
	movdqu	(%rsi,%r9,8), %xmm12
	movdqu	%xmm12, (%rdi)
	ret

// Integer arithmetic.
	test	"pxor"
	movdqu	(%rsi), %xmm0
	pxor	%xmm0, %xmm0
	out
	test	"pand, por, pandn", 0x0f0e0d0c0b0a0908, 0x0706050403020100
	movdqu	(%rsi), %xmm0
	pshufd	$0x4e, %xmm0, %xmm1
	movdqu	%xmm0, %xmm2
	pand	%xmm1, %xmm2
	por	%xmm1, %xmm0
	pandn	%xmm0, %xmm2
	movdqu	(%rsi), %xmm0
	pxor	%xmm2, %xmm0
	out
	test	"paddb, paddw, paddd, paddq", 0x1c1814100c080400, 0x3c3834302c282420
	movdqu	(%rsi), %xmm0
	paddb	(%rsi), %xmm0
	movdqu	(%rsi), %xmm1
	paddw	%xmm1, %xmm1
	movdqu	(%rsi), %xmm2
	paddd	%xmm2, %xmm2
	pxor	%xmm1, %xmm2
	paddq	%xmm2, %xmm0
	paddb	%xmm1, %xmm0
	out
	test	"psubd", 0x1010101010101010, 0x1010101010101010
	movdqu	16(%rsi), %xmm0
	psubd	(%rsi), %xmm0
	out
	test	"punpcklqdq, punpckhqdq", 0x0706050403020100, 0x1716151413121110
	movdqu	(%rsi), %xmm0
	movdqu	16(%rsi), %xmm1
	punpcklqdq %xmm1, %xmm0
	out
	test	"punpcklbw", 0x1303120211011000, 0x1707160615051404
	movdqu	(%rsi), %xmm0
	movdqu	16(%rsi), %xmm1
	punpcklbw %xmm1, %xmm0
	out
	test	"pshufd", 0x0f0e0d0c0b0a0908, 0x0302010007060504
	pshufd	$0x63, (%rsi), %xmm0
	pshufd	$0x72, %xmm0, %xmm0
	out
	test	"pshufb", 0x08090a0b0c0d0e0f, 0x0001020304050607
	movdqu	(%rsi), %xmm0
	movdqu	backwards(%rip), %xmm1
	pshufb	%xmm1, %xmm0
	pshufd	$0x4e, %xmm0, %xmm0
	out
	test	"palignr", 0x0c0b0a0908070605, 0x14131211100f0e0d
	movdqu	16(%rsi), %xmm0
	palignr	$5, (%rsi), %xmm0
	out
	test	"pslldq, psrldq, psllq, psrlq", 0x0e0c0a0806040200, 0x1e1c1a1816141210
	movdqu	(%rsi), %xmm0
	psllq	$4, %xmm0
	psrlq	$3, %xmm0
	pslldq	$1, %xmm0
	psrldq	$1, %xmm0
	movq	8(%rsi), %xmm1
	psllq	$1, %xmm1
	punpcklqdq %xmm1, %xmm0
	out
	test	"pcmpeqb, pmovmskb", 0x0001
	movdqu	(%rsi), %xmm0
	pxor	%xmm1, %xmm1
	pcmpeqb	%xmm1, %xmm0
	pmovmskb %xmm0, %eax
	mov	%rax, (%rdi)
	ret
	test	"pcmpgtd, pminub, pmaxub", 0x1716151413121110, 0x1f1e1d1c1b1a1918
	movdqu	(%rsi), %xmm0
	movdqu	16(%rsi), %xmm1
	movdqa	%xmm1, %xmm2
	pcmpgtd	%xmm0, %xmm2
	pmaxub	%xmm1, %xmm0
	pminub	%xmm2, %xmm0
	out
	test	"pmullw, pmuludq", 0x0031002400190010, 0x00e100c400a90090
	pxor	%xmm1, %xmm1
	movq	4(%rsi), %xmm0
	punpcklbw %xmm1, %xmm0
	pmullw	%xmm0, %xmm0
	movq	%xmm0, (%rdi)
	movq	12(%rsi), %xmm0
	punpcklbw %xmm1, %xmm0
	pmullw	%xmm0, %xmm0
	movq	%xmm0, 8(%rdi)
	ret
	test	"pinsrw, pextrw", 0x0706abcd03020100, 0xabcd
	movq	(%rsi), %xmm0
	mov	$0xabcd, %eax
	pinsrw	$2, %eax, %xmm0
	pextrw	$2, %xmm0, %ecx
	movq	%xmm0, (%rdi)
	mov	%rcx, 8(%rdi)
	ret
	test	"pextrq, pinsrq", 0x0f0e0d0c0b0a0908, 0x0f0e0d0c0b0a0908
	movdqu	(%rsi), %xmm0
	pextrq	$1, %xmm0, %rax
	pinsrq	$0, %rax, %xmm0
	out
	test	"ptest", 0x40
	pxor	%xmm0, %xmm0
	xor	%eax, %eax
	ptest	(%rsi), %xmm0
	pushfq
	pop	%rax
	and	$0x40, %eax
	mov	%rax, (%rdi)
	ret

// Floating point.
	test	"addps, mulps", 0x4140000041400000, 0x4140000041400000
	movups	threes(%rip), %xmm0
	addps	%xmm0, %xmm0
	addps	threes(%rip), %xmm0
	addps	threes(%rip), %xmm0
	out
	test	"addsd, mulsd, subsd, divsd", 0x4008000000000000
	movsd	two(%rip), %xmm0
	movsd	two(%rip), %xmm1
	addsd	%xmm1, %xmm0
	mulsd	%xmm1, %xmm0
	subsd	%xmm1, %xmm0
	divsd	%xmm1, %xmm0
	out
	test	"sqrtsd, cvtsi2sd, cvttsd2si", 12
	mov	$144, %eax
	cvtsi2sd %rax, %xmm0
	sqrtsd	%xmm0, %xmm0
	cvttsd2si %xmm0, %rax
	mov	%rax, (%rdi)
	ret
	test	"cvtss2sd, cvtsd2ss", 0x40400000
	movss	threes(%rip), %xmm0
	cvtss2sd %xmm0, %xmm0
	cvtsd2ss %xmm0, %xmm0
	movss	%xmm0, (%rdi)
	ret
	test	"ucomisd, comiss flags", 0x41, 0x44
	movsd	two(%rip), %xmm0
	xor	%eax, %eax
	ucomisd	%xmm0, %xmm0
	setz	%al
	setp	%cl
	mov	$0, %edx
	ucomisd	three_d(%rip), %xmm0
	setc	%dl
	shl	$6, %eax
	or	%edx, %eax
	mov	%rax, (%rdi)
	comiss	threes(%rip), %xmm0
	movzbl	%cl, %ecx
	shl	$2, %ecx
	add	$0x44, %ecx
	mov	%rcx, 8(%rdi)
	ret
	test	"unpcklps, shufps", 0x1312111003020100, 0x1716151407060504
	movups	(%rsi), %xmm0
	unpcklps 16(%rsi), %xmm0
	shufps	$0xe4, %xmm0, %xmm0
	out
	test	"ldmxcsr, stmxcsr", 0x1f80, 0x9fc0
	stmxcsr	(%rdi)
	mov	(%rdi), %eax
	andl	$~0x3f, (%rdi)
	movl	$0x9fc0, 8(%rdi)
	ldmxcsr	8(%rdi)
	movl	$0, 8(%rdi)
	stmxcsr	8(%rdi)
	mov	%eax, 16(%rdi)
	ldmxcsr	16(%rdi)
	movl	$0, 16(%rdi)
	ret

// x87.
	test	"fninit, fnstcw, fldcw", 0x037f, 0x0f7f
	fninit
	fnstcw	(%rdi)
	movw	$0x0f7f, 8(%rdi)
	fldcw	8(%rdi)
	movw	$0, 8(%rdi)
	fnstcw	8(%rdi)
	fninit
	ret
	test	"fild, fadd, fmul, fistp", 42
	movl	$3, (%rdi)
	fildl	(%rdi)
	movl	$4, (%rdi)
	fildl	(%rdi)
	faddp
	movl	$6, (%rdi)
	fildl	(%rdi)
	fmulp
	fistpll	(%rdi)
	ret
	test	"fldpi, fnstsw, fstp", 0x4000, 0x3800
	fninit
	fldpi
	fnstsw	%ax
	movzwl	%ax, %eax
	fstpt	(%rdi)
	movzwl	8(%rdi), %ecx
	mov	%ecx, %ecx
	mov	%rcx, (%rdi)
	mov	%rax, 8(%rdi)
	andw	$0xffff, 8(%rdi)
	ret

// Whole-state instructions. The area lies on a page border of its own.
	test	"fxsave, fxrstor", 0x0706050403020100, 0x0f0e0d0c0b0a0908
	movdqu	(%rsi), %xmm7
	fxsave	area(%rip)
	pxor	%xmm7, %xmm7
	fxrstor	area(%rip)
	movdqu	%xmm7, (%rdi)
	ret
	test	"fxsave64: mxcsr and xmm0 where they belong", 0x1f80, 0x1716151413121110
	movdqu	16(%rsi), %xmm0
	fxsave64 area(%rip)
	mov	area+24(%rip), %eax
	and	$~0x3f, %eax
	mov	%rax, (%rdi)
	mov	area+160(%rip), %rax
	mov	%rax, 8(%rdi)
	ret
	test	"xgetbv", 3, needs=XSAVE
	xor	%ecx, %ecx
	xgetbv
	and	$3, %eax
	mov	%rax, (%rdi)
	ret
	test	"xsave, xrstor", 0x0706050403020100, 0x0f0e0d0c0b0a0908, 3, 0, XSAVE
	movdqu	(%rsi), %xmm9
	mov	$3, %eax
	xor	%edx, %edx
	xsave	area(%rip)
	pxor	%xmm9, %xmm9
	mov	$3, %eax
	xrstor	area(%rip)
	movdqu	%xmm9, (%rdi)
	mov	area+512(%rip), %rax
	and	$3, %eax
	or	$1, %eax	// x87 may be in its initial state
	mov	%rax, 16(%rdi)
	ret

// Wide compare and exchange.
	test	"cmpxchg16b equal", 0x33, 0x44, 1, 0
	mov	%rdi, %r8
	lea	wide(%rip), %rcx
	movq	$0x11, (%rcx)
	movq	$0x22, 8(%rcx)
	push	%rbx
	mov	%rcx, %r9
	mov	$0x11, %eax
	mov	$0x22, %edx
	mov	$0x33, %ebx
	mov	$0x44, %ecx
	lock cmpxchg16b (%r9)
	setz	16(%r8)
	pop	%rbx
	mov	(%r9), %rax
	mov	%rax, (%r8)
	mov	8(%r9), %rax
	mov	%rax, 8(%r8)
	ret
	test	"cmpxchg16b different", 0x11, 0x22, 0, 0
	push	%rbx
	lea	wide(%rip), %r9
	movq	$0x11, (%r9)
	movq	$0x22, 8(%r9)
	xor	%eax, %eax
	xor	%edx, %edx
	mov	$0x33, %ebx
	mov	$0x44, %ecx
	cmpxchg16b (%r9)
	setz	16(%rdi)
	pop	%rbx
	mov	%rax, (%rdi)
	mov	%rdx, 8(%rdi)
	ret
	test	"cmpxchg8b", 0x0000000400000003, 1
	push	%rbx
	movl	$1, (%rdi)
	movl	$2, 4(%rdi)
	mov	$1, %eax
	mov	$2, %edx
	mov	$3, %ebx
	mov	$4, %ecx
	lock cmpxchg8b (%rdi)
	setz	8(%rdi)
	pop	%rbx
	ret

// AVX and AVX2.
	test	"vmovdqu, vpxor", 0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110, 0x1f1e1d1c1b1a1918, AVX
	vmovdqu	(%rsi), %ymm0
	vxorps	%ymm1, %ymm1, %ymm1
	vxorps	%ymm1, %ymm0, %ymm0
	yout
	test	"vmovdqu xmm clears the upper half", 0x0706050403020100, 0x0f0e0d0c0b0a0908, needs=AVX
	vmovdqu	(%rsi), %ymm0
	vmovdqu	(%rsi), %xmm0
	yout
	test	"vaddpd, vmulsd", 0x4020000000000000, needs=AVX
	vmovsd	two(%rip), %xmm0
	vaddpd	%xmm0, %xmm0, %xmm1
	vmulsd	%xmm0, %xmm1, %xmm0
	vmovq	%xmm0, %xmm0
	yout
	test	"vbroadcastss, vinsertf128, vextractf128", 0x0302010003020100, 0x0302010003020100, 0x1716151413121110, 0x1f1e1d1c1b1a1918, AVX
	vbroadcastss (%rsi), %ymm0
	vmovdqu	(%rsi), %ymm1
	vextractf128 $1, %ymm1, %xmm2
	vinsertf128 $1, %xmm2, %ymm0, %ymm0
	yout
	test	"vpaddd ymm", 0x0e0c0a0806040200, 0x1e1c1a1816141210, 0x2e2c2a2826242220, 0x3e3c3a3836343230, AVX2
	vmovdqu	(%rsi), %ymm1
	vpaddd	(%rsi), %ymm1, %ymm0
	yout
	test	"vpcmpeqb, vpmovmskb ymm", 0x1, needs=AVX2
	vpxor	%xmm1, %xmm1, %xmm1
	vpcmpeqb (%rsi), %ymm1, %ymm0
	vpmovmskb %ymm0, %eax
	vzeroupper
	mov	%rax, (%rdi)
	ret
	test	"vpshufb, vpermq, vpbroadcastb", 0x0808080808080808, 0x0808080808080808, 0x0808080808080808, 0x0808080808080808, AVX2
	vpbroadcastb 8(%rsi), %ymm0
	vpermq	$0x1b, %ymm0, %ymm0
	yout

// A device's register through an SSE move: the bus answers.
	test	"movd from a virtio-mmio window", 0x74726976, needs=WINDOW
	mov	simd_window(%rip), %rax
	movd	(%rax), %xmm0
	out

	.section .simd, "aw"
	.global simd_end
simd_end:

	.section .rodata
	.balign	16
backwards: .byte 7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8
threes:	.float	3, 3, 3, 3
constant: .quad	0x1122334455667788
two:	.double	2
three_d: .double 3

	.bss
	.balign	64
area:	.skip	4096
wide:	.skip	16
	.section .note.GNU-stack

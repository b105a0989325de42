// An arm64 Image with Unikraft's header: it asks for the place 0xfffc0 above the
// start of RAM, so that its code begins at 1 MiB.
	.section .head, "ax"
	.global start, secondary
head:
	b	start
	nop
	.quad	0xfffc0		// text_offset
	.quad	image_size
	.quad	0xa		// flags: 4 KiB pages, anywhere (which is not so)
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.long	0

	.text
start:
	mov	x19, x0
	adr	x1, vectors
	msr	vbar_el1, x1
	mov	x1, #3 << 20	// floating point and vectors, for what the compiler may use
	msr	cpacr_el1, x1
	isb
	adrp	x1, stack_top
	add	x1, x1, :lo12:stack_top
	mov	sp, x1
	mov	x0, x19
	bl	guest
1:	wfi
	b	1b

// The second vCPU comes here with its stack in x0.
secondary:
	mov	sp, x0
	bl	second
1:	wfi
	b	1b

	.global call
// call(x0..x3) is a hypervisor call.
call:
	hvc	#0
	ret

	.balign 2048
vectors:
	.rept	16
	.balign 128
	b	trap_entry
	.endr
trap_entry:
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	mrs	x2, far_el1
	bl	trap
	.section .note.GNU-stack

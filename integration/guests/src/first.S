// The smallest guest: one byte on COM1, then power off. The same bytes of code
// run in 32-bit and in 64-bit mode; it needs no stack.
	.code32
	.global start32, start64
start32:
start64:
	mov	$0x3f8, %edx
	mov	$'!', %al
	outb	%al, %dx
	mov	$0x604, %edx
	mov	$0x2000, %eax
	outw	%ax, %dx
1:	cli
	hlt
	jmp	1b
	.section .note.GNU-stack

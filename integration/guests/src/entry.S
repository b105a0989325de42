// The ways in: start32 (multiboot and PVH: 32-bit, paging off) and start64 (the
// Linux 64-bit protocol). Both come to main(command line) in 64-bit mode on our
// own page tables, which map the first 4 GiB one to one for every ring.
	.code32
	.global start32
start32:
	endbr32
	cld
	mov	$stack_top, %esp
	xor	%edi, %edi
	cmp	$0x2badb002, %eax
	jne	1f
	testb	$4, (%ebx)		// multiboot 0.6.96, 3.3: flags bit 2, cmdline at 16
	jz	2f
	mov	16(%ebx), %edi
	jmp	2f
1:	mov	24(%ebx), %edi		// hvm_start_info.cmdline_paddr
2:	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	%cr4, %eax
	or	$0x20, %eax		// PAE
	mov	%eax, %cr4
	mov	$0xc0000080, %ecx
	rdmsr
	or	$0x100, %eax		// LME
	wrmsr
	mov	%cr0, %eax
	or	$0x80000001, %eax	// PG, PE
	mov	%eax, %cr0
	lgdt	gdtr
	ljmp	$8, $go

	.code64
	.global start64
start64:
	endbr64
	cld
	xor	%edi, %edi
	cmpl	$0x53726448, 0x202(%rsi)	// "HdrS": boot_params.hdr.header
	jne	hang
	mov	0x228(%rsi), %edi		// cmd_line_ptr
	mov	%cr4, %rax
	bt	$23, %eax		// CET is on: the monitor's page tables hold its shadow stack
	jc	1f
	mov	$pml4, %eax
	mov	%rax, %cr3
1:	lgdt	gdtr
	ljmpl	*far_go			// unlike a far return it needs nothing on a shadow stack

go:	endbr64
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$stack_top, %esp
	mov	%cr0, %rax
	and	$~0xc, %rax		// EM, TS off
	or	$2, %rax		// MP
	mov	%rax, %cr0
	mov	%cr4, %rax
	or	$0x600, %rax		// OSFXSR, OSXMMEXCPT
	mov	%rax, %cr4
	call	main

// 48 stubs of 16 bytes; each leaves an error code and its vector.
	.balign 16
	.global trap_stubs
trap_stubs:
	.set	i, 0
	.rept	48
	.balign	16
	endbr64
	.if	i != 8 && (i < 10 || i > 14) && i != 17 && i != 21
	pushq	$0
	.endif
	pushq	$i
	jmp	trap_common
	.set	i, i + 1
	.endr
trap_common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	mov	72(%rsp), %rdi
	mov	80(%rsp), %rsi
	mov	88(%rsp), %rdx
	cld
	call	trap
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

	.data
	.balign 8
far_go:	.long	go
	.word	8
	.balign 8
gdtr:	.word	gdt_end - gdt - 1
	.quad	gdt
	.balign 8
gdt:	.quad	0
	.quad	0x00af9b000000ffff	// 08 code, ring 0
	.quad	0x00cf93000000ffff	// 10 data, ring 0
	.quad	0x00cff3000000ffff	// 18 data, ring 3
	.quad	0x00affb000000ffff	// 20 code, ring 3
	.global tss_descriptor
tss_descriptor: .quad 0, 0		// 28, for who needs one
gdt_end:

	.balign 4096
pml4:	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:	.quad	pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
	.fill	508, 8, 0
	.global pd
pd:	.set	i, 0
	.rept	2048
	.quad	i * 0x200000 + 0xe7	// present, writable, user, accessed, dirty, 2 MiB
	.set	i, i + 1
	.endr

	.bss
	.balign 16
	.skip	16384
stack_top:
	.section .note.GNU-stack

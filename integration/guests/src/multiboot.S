// The multiboot 1 header: loaded as ELF, memory information wanted (flags 3, as Unikraft's).
	.section .head, "a"
	.balign	4
	.long	0x1badb002, 3, -(0x1badb002 + 3)
	.section .note.GNU-stack

// The PVH note: XEN_ELFNOTE_PHYS32_ENTRY (18), the address to enter in 32-bit mode.
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 8, 18
	.asciz	"Xen"
	.quad	start32
	.section .note.GNU-stack

// clean: a program that keeps every rule of CET while it calls deep, calls
// through pointers and takes interrupts. "cet=" switches CET on first.
#include "cet.h"

static u64 twice(u64 n) { return 2 * n; }
static u64 plus(u64 n) { return n + 1; }
static u64 (*const volatile table[])(u64) = {twice, plus};

static __attribute__((noinline)) u64 deep(u64 n, u64 v) {
	if (!n)
		return v;
	v = deep(n - 1, table[n & 1](v)) + 1;
	__asm__ volatile("" : "+r"(v)); // no tail call
	return v;
}

void guest(void) {
	traps();
	cet_self();
	u64 v = 0;
	for (u32 i = 0; i < 2; i++) {
		v += deep(100, 0);
		while (ticks == i)
			__asm__ volatile("sti; hlt; cli" ::: "memory");
	}
	puts(v == 2 * ((1ul << 50) - 1 + 100) ? "clean: ok\n" : "clean: wrong\n");
	cet_says();
	poweroff();
}

// Intel CET (SDM vol. 1, 17) in ring 0, as a guest without an operating system
// switches it on. What "cet=" on the command line asks for is inlined into the
// caller, which must never return: its own return address is on no shadow stack.
#ifndef CET_H
#define CET_H
#include "guest.h"

enum { S_CET = 0x6a2, PL0_SSP = 0x6a4, SH_STK_EN = 1, ENDBR_EN = 4, SHADOW = 0xc00000 };

extern u64 pd[]; // entry.S: one entry for 2 MiB

static inline u64 rdmsr(u32 n) {
	u32 lo, hi;
	__asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(n));
	return lo | (u64)hi << 32;
}

static inline void wrmsr(u32 n, u64 v) { __asm__ volatile("wrmsr" ::"c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }

static inline u64 cr4(void) {
	u64 v;
	__asm__ volatile("mov %%cr4,%0" : "=r"(v));
	return v;
}

// cet_says prints what is on, so that a test knows what it tests.
static inline void cet_says(void) {
	u64 on = cr4() & 1 << 23 ? rdmsr(S_CET) : 0;
	puts("cet:");
	puts(on & SH_STK_EN ? " shadow stack" : "");
	puts(on & ENDBR_EN ? " ibt" : "");
	puts(on & (SH_STK_EN | ENDBR_EN) ? "\n" : " off\n");
}

// cet_self does what "cet=self-ibt", "cet=self-shstk" or "cet=self" (both) asks
// for, as far as the processor has it.
static inline __attribute__((always_inline)) void cet_self(void) {
	const char *how = option("cet=");
	u32 a = 7, b, c = 0, d;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	u32 want = !how ? 0 : word(how, "self") ? SH_STK_EN | ENDBR_EN : word(how, "self-ibt") ? ENDBR_EN : word(how, "self-shstk") ? SH_STK_EN : 0;
	want &= (c >> 7 & 1 ? SH_STK_EN : 0) | (d >> 20 & 1 ? ENDBR_EN : 0);
	if (want) {
		__asm__ volatile("mov %%cr0,%%rax; or $0x10000,%%eax; mov %%rax,%%cr0" ::: "rax"); // WP
		if (want & SH_STK_EN) {
			// A supervisor's token on top, then the page becomes a shadow
			// stack: dirty but not writable (SDM vol. 3, 4.6).
			u64 top = SHADOW + 0x200000 - 8;
			*(volatile u64 *)top = top;
			pd[SHADOW >> 21] = SHADOW | 0xe1;
			__asm__ volatile("mov %%cr3,%%rax; mov %%rax,%%cr3" ::: "rax", "memory");
			wrmsr(PL0_SSP, top);
		}
		__asm__ volatile("mov %0,%%cr4" ::"r"(cr4() | 1 << 23));
		wrmsr(S_CET, want);
		if (want & SH_STK_EN)
			__asm__ volatile(".byte 0xf3,0x0f,0x01,0xe8"); // setssbsy
	}
	cet_says();
}
#endif

// simd: runs the instructions of simd_amd64.S in ring 0, then in ring 3, and
// prints what came out different from what it must be. "noxsave" leaves out
// XSAVE and AVX.
#include "guest.h"

struct test {
	const char *name;
	void (*run)(u64 *out, const u8 *in);
	u64 want[4];
	u64 needs; // 1 AVX, 2 AVX2, 4 a virtio-mmio window
};

extern struct test simd_tests[], simd_end[];
u64 simd_window; // of simd_amd64.S: the first virtio-mmio window

// in is 0, 1, 2, ... 0xff; out may straddle a page.
static u8 in[256] __attribute__((aligned(64)));
static u8 pages[8192] __attribute__((aligned(4096)));
static u64 have;

static u64 run(const char *where, u64 *out) {
	u64 bad = 0, done = 0;
	for (struct test *t = simd_tests; t < simd_end; t++) {
		if (t->needs & ~have)
			continue;
		out[0] = out[1] = out[2] = out[3] = 0;
		t->run(out, in);
		done++;
		int same = 1;
		for (int i = 0; i < 4; i++)
			same &= out[i] == t->want[i];
		if (same)
			continue;
		bad++;
		puts("BAD ");
		puts(t->name);
		for (int i = 3; i >= 0; i--) {
			putc(' ');
			puthex(out[i]);
		}
		puts("\n");
	}
	puts(where);
	puts(": ");
	putdec(done);
	puts(" done, ");
	putdec(bad);
	puts(" bad\n");
	return bad;
}

static void cpuid(u32 leaf, u32 sub, u32 r[4]) {
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static u64 bad;

static void all(const char *where) {
	bad += run(where, (u64 *)pages);
	bad += run(where, (u64 *)(pages + 4096 - 8)); // every 16- and 32-byte store crosses a page
}

// ring3 goes on in user, on its own stack. A task state segment names the stack
// for traps and opens every port to ring 3. (IOPL would do that too, but KVM
// without virtualization hardware drops it.)
static void ring3(void) {
	static struct {
		u32 reserved, rsp0[2], rest[22];
		u16 trap, iomap;
		u8 ports[8192], end;
	} tss = {.iomap = 104, .end = 0xff};
	static u8 stacks[2][8192] __attribute__((aligned(16)));
	extern u64 tss_descriptor[2];
	tss.rsp0[0] = (u64)(stacks + 2);
	tss_descriptor[0] = (sizeof tss - 1) | ((u64)&tss & 0xffffff) << 16 | 0x89ul << 40;
	__asm__ volatile("ltr %w0" ::"r"(0x28));
	__asm__ volatile("push $0x1b; push %0; push $2; push $0x23; push $user; iretq" ::"r"((u64)(stacks + 1) - 8) : "memory");
}

void user(void) {
	all("ring 3");
	puts(bad ? "simd: bad\n" : "simd: ok\n");
	outw(0x604, 0x2000);
	for (;;)
		;
}

void guest(void) {
	traps();
	for (int i = 0; i < 256; i++)
		in[i] = i;
	const char *s = option("virtio_mmio.device=");
	if (s) {
		while (*s && *s++ != '@')
			;
		simd_window = number(&s);
		have |= 4;
	}
	u32 r[4];
	cpuid(1, 0, r);
	if (r[2] & 1 << 26 && !option("noxsave")) { // XSAVE
		u64 cr4;
		__asm__ volatile("mov %%cr4,%0" : "=r"(cr4));
		__asm__ volatile("mov %0,%%cr4" ::"r"(cr4 | 1 << 18));
		__asm__ volatile("xsetbv" ::"c"(0), "a"(r[2] & 1 << 28 ? 7 : 3), "d"(0));
		have |= 8;
		if (r[2] & 1 << 28) {
			have |= 1;
			cpuid(7, 0, r);
			if (r[1] & 1 << 5)
				have |= 2;
		}
	}
	all("ring 0");
	have &= ~4ul; // the bus answers any ring; once is enough
	ring3();
}

#include "guest.h"

char cmdline[2048];
volatile u32 ticks;
void (*irq_hook)(int irq);

void *memset(void *d, int c, u64 n) {
	void *r = d;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return r;
}

void *memcpy(void *d, const void *s, u64 n) {
	void *r = d;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
	return r;
}

void putc(char c) {
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, c);
}

void puts(const char *s) {
	for (; *s; s++)
		putc(*s);
}

static void putnum(u64 v, u32 base) {
	char b[24];
	int i = sizeof b;
	b[--i] = 0;
	do {
		b[--i] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	puts(b + i);
}

void putdec(u64 v) { putnum(v, 10); }

void puthex(u64 v) {
	puts("0x");
	putnum(v, 16);
}

int word(const char *s, const char *w) {
	while (*w && *s == *w)
		s++, w++;
	return !*w && (!*s || *s == ' ' || *s == '\n');
}

const char *option(const char *key) {
	for (const char *s = cmdline; *s; s++) {
		if (s != cmdline && s[-1] != ' ')
			continue;
		const char *a = s, *k = key;
		while (*k && *a == *k)
			a++, k++;
		if (!*k)
			return a;
	}
	return 0;
}

u64 number(const char **s) {
	u64 v = 0;
	u32 base = 10;
	if ((*s)[0] == '0' && (*s)[1] == 'x') {
		base = 16;
		*s += 2;
	}
	for (;; (*s)++) {
		u32 d = **s - '0';
		if (d > 9)
			d = (**s | 32) - 'a' + 10;
		if (d >= base)
			return v;
		v = v * base + d;
	}
}

void hang(void) {
	for (;;)
		__asm__ volatile("cli; hlt");
}

void panic(const char *why) {
	puts("PANIC: ");
	puts(why);
	puts("\n");
	outb(0x505, 1);
	hang();
}

void poweroff(void) {
	outw(0x604, 0x2000);
	hang();
}

// The interrupt descriptor table, made at run time from the stubs of entry.S.
static struct {
	u16 lo, sel;
	u16 flags, mid;
	u32 hi, zero;
} idt[48] __attribute__((aligned(16)));

extern const char trap_stubs[]; // 48 of 16 bytes each

void traps(void) {
	for (int i = 0; i < 48; i++) {
		u64 a = (u64)trap_stubs + 16 * i;
		idt[i].lo = a;
		idt[i].mid = a >> 16;
		idt[i].sel = 8;
		idt[i].flags = 0x8e00;
	}
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) r = {sizeof idt - 1, (u64)idt};
	__asm__ volatile("lidt %0" ::"m"(r));

	static const u8 icw[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
				    {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0x21, 0xfa}, {0xa1, 0xff}};
	for (u32 i = 0; i < sizeof icw / 2; i++)
		outb(icw[i][0], icw[i][1]);
	outb(0x43, 0x34); // channel 0, mode 2, 18.2 Hz
	outb(0x40, 0);
	outb(0x40, 0);
}

void irq_open(int irq) {
	u16 port = irq < 8 ? 0x21 : 0xa1;
	outb(port, inb(port) & ~(1 << (irq & 7)));
}

void trap(u64 vector, u64 error, u64 rip) {
	if (vector < 32) {
		puts("exception ");
		putdec(vector);
		puts(" error ");
		puthex(error);
		puts(" at ");
		puthex(rip);
		puts("\n");
		panic("exception");
	}
	int irq = vector - 32;
	if (irq == 0)
		ticks++;
	else if (irq_hook)
		irq_hook(irq);
	if (irq > 7)
		outb(0xa0, 0x20);
	outb(0x20, 0x20);
}

// main is where entry.S arrives, with the command line where the loader put it.
void main(const char *line) {
	for (u32 i = 0; line && line[i] && i < sizeof cmdline - 1; i++)
		cmdline[i] = line[i];
	guest();
	poweroff();
}

// Our arm64 guest: says what it finds in its device tree and processor, and ends
// as the word behind "how=" on its command line says. The MMU stays off.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define REG(t, a) (*(volatile t *)(a))

u64 call(u64 fn, u64 a, u64 b, u64 c);
extern void secondary(void);
extern char stack_second[];

// The console, found in the device tree.
static u64 uart;
static int pl011;

static void putc(char c) {
	if (pl011) {
		while (REG(u32, uart + 0x18) & 1 << 5)
			;
		REG(u32, uart) = c;
	} else {
		while (!(REG(u8, uart + 5) & 0x20))
			;
		REG(u8, uart) = c;
	}
}
static void puts(const char *s) {
	while (*s)
		putc(*s++);
}
static void puthex(u64 v) {
	puts("0x");
	int shift = 60;
	while (shift > 0 && !(v >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		putc("0123456789abcdef"[v >> shift & 15]);
}
static void poweroff(void) {
	call(0x84000008, 0, 0, 0);
	for (;;)
		;
}

void trap(u64 esr, u64 elr, u64 far) {
	puts("trap: esr ");
	puthex(esr);
	puts(" elr ");
	puthex(elr);
	puts(" far ");
	puthex(far);
	puts("\n");
	for (;;)
		__asm__ volatile("wfi");
}

static u32 be(const u8 *p) { return (u32)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }
static u64 be64(const u8 *p) { return (u64)be(p) << 32 | be(p + 4); }

// starts returns what follows w in s, or 0.
static const char *starts(const char *s, const char *w) {
	while (*w)
		if (*s++ != *w++)
			return 0;
	return s;
}
static int same(const char *a, const char *b) {
	const char *r = starts(a, b);
	return r && !*r;
}

// What the tree says.
static const char *cmdline = "";
static u64 seed, cpus, discs, initrd;
static const char *gic = "none";

// Kinds of device, in a table of addresses: a linked image has some.
static const char *const kinds[] = {"arm,pl011", "ns16550a", "virtio,mmio", "arm,cortex-a15-gic", "arm,gic-" "v3"};

static void readTree(const u8 *t) {
	const u8 *p = t + be(t + 8);
	const char *names = (const char *)t + be(t + 12), *compatible = "";
	u64 reg = 0;
	for (;; ) {
		u32 token = be(p);
		p += 4;
		switch (token) {
		case 1: {
			const char *name = (const char *)p;
			if (starts(name, "cpu@"))
				cpus++;
			while (*p++)
				;
			p = (const u8 *)(((u64)p + 3) & ~3ul);
			compatible = "", reg = 0;
			break;
		}
		case 3: {
			u32 n = be(p);
			const char *name = names + be(p + 4);
			const u8 *v = p + 8;
			p = v + ((n + 3) & ~3u);
			if (same(name, "compatible"))
				compatible = (const char *)v;
			if (same(name, "reg") && n >= 8)
				reg = be64(v);
			if (same(name, "bootargs"))
				cmdline = (const char *)v;
			if (same(name, "kaslr-seed"))
				seed = be64(v);
			if (same(name, "linux,initrd-start"))
				initrd = be64(v);
			if (!reg || !*compatible)
				break;
			if (!uart && (same(compatible, kinds[0]) || same(compatible, kinds[1])))
				uart = reg, pl011 = same(compatible, kinds[0]);
			if (same(compatible, kinds[2]) && REG(u32, reg + 8))
				discs++;
			if (same(compatible, kinds[3]) || same(compatible, kinds[4]))
				gic = compatible;
			reg = 0;
			break;
		}
		case 9:
			return;
		}
	}
}

static const char *option(const char *key) {
	for (const char *s = cmdline; *s; s++) {
		const char *v = starts(s, key);
		if (v && (s == cmdline || s[-1] == ' '))
			return v;
	}
	return 0;
}

static volatile int there;

void second(void) {
	there = 1;
	for (;;)
		__asm__ volatile("wfi");
}

void guest(const u8 *tree) {
	if (be(tree) != 0xd00dfeed)
		for (;;)
			;
	readTree(tree);
	puts("hello from arm64: ");
	puts(cmdline);
	puts("\ngic ");
	puts(gic);
	puts(" cpus ");
	puthex(cpus);
	puts(" virtio ");
	puthex(discs);
	puts(seed ? " seeded" : " no seed");
	if (initrd) {
		puts(" initrd ");
		for (const char *s = (const char *)initrd; *s >= ' '; s++)
			putc(*s);
	}
	u64 features, isar;
	__asm__("mrs %0, id_aa64pfr0_el1" : "=r"(features));
	__asm__("mrs %0, id_aa64isar1_el1" : "=r"(isar));
	puts(features >> 32 & 15 ? " sve" : "");
	puts(isar >> 4 & 0xff ? " pauth" : "");
	u64 stolen = call(0xc5000021, 0, 0, 0);
	puts((long)stolen > 0 ? " stolen-time" : "");
	puts("\n");
	const char *how = option("how=");
	if (!how || starts(how, "poweroff"))
		poweroff();
	if (starts(how, "reset"))
		call(0x84000009, 0, 0, 0);
	if (starts(how, "smp")) {
		call(0xc4000003, 1, (u64)secondary, (u64)stack_second);
		while (!there)
			;
		puts("second vCPU ok\n");
		poweroff();
	}
	if (starts(how, "hole")) { // nothing lives there
		puts("hole ");
		puthex(REG(u32, 0x3d000000));
		REG(u32, 0x3d000000) = 1;
		puts("\n");
		poweroff();
	}
	if (starts(how, "pair")) // an access to a device that the processor does not describe
		__asm__ volatile("ldp x0, x1, [%0]" ::"r"(0x3d000000ul) : "x0", "x1");
	if (starts(how, "trap"))
		__asm__ volatile("brk #7");
	if (starts(how, "echo")) // until the end of a line
		for (u8 c = 0; c != '\n';) {
			if (pl011 ? REG(u32, uart + 0x18) & 1 << 4 : !(REG(u8, uart + 5) & 1))
				continue;
			c = pl011 ? REG(u32, uart) : REG(u8, uart);
			putc(c);
			if (c == '\n')
				poweroff();
		}
	for (;;) // how=spin
		;
}

// exits: ends as the word behind "how=" on its command line says.
#include "guest.h"

void guest(void) {
	const char *how = option("how=");
	if (!how)
		panic("no how= on the command line");
	putc('>');
	if (word(how, "poweroff"))
		poweroff();
	if (word(how, "reset")) {
		while (inb(0x64) & 2)
			;
		outb(0x64, 0xfe);
	}
	const char *n = option("code=");
	if (word(how, "debug"))
		outb(0xf4, n ? number(&n) : 0);
	if (word(how, "debug501"))
		outw(0x501, n ? number(&n) : 0);
	if (word(how, "panic"))
		outb(0x505, 1);
	if (word(how, "triple")) {
		static const u16 none[5];
		__asm__ volatile("lidt %0; ud2" ::"m"(none));
	}
	if (word(how, "spin"))
		for (;;)
			__asm__ volatile("pause");
	if (word(how, "complete")) { // KVM's emulator knows none of these three
		u64 v;
		__asm__ volatile("movq %1,%%xmm0; paddq %%xmm0,%%xmm0; movq %%xmm0,%0" : "=r"(v) : "r"(21ul));
		puts(v == 42 ? "completed\n" : "wrong\n");
		poweroff();
	}
	if (word(how, "refused")) // EVEX vpaddd zmm0: on nobody's list
		__asm__ volatile(".byte 0x62,0xf1,0x7d,0x48,0xfe,0xc0");
	if (word(how, "echo")) // until the end of a line
		for (u8 c = 0; c != '\n';) {
			if (!(inb(COM1 + 5) & 1))
				continue;
			c = inb(COM1);
			putc(c);
			if (c == '\n')
				poweroff();
		}
	hang(); // "hlt", and whatever returned
}

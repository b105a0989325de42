// shstk: a Linux program that enables its shadow stack (the kernel's
// Documentation/arch/x86/shstk.rst) and then overwrites its own return address.
// It needs no C library. It prints what became of it.
#include "guest.h"

enum { WRITE = 1, SIGACTION = 13, ARCH_PRCTL = 158, EXIT = 231, SIGSEGV = 11, SA_SIGINFO = 4, SA_RESTORER = 0x4000000, ARCH_SHSTK_ENABLE = 0x5001 };

static inline __attribute__((always_inline)) long call(long n, long a, long b, long c, long d) {
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return n;
}

static void say(const char *what, int n) {
	char s[64];
	int i = 0, ten = 10;
	while (*what)
		s[i++] = *what++;
	if (n < 0) {
		s[i++] = '-';
		n = -n;
	}
	for (; ten <= n; ten *= 10)
		;
	for (ten /= 10; ten; ten /= 10)
		s[i++] = '0' + n / ten % 10;
	s[i++] = '\n';
	call(WRITE, 1, (long)s, i, 0);
}

__attribute__((used)) static void gadget(void) {
	say("gadget ran ", 1);
	call(EXIT, 0, 0, 0, 0);
}

static void handler(int sig, const int *info) {
	say("signal ", sig);
	say("code ", info[2]);
	call(EXIT, 0, 0, 0, 0);
}

__attribute__((used)) static void program(void) {
	struct {
		void (*handler)(int, const int *);
		u64 flags;
		void (*restorer)(void);
		u64 mask;
	} action = {handler, SA_SIGINFO | SA_RESTORER, gadget, 0};
	call(SIGACTION, SIGSEGV, (long)&action, 0, 8);
	long r = call(ARCH_PRCTL, ARCH_SHSTK_ENABLE, 1, 0, 0);
	say("shadow stack ", r);
	// A call to the next instruction would be no call to the shadow stack.
	__asm__ volatile("call 1f\n\tud2\n1: movq $gadget,(%%rsp)\n\tret" ::: "memory");
}

__asm__(".global _start\n_start: and $-16,%rsp\n\tcall program\n");

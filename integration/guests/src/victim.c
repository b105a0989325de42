// victim: the vulnerable program of every lecture on shadow stacks. With
// "attack=ret" a copy without a length check overwrites its return address,
// with "attack=jump" a function pointer; both lead into the middle of another
// function. "cet=" switches CET on first, "idt" installs exception handlers:
// without them a control-protection fault is a triple fault.
#include "cet.h"

// The function whose middle the attacker wants.
extern const char gadget[];
__asm__(".text\n.global safe_function, gadget\n.type safe_function,@function\n"
	"safe_function: endbr64\n\tmov $1,%eax\n\tret\n"
	".type gadget,@function\ngadget: and $-16,%rsp\n\tcall gadget_ran\n"
	".size gadget,.-gadget\n.size safe_function,.-safe_function\n");

__attribute__((used, noreturn)) void gadget_ran(void) {
	puts("gadget ran\n");
	poweroff();
}

// What the attacker sends: the same address, often enough.
static u64 packet[32];

static __attribute__((noinline)) void parse(u64 words) {
	volatile u64 name[4];
	for (u64 i = 0; i < words; i++)
		name[i] = packet[i]; // and nobody asks how many
	__asm__ volatile("" ::"r"(name) : "memory");
}

static __attribute__((noinline)) void greet(void) { puts("hello\n"); }

static struct {
	u64 name[4];
	void (*volatile done)(void);
} object = {.done = greet};

static __attribute__((noinline)) void receive(u64 words) {
	volatile u64 *name = object.name;
	for (u64 i = 0; i < words; i++)
		name[i] = packet[i];
	object.done();
}

void guest(void) {
	const char *attack = option("attack=");
	if (option("idt"))
		traps();
	cet_self();
	parse(4);
	receive(4);
	for (u32 i = 0; i < sizeof packet / 8; i++)
		packet[i] = (u64)gadget;
	puts("attack\n");
	if (attack && word(attack, "ret"))
		parse(24);
	if (attack && word(attack, "jump"))
		receive(5);
	puts("unharmed\n");
	poweroff();
}

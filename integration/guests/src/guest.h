// What our small guests share: ports, the console, the command line, interrupts.
// Freestanding 64-bit code on one vCPU, memory mapped one to one below 4 GiB.
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COM1 0x3f8

static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(p) : "memory"); }
static inline void outw(u16 p, u16 v) { __asm__ volatile("outw %0,%1" ::"a"(v), "Nd"(p) : "memory"); }
static inline void outl(u16 p, u32 v) { __asm__ volatile("outl %0,%1" ::"a"(v), "Nd"(p) : "memory"); }
static inline u8 inb(u16 p) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(p) : "memory"); return v; }
static inline u16 inw(u16 p) { u16 v; __asm__ volatile("inw %1,%0" : "=a"(v) : "Nd"(p) : "memory"); return v; }
static inline u32 inl(u16 p) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(p) : "memory"); return v; }

void putc(char c);
void puts(const char *s);
void putdec(u64 v);
void puthex(u64 v);

// option returns what follows key on the command line ("seed=" finds "seed=7"), or 0.
const char *option(const char *key);
// number reads a decimal or 0x number and moves *s behind it.
u64 number(const char **s);
// word reports whether s starts with w and w ends there.
int word(const char *s, const char *w);

extern char cmdline[2048];

void traps(void);           // load an IDT: exceptions end the guest, IRQs are counted
void irq_open(int irq);     // unmask one input of the PICs
extern void (*irq_hook)(int irq);
extern volatile u32 ticks;  // IRQ 0, 18.2 a second

void panic(const char *why) __attribute__((noreturn));
void poweroff(void) __attribute__((noreturn));
void hang(void) __attribute__((noreturn));

void *memset(void *d, int c, u64 n);
void *memcpy(void *d, const void *s, u64 n);

void guest(void); // each guest's own part
#endif

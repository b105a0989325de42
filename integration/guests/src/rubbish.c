// rubbish: a hostile guest. It fills virtqueues with rubbish, then pokes MMIO,
// PCI configuration space and every port at random, and powers off in order.
// "seed=N" picks the sequence, "rounds=N" how many a device.
//
// It spares itself only what would end the VM (or itself): the reset and exit
// ports, the local and I/O APIC pages, and descriptors over its own memory.
#include "virtio.h"

static u64 state = 88172645463325252;

static u64 rnd(void) {
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static u64 below(u64 n) { return rnd() % n; }

// The image lies between 1 and 2 MiB; every other guest address is fair.
#define OWN_END 0x200000

// width is a random number of random length: small values matter as much as big ones.
static u64 width(void) { return rnd() >> below(64); }

static u64 address(void) {
	switch (below(8)) {
	case 0:
		return width();
	case 1:
		return -width(); // wraps with any length
	case 2:
		return 0xd0000000 + below(0x100000); // devices
	case 3:
		return 0x4000000 - below(64); // where 64 MiB of RAM end
	default:
		return OWN_END + below(0x2000000);
	}
}

static u32 length(void) {
	switch (below(4)) {
	case 0:
		return 0;
	case 1:
		return width();
	default:
		return below(2048);
	}
}

// spared reports whether [a, a+n) touches our own memory, wrapping or not.
static int spared(u64 a, u64 n) { return a < OWN_END && (a >= 0x100000 || a + n > 0x100000); }

static void fill(volatile struct desc *d, u32 n) {
	for (u32 i = 0; i < n; i++) {
		u64 a = address();
		u32 len = length();
		if (spared(a, len) || a + len < a)
			len = a + len < a && below(2) ? len : 0;
		if (a + len < a && a + len > 0x100000)
			len = 16;
		d[i] = (struct desc){a, len, below(16) ? below(8) : rnd(), below(4) ? below(n) : rnd()};
	}
}

static u8 rings[3 * RING_BYTES] __attribute__((aligned(4096)));

static void setup(struct virtio *v) {
	virtio_set_status(v, 0);
	virtio_set_status(v, 3);
	if (v->pci) {
		outl(v->pci + 4, inl(v->pci) & rnd());
	} else {
		volatile u32 *w = (u32 *)v->mmio;
		for (u32 i = 0; i < 2; i++) {
			w[0x14 / 4] = i;
			u32 f = w[0x10 / 4] & (below(2) ? ~0u : rnd());
			w[0x24 / 4] = i;
			w[0x20 / 4] = i ? f | 1 : f;
		}
		virtio_set_status(v, 11);
	}
	for (u32 i = 0; i < 3; i++) {
		u8 *r = rings + i * RING_BYTES;
		struct queue *q = &v->q[i];
		if (v->pci) {
			outw(v->pci + 14, i);
			q->size = inw(v->pci + 12);
		} else {
			volatile u32 *w = (u32 *)v->mmio;
			w[0x30 / 4] = i;
			q->size = w[0x34 / 4] > 64 ? 64 : w[0x34 / 4];
			w[0x38 / 4] = below(8) ? q->size : rnd();
		}
		if (q->size > 1024)
			q->size = 0;
		if (!q->size)
			continue;
		q->desc = (void *)r;
		q->avail = (void *)(r + 16ul * q->size);
		q->used = (void *)(r + ((18ul * q->size + 6 + 4095) & ~4095ul));
		q->avail[0] = below(2);
		q->avail[1] = 0;
		if (v->pci) {
			u64 a = below(8) ? (u64)r : address();
			if (a != (u64)r && spared(a, RING_BYTES))
				a = 0;
			outl(v->pci + 8, a >> 12);
			continue;
		}
		volatile u32 *w = (u32 *)v->mmio;
		u64 at[3] = {(u64)q->desc, (u64)q->avail, (u64)q->used};
		for (u32 k = 0; k < 3; k++) {
			u64 a = below(16) ? at[k] : address();
			if (a != at[k] && spared(a, RING_BYTES))
				a = -1ul;
			w[(0x80 + 16 * k) / 4] = a;
			w[(0x84 + 16 * k) / 4] = a >> 32;
		}
		w[0x44 / 4] = 1;
	}
	virtio_set_status(v, v->pci ? 7 : 15);
}

static void queues(struct virtio *v, u64 rounds) {
	static struct desc indirect[64];
	for (u64 n = 0; n < rounds; n++) {
		if (n % 8 == 0)
			setup(v);
		u32 i = below(3);
		struct queue *q = &v->q[i];
		if (!q->size)
			continue;
		u32 some = q->size < 16 ? q->size : 16;
		fill(q->desc, some);
		switch (below(4)) {
		case 0: // a plain request with a rubbish head: what most drivers' bugs look like
			q->desc[0] = (struct desc){(u64)indirect, 16 + below(64), NEXT, 1};
			q->desc[1] = (struct desc){OWN_END + below(0x100000), 512, NEXT | (below(2) ? WRITE : 0), 2};
			q->desc[2] = (struct desc){OWN_END, 1 + below(4), WRITE, 0};
			for (u32 k = 0; k < sizeof indirect / 8 && k < 16; k++)
				((u64 *)indirect)[k] = width();
			break;
		case 1: // an indirect table, itself rubbish, its length a lie now and then
			fill(indirect, 64);
			q->desc[0] = (struct desc){(u64)indirect, below(2) ? 16 * below(65) : width(), INDIRECT | below(4), below(4)};
			break;
		case 2: // a loop
			q->desc[below(some)].flags = NEXT;
			q->desc[0] = (struct desc){OWN_END, 8, NEXT | WRITE * below(2), 1};
			q->desc[1] = (struct desc){OWN_END, 8, NEXT | WRITE * below(2), 0};
			break;
		}
		u16 idx = q->avail[1];
		u32 add = below(8) ? 1 + below(some) : rnd();
		for (u32 k = 0; k < some; k++)
			q->avail[2 + (u16)(idx + k) % q->size] = below(4) ? 0 : below(2) ? below(some) : rnd();
		q->avail[1] = idx + add;
		virtio_kick(v, i);
		if (below(4) == 0)
			virtio_kick(v, rnd());
		if (v->pci)
			inb(v->pci + 19);
		else
			((volatile u32 *)v->mmio)[0x64 / 4] = rnd();
	}
	virtio_set_status(v, 0);
}

static void mmio(u64 base, u64 size, u32 n) {
	while (n--) {
		u64 a = base + below(size), w = below(4);
		a &= ~((1ul << w) - 1);
		if (below(16) == 0)
			a++; // across the natural border
		if (a + 8 >= base + size)
			continue;
		switch (w + 4 * below(2)) {
		case 0: (void)*(volatile u8 *)a; break;
		case 1: (void)*(volatile u16 *)a; break;
		case 2: (void)*(volatile u32 *)a; break;
		case 3: (void)*(volatile u64 *)a; break;
		case 4: *(volatile u8 *)a = width(); break;
		case 5: *(volatile u16 *)a = width(); break;
		case 6: *(volatile u32 *)a = below(4) ? below(20) : width(); break;
		case 7: *(volatile u64 *)a = width(); break;
		}
	}
}

// ends reports whether an access of n bytes at p touches a port that ends the VM.
static int ends(u32 p, u32 n) {
	static const u16 range[][2] = {{0x64, 0x64}, {0x92, 0x92}, {0xf4, 0xf7}, {0x501, 0x505}, {0x600, 0x607}, {0xcf9, 0xcf9}};
	for (u32 i = 0; i < sizeof range / sizeof range[0]; i++)
		if (p + n > range[i][0] && p <= range[i][1])
			return !(p == 0xcf8 && n == 4);
	return 0;
}

// ports writes to every port that devices like, and to every fourth of the
// others: four seeds in a row reach them all.
static void ports(u64 seed) {
	for (u32 p = 0; p < 0x10000; p++) {
		u32 w = below(3);
		if (p >= 0xd00 && p >> 12 != 0xc && (p ^ seed) & 3)
			continue;
		if (p + (1 << w) > 0x10000 || ends(p, 1 << w))
			continue;
		switch (w + 3 * !below(4)) {
		case 0: outb(p, rnd()); break;
		case 1: outw(p, rnd()); break;
		case 2: outl(p, rnd()); break;
		case 3: inb(p); break;
		case 4: inw(p); break;
		case 5: inl(p); break;
		}
	}
}

static void pci(u32 n) {
	u32 slots[32], k = 0;
	for (u32 bdf = 0x80000000; bdf < 0x80010000; bdf += 0x800)
		if (pci_read(bdf, 0) != ~0u)
			slots[k++] = bdf;
	while (n-- && k) {
		u32 reg = below(256) & ~3;
		outl(0xcf8, slots[below(k)] | reg | (below(16) ? 0 : rnd()));
		u16 p = 0xcfc + below(4);
		switch (below(6)) {
		case 0: inb(p); break;
		case 1: inw(0xcfc + 2 * below(2)); break;
		case 2: inl(0xcfc); break;
		case 3: outb(p, rnd()); break;
		case 4: outw(0xcfc + 2 * below(2), rnd()); break;
		case 5: outl(0xcfc, reg >= 0x10 && reg < 0x28 && below(2) ? ~0u : rnd()); break;
		}
	}
}

static void stage(const char *s) {
	puts(s);
	puts("\n");
}

void guest(void) {
	const char *s = option("seed=");
	u64 seed = s ? number(&s) : 1, rounds = 200;
	state ^= seed * 0x9e3779b97f4a7c15;
	if ((s = option("rounds=")))
		rounds = number(&s);
	virtio_find();
	puts("devices: ");
	putdec(ndevices);
	puts("\n");
	stage("queues");
	for (int i = 0; i < ndevices; i++)
		queues(&devices[i], rounds);
	stage("mmio");
	for (int i = 0; i < ndevices; i++) {
		if (devices[i].mmio)
			mmio(devices[i].mmio, 0x1000, rounds);
		for (u32 bar = 0x10; devices[i].pci && bar < 0x28; bar += 4) {
			u32 b = pci_read(devices[i].bdf, bar);
			if (!(b & 1) && b >= 0x80000000)
				mmio(b & ~15, 0x4000, rounds);
			else if (b & 1)
				for (u32 n = 0; n < rounds; n++)
					outl((b & ~3) + below(0x40), width());
		}
	}
	mmio(0xd0000000, 0x10000, rounds);
	mmio(0xfec01000, 0x100000, rounds); // behind the I/O APIC
	mmio(0xfed00000, 0x100000, rounds);
	mmio(0xfee01000, 0x100000, rounds);
	mmio(0xa0000, 0x20000, rounds);
	stage("pci");
	pci(rounds * 10);
	stage("ports");
	ports(seed);
	for (u32 bdf = 0x80000000; bdf < 0x80010000; bdf += 0x800)
		if (pci_read(bdf, 0) != ~0u)
			pci_write(bdf, 4, 0); // no BAR may hide the ports below
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 4, 0);
	puts("\nrubbish: survived seed ");
	putdec(seed);
	puts("\n");
}

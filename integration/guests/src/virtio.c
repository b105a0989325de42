#include "virtio.h"

struct virtio devices[DEVICES];
int ndevices;

static inline u32 mr(struct virtio *v, u32 reg) { return *(volatile u32 *)(v->mmio + reg); }
static inline void mw(struct virtio *v, u32 reg, u32 x) { *(volatile u32 *)(v->mmio + reg) = x; }

u32 pci_read(u32 bdf, u32 reg) {
	outl(0xcf8, bdf | reg);
	return inl(0xcfc);
}

void pci_write(u32 bdf, u32 reg, u32 x) {
	outl(0xcf8, bdf | reg);
	outl(0xcfc, x);
}

static void irq_seen(int irq) {
	for (int i = 0; i < ndevices; i++) {
		struct virtio *v = &devices[i];
		if (v->irq != irq)
			continue;
		if (v->pci)
			inb(v->pci + 19); // reading the ISR clears it
		else
			mw(v, 0x64, mr(v, 0x60));
	}
}

void virtio_find(void) {
	irq_hook = irq_seen;
	outl(0xcf8, 0x80000000);
	if (inl(0xcf8) == 0x80000000)
		for (u32 bdf = 0x80000000; bdf < 0x80010000 && ndevices < DEVICES; bdf += 0x800) {
			u32 id = pci_read(bdf, 0);
			if ((id & 0xffff) != 0x1af4 || id >> 16 < 0x1000 || id >> 16 > 0x103f)
				continue;
			struct virtio *v = &devices[ndevices++];
			v->bdf = bdf;
			v->type = pci_read(bdf, 0x2c) >> 16;
			v->pci = pci_read(bdf, 0x10) & ~3;
			v->irq = pci_read(bdf, 0x3c) & 0xff;
			pci_write(bdf, 4, 7);
		}
	static const char key[] = "virtio_mmio.device=";
	for (const char *s = option(key); s && *s && ndevices < DEVICES;) {
		number(&s);
		while (*s && *s != '@')
			s++;
		if (*s)
			s++;
		struct virtio *v = &devices[ndevices];
		v->mmio = number(&s);
		if (*s == ':')
			s++;
		v->irq = number(&s);
		v->type = mr(v, 8);
		if (mr(v, 0) == 0x74726976 && mr(v, 4) == 2 && v->type)
			ndevices++;
		// The next one, if any.
		const char *k;
		do {
			while (*s && *s != ' ')
				s++;
			while (*s == ' ')
				s++;
			const char *a = s;
			for (k = key; *k && *a == *k; k++)
				a++;
			if (!*k) {
				s = a;
				break;
			}
		} while (*s);
	}
}

u32 virtio_status(struct virtio *v) { return v->pci ? inb(v->pci + 18) : mr(v, 0x70); }

void virtio_set_status(struct virtio *v, u32 s) {
	if (v->pci)
		outb(v->pci + 18, s);
	else
		mw(v, 0x70, s);
}

u32 virtio_config(struct virtio *v, u32 offset) {
	return v->pci ? inl(v->pci + 20 + offset) : mr(v, 0x100 + offset);
}

void virtio_kick(struct virtio *v, int q) {
	if (v->pci)
		outw(v->pci + 16, q);
	else
		mw(v, 0x50, q);
}

static void mw64(struct virtio *v, u32 reg, u64 x) {
	mw(v, reg, x);
	mw(v, reg + 4, x >> 32);
}

void virtio_start(struct virtio *v, u64 want, u8 *rings, int n) {
	virtio_set_status(v, 0);
	virtio_set_status(v, 1);
	virtio_set_status(v, 3);
	if (v->pci) {
		v->features = inl(v->pci) & (u32)want;
		outl(v->pci + 4, v->features);
	} else {
		mw(v, 0x14, 0);
		v->features = mr(v, 0x10);
		mw(v, 0x14, 1);
		v->features |= (u64)mr(v, 0x10) << 32;
		v->features &= want | 1ul << 32;
		mw(v, 0x24, 0);
		mw(v, 0x20, v->features);
		mw(v, 0x24, 1);
		mw(v, 0x20, v->features >> 32);
		virtio_set_status(v, 11);
		if (!(virtio_status(v) & 8))
			panic("virtio: features refused");
	}
	for (int i = 0; i < n; i++, rings += RING_BYTES) {
		struct queue *q = &v->q[i];
		if (v->pci) {
			outw(v->pci + 14, i);
			q->size = inw(v->pci + 12); // the device's word (0.9.5, 2.1.2)
		} else {
			mw(v, 0x30, i);
			q->size = mr(v, 0x34);
			if (q->size > 128)
				q->size = 128;
		}
		if (!q->size || q->size > 1024)
			panic("virtio: bad queue size");
		u64 used = (18ul * q->size + 6 + 4095) & ~4095ul;
		memset(rings, 0, used + 8 * q->size + 6);
		q->seen = 0;
		q->desc = (void *)rings;
		q->avail = (void *)(rings + 16ul * q->size);
		q->used = (void *)(rings + used);
		if (v->pci) {
			outl(v->pci + 8, (u64)rings >> 12);
			continue;
		}
		mw(v, 0x38, q->size);
		mw64(v, 0x80, (u64)q->desc);
		mw64(v, 0x90, (u64)q->avail);
		mw64(v, 0xa0, (u64)q->used);
		mw(v, 0x44, 1);
	}
	irq_open(v->irq);
	if (v->irq > 7)
		irq_open(2);
	virtio_set_status(v, v->pci ? 7 : 15);
}

void virtio_add(struct virtio *v, int i, u16 head) {
	struct queue *q = &v->q[i];
	u16 idx = q->avail[1];
	q->avail[2 + idx % q->size] = head;
	__asm__ volatile("" ::: "memory");
	q->avail[1] = idx + 1;
	__asm__ volatile("mfence" ::: "memory");
	virtio_kick(v, i);
}

long virtio_wait(struct virtio *v, int i, u32 *head) {
	struct queue *q = &v->q[i];
	u32 end = ticks + 91;
	for (;;) {
		__asm__ volatile("cli");
		if (q->used[1] != q->seen) {
			volatile u32 *e = (volatile u32 *)(q->used + 2) + 2 * (q->seen++ % q->size);
			__asm__ volatile("sti");
			*head = e[0];
			return e[1];
		}
		if ((int)(ticks - end) >= 0)
			return -1;
		__asm__ volatile("sti; hlt" ::: "memory"); // sti takes effect behind hlt: nothing is missed
	}
}

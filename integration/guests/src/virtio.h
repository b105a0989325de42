// A virtio driver of a few lines: legacy PCI (virtio 0.9.5: ports in BAR 0, INTx)
// and MMIO version 2 (virtio 1.3, 4.2) named on the command line.
#ifndef VIRTIO_H
#define VIRTIO_H
#include "guest.h"

enum { NET = 1, BLOCK = 2, CONSOLE = 3, RNG = 4, BALLOON = 5, P9 = 9, VSOCK = 19 };

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 }; // descriptor flags

struct desc {
	u64 addr;
	u32 len;
	u16 flags, next;
};

#define RING_BYTES 32768 // room for a legacy ring of up to 1024 entries

struct queue {
	u16 size, seen; // seen: used entries taken
	volatile struct desc *desc;
	volatile u16 *avail; // flags, idx, ring[size]
	volatile u16 *used;  // flags, idx, then {u32 id, u32 len}[size]
};

struct virtio {
	u16 pci;  // port of BAR 0, or 0
	u64 mmio; // address of the window, or 0
	u32 bdf;  // PCI configuration address
	int irq;
	u32 type;
	u64 features; // as negotiated
	struct queue q[3];
};

#define DEVICES 12
extern struct virtio devices[DEVICES];
extern int ndevices;

u32 pci_read(u32 bdf, u32 reg);
void pci_write(u32 bdf, u32 reg, u32 v);

void virtio_find(void); // fills devices: PCI first, then the command line's
// virtio_start resets the device, takes the wanted features that are offered
// and sets up n queues on rings (n * RING_BYTES, page-aligned).
void virtio_start(struct virtio *v, u64 want, u8 *rings, int n);
u32 virtio_status(struct virtio *v);
void virtio_set_status(struct virtio *v, u32 s);
u32 virtio_config(struct virtio *v, u32 offset); // 4 bytes of configuration space
void virtio_kick(struct virtio *v, int q);
// virtio_add offers the n descriptors that start at head.
void virtio_add(struct virtio *v, int q, u16 head);
// virtio_wait sleeps until the queue has a used entry or some 5 s went by, and
// returns that entry's length, or -1. *head gets its descriptor.
long virtio_wait(struct virtio *v, int q, u32 *head);
#endif

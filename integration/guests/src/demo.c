// demo: a unikernel that prints, reads and writes a disk, asks the network for
// an address, and powers off.
#include "virtio.h"

static u8 rings[3 * RING_BYTES] __attribute__((aligned(4096)));

static u32 disk(struct virtio *v) {
	static struct {
		u32 type, reserved;
		u64 sector;
	} head;
	static char sector[512];
	static volatile u8 status;

	virtio_start(v, 1 << 5, rings, 1);
	puts("disk: ");
	putdec(virtio_config(v, 0));
	puts(" sectors");
	if (v->features & 1 << 5)
		puts(", read-only");
	for (int write = 0; write < ((v->features & 1 << 5) ? 1 : 2); write++) {
		volatile struct desc *d = v->q[0].desc;
		u32 got;
		head.type = write;
		head.sector = write;
		status = 0xff;
		if (write) {
			memset(sector, 0, 512);
			memcpy(sector, "written by the demo guest\n", 26);
		}
		d[0] = (struct desc){(u64)&head, 16, NEXT, 1};
		d[1] = (struct desc){(u64)sector, 512, NEXT | (write ? 0 : WRITE), 2};
		d[2] = (struct desc){(u64)&status, 1, WRITE, 0};
		virtio_add(v, 0, 0);
		if (virtio_wait(v, 0, &got) < 0)
			panic("the disk does not answer");
		if (status) {
			puts(": status ");
			putdec(status);
			puts("\n");
			panic("disk error");
		}
		if (write) {
			puts("\", wrote sector 1");
			continue;
		}
		puts(", sector 0 starts \"");
		for (int i = 0; i < 24 && sector[i] >= ' ' && sector[i] <= '~'; i++)
			putc(sector[i]);
	}
	if (v->features & 1 << 5)
		puts("\"");
	puts("\n");
	return 0;
}

static u32 sum(const u8 *p, u32 n) {
	u32 s = 0;
	for (u32 i = 0; i < n; i += 2)
		s += p[i] << 8 | p[i + 1];
	return s;
}

static void address(const u8 *p) {
	for (int i = 0; i < 4; i++) {
		if (i)
			putc('.');
		putdec(p[i]);
	}
}

// net sends one DHCP DISCOVER (RFC 2131) and prints the first OFFER.
static void net(struct virtio *v) {
	enum { BUFFERS = 8, ETH = 14, IP = 20, UDP = 8, BOOTP = 240 };
	static u8 rx[BUFFERS][2048], out[12 + ETH + IP + UDP + BOOTP + 64];
	u8 mac[8];

	virtio_start(v, 1 << 5, rings, 2);
	u32 header = v->mmio ? 12 : 10; // 1.3, 5.1.6: num_buffers only in the modern interface
	for (int i = 0; i < BUFFERS; i++) {
		v->q[0].desc[i] = (struct desc){(u64)rx[i], sizeof rx[i], WRITE, 0};
		virtio_add(v, 0, i);
	}
	*(u32 *)mac = virtio_config(v, 0);
	*(u32 *)(mac + 4) = virtio_config(v, 4);
	puts("net: ");
	for (int i = 0; i < 6; i++) {
		if (i)
			putc(':');
		putc("0123456789abcdef"[mac[i] >> 4]);
		putc("0123456789abcdef"[mac[i] & 15]);
	}

	u8 *e = out + header, *ip = e + ETH, *udp = ip + IP, *b = udp + UDP;
	static const u8 options[] = {99, 130, 83, 99, 53, 1, 1, 55, 2, 1, 3, 255};
	u32 udplen = UDP + 236 + sizeof options + 48, iplen = IP + udplen;
	memset(e, 0xff, 6);
	memcpy(e + 6, mac, 6);
	e[12] = 8;
	memcpy(ip, (const u8[]){0x45, 0, iplen >> 8, iplen, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}, IP);
	u32 s = sum(ip, IP);
	s = ~(s + (s >> 16));
	ip[10] = s >> 8;
	ip[11] = s;
	memcpy(udp, (const u8[]){0, 68, 0, 67, udplen >> 8, udplen, 0, 0}, UDP);
	memcpy(b, (const u8[]){1, 1, 6, 0, 'g', 'v', 'm', 'm', 0, 0, 0x80, 0}, 12);
	memcpy(b + 28, mac, 6);
	memcpy(b + 236, options, sizeof options);
	v->q[1].desc[0] = (struct desc){(u64)out, header + ETH + iplen, 0, 0};
	virtio_add(v, 1, 0);

	for (int frames = 0; frames < 64; frames++) {
		u32 i;
		long n = virtio_wait(v, 0, &i);
		if (n < 0)
			break;
		u8 *f = rx[i % BUFFERS] + header;
		if (n >= header + ETH + IP + UDP + BOOTP && f[12] == 8 && f[13] == 0 && f[23] == 17 && f[37] == 68 &&
		    f[42 + 4] == 'g' && f[42 + 7] == 'm') {
			puts(", offered ");
			address(f + 42 + 16);
			puts(" by ");
			address(f + 26);
			puts("\n");
			return;
		}
		virtio_add(v, 0, i);
	}
	puts(", nobody offers an address\n");
}

void guest(void) {
	puts("Hello from the gvmm demo guest.\ncommand line: ");
	puts(cmdline);
	puts("\n");
	traps();
	virtio_find();
	for (int i = 0; i < ndevices; i++) {
		struct virtio *v = &devices[i];
		puts("virtio device ");
		putdec(v->type);
		puts(v->pci ? " on PCI port " : " at ");
		puthex(v->pci ? v->pci : v->mmio);
		puts(", IRQ ");
		putdec(v->irq);
		puts("\n");
	}
	for (int i = 0; i < ndevices; i++) {
		if (devices[i].type == BLOCK)
			disk(&devices[i]);
		if (devices[i].type == NET)
			net(&devices[i]);
	}
	puts("Good night.\n");
	if (option("stay="))
		hang();
}

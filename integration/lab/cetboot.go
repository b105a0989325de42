package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// What boots in Bochs lies in memory before the first instruction, as one file,
// and an option ROM goes there instead of to a disk.
//
// Bochs loads such a file into the block of guest memory it starts in, and runs
// over that block's end into host memory that belongs to no block yet. It hands
// that memory out in the order blocks are first touched. So the two blocks that
// the BIOS touches are loaded with something first, and the ROM touches the
// others in order before it uses them.
const (
	romAt    = 0xd0000
	blockMiB = 8
	bootAt   = 2 * blockMiB << 20 // struct boot_params, command line, initramfs, kernel
	lineAt   = bootAt + 0x1000
	initrdAt = bootAt + 0x2000
	topAt    = (cetMiB - blockMiB) << 20
	acpiSize = 1 << 20 // at the end of memory: the BIOS keeps its tables there
)

// bootFiles writes what boots (Linux's Documentation/arch/x86/boot.rst, "32-bit
// Boot Protocol") and the option ROM into dir.
func bootFiles(dir, image, initrd, line string) error {
	b, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	if len(b) < 0x1000 || string(b[0x202:0x206]) != "HdrS" {
		return fmt.Errorf("kernel %s: no bzImage", image)
	}
	files, err := os.ReadFile(initrd)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	p := make([]byte, initrdAt-bootAt)
	copy(p[0x1f1:], b[0x1f1:0x202+int(b[0x201])])
	p[0x210] = 0xff // type_of_loader: none of the known ones
	le.PutUint16(p[0x1fa:], 0xffff)
	le.PutUint32(p[0x218:], initrdAt)
	le.PutUint32(p[0x21c:], uint32(len(files)))
	le.PutUint32(p[0x228:], lineAt)
	const ram = cetMiB<<20 - acpiSize
	for i, r := range [][3]uint64{{0, 0x9fc00, 1}, {0x9fc00, 0x60400, 2}, {0x100000, ram - 0x100000, 1}, {ram, acpiSize, 3}} {
		e := p[0x2d0+20*i:]
		le.PutUint64(e, r[0])
		le.PutUint64(e[8:], r[1])
		le.PutUint32(e[16:], uint32(r[2]))
		p[0x1e8]++
	}
	copy(p[lineAt-bootAt:], line)
	p = append(p, files...)
	p = append(p, make([]byte, -len(p)&0x1fffff)...)
	kernelAt := bootAt + len(p)
	p = append(p, b[(int(b[0x1f1])+1)*512:]...)
	if bootAt+len(p)+256<<20 > topAt { // room for the kernel to unpack and to live
		return fmt.Errorf("initramfs %s: %d bytes are too many for the lab's memory", initrd, len(files))
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "boot"), p, 0o644),
		os.WriteFile(filepath.Join(dir, "rom"), bootROM(uint32(kernelAt), uint32(bootAt+len(p))), 0o644))
}

// bootROM is an option ROM that enters the kernel and never returns.
func bootROM(kernel, end uint32) []byte {
	const flat, gdtr, gdt = 0x20, 0x60, 0x70
	le := binary.LittleEndian
	rom := make([]byte, 512)
	copy(rom, []byte{
		0x55, 0xaa, 1, // magic, size
		0xfa,                                  // cli
		0x66, 0x2e, 0x0f, 0x01, 0x16, gdtr, 0, // lgdtl %cs:gdtr
		0x0f, 0x20, 0xc0, // mov %cr0,%eax
		0x0c, 1, // or $1,%al
		0x0f, 0x22, 0xc0, // mov %eax,%cr0
		0x66, 0xea, // ljmpl $0x10,$flat
	})
	le.PutUint32(rom[21:], romAt+flat)
	le.PutUint16(rom[25:], 0x10)
	copy(rom[flat:], []byte{
		0x66, 0xb8, 0x18, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov $0x18,%ax, then to ds, es, ss
		0xb8, 0, 0, 0, 0, // mov $bootAt,%eax
		0x8b, 0x18, // touch: mov (%eax),%ebx
		0x05, 0, 0, 0, 0, // add $block,%eax
		0x3d, 0, 0, 0, 0, // cmp $end,%eax
		0x72, 0xf2, // jb touch
		0x31, 0xed, 0x31, 0xff, 0x31, 0xdb, // xor ebp, edi, ebx
		0xbe, 0, 0, 0, 0, // mov $bootAt,%esi
		0xb8, 0, 0, 0, 0, 0xff, 0xe0, // mov $kernel,%eax; jmp *%eax
	})
	for at, v := range map[int]uint32{11: bootAt, 18: blockMiB << 20, 23: end, 36: bootAt, 41: kernel} {
		le.PutUint32(rom[flat+at:], v)
	}
	le.PutUint16(rom[gdtr:], 4*8-1)
	le.PutUint32(rom[gdtr+2:], romAt+gdt)
	le.PutUint64(rom[gdt+0x10:], 0x00cf9a000000ffff)
	le.PutUint64(rom[gdt+0x18:], 0x00cf92000000ffff)
	for _, v := range rom[:511] { // all bytes add up to 0
		rom[511] -= v
	}
	return rom
}

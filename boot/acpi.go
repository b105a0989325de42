package boot

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// ACPI 6.5. Numbers in comments are its sections.
const (
	acpiHeaderSize = 36 // 5.2.6
	acpiRSDPSize   = 36 // 5.2.5.3
	fadtFACS       = 36 // 5.2.9, pointers in the FADT
	fadtDSDT       = 40
	fadtXDSDT      = 140

	fadtResetSupported = 1 << 10 // 5.2.9, fixed feature flags
	fadtWBINVD         = 1 << 0
	fadtC1             = 1 << 2
	fadtNoSleepButton  = 1 << 5
	fadtNoFixedRTC     = 1 << 6
	fadtNoVGA          = 1 << 2 // 5.2.9.3, boot architecture flags
	levelHigh          = 0xd    // 5.2.12.5: level-triggered, active high
)

// acpiTables builds everything from the RSDP, at the start, down to the DSDT,
// to lie at acpiBase. The I/O APIC has the identity mapping of KVM's default
// routing, so only level-triggered inputs need overrides; a fixed power button
// is there, and power-off goes through PM1a_CNT with sleep type 0.
func acpiTables(o Options) ([]byte, error) {
	const facsSize, align = 64, 64
	blob := make([]byte, acpiRSDPSize)
	add := func(b []byte) uint64 {
		blob = append(blob, make([]byte, -len(blob)&(align-1))...)
		at := uint64(cmp.Or(o.acpi, acpiBase)) + uint64(len(blob))
		blob = append(blob, b...)
		return at
	}
	facs := make([]byte, facsSize)
	copy(facs, "FACS")
	put32(facs, 4, facsSize)
	facs[32] = 2 // version
	dsdt := add(dsdt(o))
	fadt := add(fadt(add(facs), dsdt))
	madt := add(madt(o))

	var rsdtBody, xsdtBody []byte
	for _, t := range []uint64{fadt, madt} {
		rsdtBody = append(rsdtBody, byte(t), byte(t>>8), byte(t>>16), byte(t>>24))
		xsdtBody = append(xsdtBody, byte(t), byte(t>>8), byte(t>>16), byte(t>>24), 0, 0, 0, 0)
	}
	rsdt := add(acpiTable("RSDT", 1, rsdtBody))
	xsdt := add(acpiTable("XSDT", 1, xsdtBody))

	copy(blob, "RSD PTR ")
	copy(blob[9:], "GVMM  ")
	blob[15] = 2 // revision: extended checksum and XSDT are there
	put32(blob, 16, uint32(rsdt))
	put32(blob, 20, acpiRSDPSize)
	put64(blob, 24, xsdt)
	blob[8] = checksum(blob[:20])
	blob[32] = checksum(blob[:acpiRSDPSize])
	if len(blob) > acpiRoom {
		return nil, fmt.Errorf("ACPI tables: %d bytes for %d vCPUs and %d devices, room for %d: use fewer", len(blob), o.CPUs, len(o.MMIO)+len(o.PCI), acpiRoom)
	}
	return blob, nil
}

// acpiTable puts the header (5.2.6) before a table's body.
func acpiTable(signature string, revision byte, body []byte) []byte {
	b := make([]byte, acpiHeaderSize, acpiHeaderSize+len(body))
	copy(b, signature)
	b[8] = revision
	copy(b[10:], "GVMM  GVMM    ") // OEM, OEM table
	put32(b, 24, 1)
	copy(b[28:], "GVMM") // creator
	put32(b, 32, 1)
	b = append(b, body...)
	put32(b, 4, uint32(len(b)))
	b[9] = checksum(b)
	return b
}

// checksum is the byte that makes the bytes of b sum to zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum -= c
	}
	return sum
}

// fadt is the Fixed ACPI Description Table (5.2.9). SMI_CMD is 0: the machine
// is always in ACPI mode. There is no PM timer, whose reads would exit.
func fadt(facs, dsdt uint64) []byte {
	b := make([]byte, 276) // offsets from the start of the table
	port := func(off int, address uint16, bits, access byte) {
		b[off], b[off+1], b[off+3] = 1, bits, access // system I/O
		put64(b, off+4, uint64(address))
	}
	put32(b, fadtFACS, uint32(facs))
	put32(b, fadtDSDT, uint32(dsdt))
	put16(b, 46, uint16(SCIIRQ))
	put32(b, 56, uint32(PM1aEvent))
	put32(b, 64, uint32(PM1aControl))
	b[88], b[89] = 4, 2      // lengths of both
	put16(b, 96, 0xfff)      // no C2
	put16(b, 98, 0xfff)      // no C3
	put16(b, 109, fadtNoVGA) // and no i8042: Linux would wait for its answers
	put32(b, 112, fadtWBINVD|fadtC1|fadtNoSleepButton|fadtNoFixedRTC|fadtResetSupported)
	port(116, ResetPort, 8, 1)
	b[128] = 0xfe // what resets
	b[131] = 5    // minor version
	put64(b, fadtXDSDT, dsdt)
	port(148, PM1aEvent, 32, 2)
	port(172, PM1aControl, 16, 2)
	copy(b[268:], "gvmm")
	return acpiTable("FACP", 6, b[acpiHeaderSize:])
}

// madt is the Multiple APIC Description Table (5.2.12): APIC ids count from 0.
func madt(o Options) []byte {
	b := make([]byte, 8)
	put32(b, 0, uint32(LAPICBase))
	put32(b, 4, 1) // the machine also has two 8259
	for i := range o.CPUs {
		b = append(b, 0, 8, byte(i), byte(i), 1, 0, 0, 0) // enabled
	}
	ioapic := []byte{1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	put32(ioapic, 4, uint32(IOAPICBase))
	b = append(b, ioapic...)
	level := []uint32{SCIIRQ}
	for _, d := range o.PCI {
		if d.IRQ < 16 {
			level = append(level, d.IRQ)
		}
	}
	slices.Sort(level)
	for _, irq := range slices.Compact(level) {
		b = append(b, 2, 10, 0, byte(irq), byte(irq), 0, 0, 0, levelHigh, 0)
	}
	b = append(b, 4, 6, 0xff, 0, 0, 1) // LINT1 of every processor is NMI
	return acpiTable("APIC", 5, b)
}

// dsdt describes the devices that a guest cannot find by itself.
func dsdt(o Options) []byte {
	devices := [][]byte{
		amlDevice("COM1", amlDefine("_HID", amlEISAID("PNP0501")), amlDefine("_UID", amlInteger(1)),
			amlResources(resPorts(COM1Port, 8), resISAIRQ(COM1IRQ))),
		amlDevice("RTC_", amlDefine("_HID", amlEISAID("PNP0B00")),
			amlResources(resPorts(RTCPort, 2), resISAIRQ(RTCIRQ))),
		amlDevice("PVPN", amlDefine("_HID", amlString("QEMU0001")), amlResources(resPorts(PvpanicPort, 1))),
	}
	for i, d := range o.MMIO {
		devices = append(devices, amlDevice(fmt.Sprintf("VM%02X", i&0xff),
			amlDefine("_HID", amlString("LNRO0005")), // virtio-mmio (virtio 1.3, 4.2.1)
			amlDefine("_UID", amlInteger(uint64(i))),
			amlDefine("_CCA", amlInteger(1)), // DMA is coherent
			amlResources(resMemory(uint32(d.Base), uint32(d.Size)), resEdgeIRQ(d.IRQ))))
	}
	if o.Machine == MachinePC {
		devices = append(devices, pciHost(o))
	}
	off := amlDefine(`_S5_`, amlPackage(amlInteger(0), amlInteger(0), amlInteger(0), amlInteger(0)))
	return acpiTable("DSDT", 2, bytes.Join([][]byte{amlScope(`\_SB_`, devices...), off}, nil))
}

// pciHost is the host bridge on ports 0xcf8 to 0xcff with its one bus. The
// interrupts are hard-wired (6.2.13): no link devices.
func pciHost(o Options) []byte {
	var routes [][]byte
	for _, d := range o.PCI {
		routes = append(routes, amlPackage(amlInteger(uint64(d.Slot)<<16|0xffff),
			amlInteger(0), amlInteger(0), amlInteger(uint64(d.IRQ))))
	}
	memory, size := uint32(PCIMemBase), uint32(PCIMemSize)
	if o.firmware { // places the devices anew, from 2 GiB or the end of RAM on
		memory = uint32(max(1<<31, min(o.Memory, uint64(RAMHole))))
		size = uint32(IOAPICBase) - memory
	}
	return amlDevice("PCI0",
		amlDefine("_HID", amlEISAID("PNP0A03")),
		amlDefine("_UID", amlInteger(0)),
		amlDefine("_BBN", amlInteger(0)),
		amlResources(
			resWindow(resSpaceBus, 0, 1),
			resPorts(PCIPort, 8),
			resWindow(resSpacePorts, uint32(PCIIOBase), PCIIOSize),
			resWindow(resSpaceMemory, memory, size)),
		amlDefine("_PRT", amlPackage(routes...)))
}

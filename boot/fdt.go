package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/u-root/u-root/pkg/dt"

	"github.com/gvmm/gvmm/vmm/memory"
)

// Cells of device trees (Linux Documentation/devicetree/bindings, and
// include/dt-bindings/interrupt-controller).
const (
	phandleGIC   = 1
	phandleMSI   = 2
	phandleClock = 3

	irqSPI, irqPPI                     = 0, 1
	irqEdge, irqLevelHigh, irqLevelLow = 1, 4, 8

	pciPortSpace, pciMemorySpace = 1 << 24, 2 << 24
	pciSlotMask                  = 0x1f << 11

	uartClock = 1843200  // Hz, of an ns16550
	apbClock  = 24000000 // of PrimeCells
)

// deviceTree describes the machine to the guest. What is in it, and in which
// order, is kvmtool's (arm/fdt.c), which suits the other machines too.
func (p *Plan) deviceTree(o *Options, initrd memory.Range) []byte {
	m, a := p.Platform, &o.ARM64
	chosen := node("chosen")
	if p.Cmdline != "" {
		add(chosen, text("bootargs", p.Cmdline))
	}
	add(chosen, dt.PropertyU64("kaslr-seed", a.KASLRSeed), text("stdout-path", "serial0"))
	if initrd.Size > 0 {
		add(chosen, dt.PropertyU64("linux,initrd-start", uint64(initrd.Base)), dt.PropertyU64("linux,initrd-end", uint64(initrd.End())))
	}
	if a.RNGSeed != nil {
		add(chosen, dt.Property{Name: "rng-seed", Value: a.RNGSeed})
	}
	cpus := node("cpus", cells("#address-cells", 1), cells("#size-cells", 0))
	for i := range o.CPUs {
		cpu := node(fmt.Sprintf("cpu@%x", MPIDR(i)), text("device_type", "cpu"), text("compatible", "arm,arm-v8"))
		if o.CPUs > 1 {
			add(cpu, text("enable-method", "psci"))
		}
		add(cpu, cells("reg", uint32(MPIDR(i))))
		cpus.Children = append(cpus.Children, cpu)
	}
	// With GICv2 a private interrupt names the vCPUs it goes to.
	var mask uint32
	if m.GIC.Version == 2 {
		mask = (1<<o.CPUs - 1) << 8
	}
	timer := cells("interrupts")
	for _, irq := range []uint32{13, 14, 11, 10} {
		timer.Value = append(timer.Value, cells("", irqPPI, irq, mask|irqLevelLow).Value...)
	}
	nodes := []*dt.Node{
		chosen,
		node("memory", text("device_type", "memory"), regs(p.RAM...)),
		cpus,
		m.GIC.node(),
		node("timer", text("compatible", "arm,armv8-timer", "arm,armv7-timer"), timer, text("always-on")),
	}
	if m.PMU {
		nodes = append(nodes, node("pmu", text("compatible", "arm,armv8-pmuv3"), cells("interrupts", irqPPI, PMUInterrupt-16, mask|irqLevelHigh)))
	}
	nodes = append(nodes, m.nodes()...)
	method := "hvc"
	if m.SMC {
		method = "smc"
	}
	nodes = append(nodes,
		node("psci", text("compatible", "arm,psci-0.2", "arm,psci"), text("method", method),
			cells("cpu_suspend", 0xc4000001), cells("cpu_off", 0x84000002), cells("cpu_on", 0xc4000003), cells("migrate", 0xc4000005)),
		node("aliases", text("serial0", "/"+m.uartName(0))))
	root := node("", cells("interrupt-parent", phandleGIC), text("compatible", "linux,dummy-virt"), cells("#address-cells", 2), cells("#size-cells", 2))
	root.Children = nodes
	return flatten(root)
}

func (g *GIC) node() *dt.Node {
	compatible, second := "arm,gic-v3", g.Redist
	if g.Version == 2 {
		compatible, second = "arm,cortex-a15-gic", g.CPU
	}
	n := node("intc", text("compatible", compatible), cells("#interrupt-cells", 3), text("interrupt-controller"),
		regs(g.Dist, second), cells("phandle", phandleGIC), cells("#address-cells", 2), cells("#size-cells", 2))
	if g.ITS.Size > 0 {
		add(n, text("ranges"))
		n.Children = []*dt.Node{node("msic", text("compatible", "arm,gic-v3-its"), text("msi-controller"), cells("phandle", phandleMSI), regs(g.ITS))}
	}
	return n
}

func (m *Platform) uartName(i int) string {
	name := "pl011"
	if m.UART == NS16550 {
		name = "U6_16550A"
	}
	return fmt.Sprintf("%s@%x", name, uint64(m.UARTs[i].Base))
}

// nodes describes the devices.
func (m *Platform) nodes() (nodes []*dt.Node) {
	clocked := []dt.Property{cells("clocks", phandleClock, phandleClock), text("clock-names", "uartclk", "apb_pclk")}
	for i, u := range m.UARTs {
		trigger := uint32(irqLevelHigh)
		if u.Edge {
			trigger = irqEdge
		}
		kinds, clock := []string{m.UART}, []dt.Property{cells("clock-frequency", uartClock)}
		if m.UART == PL011 {
			kinds, clock = append(kinds, "arm,primecell"), clocked
		}
		n := node(m.uartName(i), text("compatible", kinds...), regs(u.Range), cells("interrupts", irqSPI, u.IRQ, trigger))
		add(n, clock...)
		nodes = append(nodes, n)
	}
	if m.RTCKind == PL031 {
		nodes = append(nodes,
			node(fmt.Sprintf("pl031@%x", uint64(m.RTC.Base)), text("compatible", PL031, "arm,primecell"), regs(m.RTC), cells("clocks", phandleClock), text("clock-names", "apb_pclk")),
			node("apb-pclk", text("compatible", "fixed-clock"), cells("#clock-cells", 0), cells("clock-frequency", apbClock), cells("phandle", phandleClock)))
	} else {
		nodes = append(nodes, node("rtc", text("compatible", m.RTCKind), regs(m.RTC)))
	}
	for _, d := range m.MMIO {
		nodes = append(nodes, node(fmt.Sprintf("virtio@%x", uint64(d.Base)), text("compatible", "virtio,mmio"),
			regs(memory.Range{Base: d.Base, Size: d.Size}), text("dma-coherent"), cells("interrupts", irqSPI, d.IRQ, irqEdge)))
	}
	if m.PCI != nil {
		nodes = append(nodes, m.PCI.node(m.GIC.ITS.Size > 0))
	}
	return nodes
}

func (h *PCIHost) node(msi bool) *dt.Node {
	window := func(space uint32, bus memory.GPA, r memory.Range) []byte {
		return append(cells("", space, uint32(bus>>32), uint32(bus)).Value, regs(r).Value...)
	}
	n := node("pci", text("device_type", "pci"), cells("#address-cells", 3), cells("#size-cells", 2), cells("#interrupt-cells", 1),
		text("compatible", "pci-host-ecam-generic"), text("dma-coherent"), cells("bus-range", 0, 0), regs(h.ECAM),
		dt.Property{Name: "ranges", Value: append(window(pciPortSpace, 0, h.Ports), window(pciMemorySpace, h.Memory.Base, h.Memory)...)})
	if msi {
		add(n, cells("msi-parent", phandleMSI))
	}
	routes := cells("interrupt-map") // slot and pin; controller, which has an address of two cells; interrupt
	for _, d := range h.Devices {
		routes.Value = append(routes.Value, cells("", uint32(d.Slot)<<11, 0, 0, 1, phandleGIC, 0, 0, irqSPI, d.IRQ, irqLevelHigh).Value...)
	}
	if add(n, routes); len(h.Devices) > 0 {
		add(n, cells("interrupt-map-mask", pciSlotMask, 0, 0, 7))
	}
	return n
}

func node(name string, p ...dt.Property) *dt.Node { return dt.NewNode(name, dt.WithProperty(p...)) }

func add(n *dt.Node, p ...dt.Property) { n.Properties = append(n.Properties, p...) }

// text is a property of strings, or without a value.
func text(name string, s ...string) dt.Property {
	p := dt.Property{Name: name}
	for _, v := range s {
		p.Value = append(append(p.Value, v...), 0)
	}
	return p
}

func cells(name string, v ...uint32) dt.Property {
	p := dt.Property{Name: name}
	for _, c := range v {
		p.Value = binary.BigEndian.AppendUint32(p.Value, c)
	}
	return p
}

func regs(ranges ...memory.Range) dt.Property {
	p := dt.Property{Name: "reg"}
	for _, r := range ranges {
		p.Value = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(p.Value, uint64(r.Base)), r.Size)
	}
	return p
}

// The flattened format (Devicetree Specification 0.4, chapter 5).
const (
	fdtMagic                                  = 0xd00dfeed
	fdtVersion, fdtCompatible                 = 17, 16
	fdtHeader, fdtReserve                     = 40, 16 // bytes; the list of reserved memory is empty
	fdtBeginNode, fdtEndNode, fdtProp, fdtEnd = 1, 2, 3, 9
)

// flatten writes a tree as libfdt's sequential writer does, to the byte: a
// kvmtool realm's measurement covers them. That packs the names of properties
// from the end of their block backwards, so that their offsets are known only
// at the end, and lets one be the tail of another.
func flatten(root *dt.Node) []byte {
	be := binary.BigEndian
	var tree, names []byte
	var places []int // in tree, of offsets that count from the end of names
	var write func(n *dt.Node)
	write = func(n *dt.Node) {
		tree = append(append(be.AppendUint32(tree, fdtBeginNode), n.Name...), 0)
		tree = append(tree, make([]byte, -len(tree)&3)...)
		for _, p := range n.Properties {
			name := append([]byte(p.Name), 0)
			off := bytes.Index(names, name)
			if off < 0 {
				names, off = append(name, names...), 0
			}
			tree = be.AppendUint32(be.AppendUint32(tree, fdtProp), uint32(len(p.Value)))
			places = append(places, len(tree))
			tree = append(be.AppendUint32(tree, uint32(len(names)-off)), p.Value...)
			tree = append(tree, make([]byte, -len(tree)&3)...)
		}
		for _, c := range n.Children {
			write(c)
		}
		tree = be.AppendUint32(tree, fdtEndNode)
	}
	write(root)
	tree = be.AppendUint32(tree, fdtEnd)
	for _, i := range places {
		be.PutUint32(tree[i:], uint32(len(names))-be.Uint32(tree[i:]))
	}
	const start = fdtHeader + fdtReserve
	end := uint32(start + len(tree))
	var b []byte
	for _, v := range []uint32{fdtMagic, end + uint32(len(names)), start, end, fdtHeader, fdtVersion, fdtCompatible, 0, uint32(len(names)), uint32(len(tree))} {
		b = be.AppendUint32(b, v)
	}
	return append(append(append(b, make([]byte, fdtReserve)...), tree...), names...)
}

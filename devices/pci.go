package devices

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// Offsets and bits in a function's configuration space (PCI Local Bus 3.0, 6.1, 6.2, 6.7).
const (
	pciVendor       = 0x00
	pciDevice       = 0x02
	pciCommand      = 0x04
	pciStatus       = 0x06
	pciRevision     = 0x08 // and the class in the three bytes behind it
	pciBAR0         = 0x10
	pciSubVendor    = 0x2c
	pciSubsystem    = 0x2e
	pciCapabilities = 0x34
	pciIRQLine      = 0x3c
	pciIRQPin       = 0x3d
	pciFirstCap     = 0x40

	pciCommandIO      = 1 << 0
	pciCommandMemory  = 1 << 1
	pciCommandMaster  = 1 << 2
	pciCommandINTxOff = 1 << 10

	pciStatusINTx         = 1 << 3
	pciStatusCapabilities = 1 << 4
)

// Where the functions' address ranges come from when the machine starts. The
// guest may move them; ACPI tells it these windows.
const (
	PCIPortBase   = 0xc000 // ports
	PCIPortSize   = 0x3000
	PCIMemoryBase = 0xe0000000 // 32-bit memory
	PCIMemorySize = 0x10000000

	pciConfigPort = 0xcf8
)

// PCISlots is the number of slots on the bus; slot 0 is the host bridge.
const PCISlots = 32

// PCI is bus 0 of the machine: its configuration space, by mechanism 1 (ports
// 0xcf8 to 0xcff) or mapped into memory, and one function a slot.
type PCI struct {
	// Reset serves byte accesses to port 0xcf9, the chipset's reset control
	// among the configuration ports; nil: there is none.
	Reset Handler

	ports, mmio *Bus

	mu         sync.Mutex
	address    uint32 // CONFIG_ADDRESS
	functions  [PCISlots]*PCIFunction
	portsAt    uint64 // where port 0 lies on ports
	freePorts  PCIWindow
	freeMemory PCIWindow
}

// PCIWindow is a range of addresses.
type PCIWindow struct{ Base, Size uint64 }

// PCIConfig describes a function.
type PCIConfig struct {
	Name                 string
	Vendor, Device       uint16
	SubVendor, Subsystem uint16
	Revision             uint8
	Class                uint32 // base class, subclass, interface: 24 bits
	// IRQ is the interrupt input its INTx pin is wired to, reported in
	// Interrupt Line; Line is that input. Line may be nil: no INTx.
	IRQ  uint8
	Line Line
	BARs []PCIBAR // at most 6
	// Capabilities are laid out from offset 0x40 in this order; the first byte
	// is the identifier, the second (next pointer) is filled in. Together they
	// have at most 192 bytes, each a multiple of 4.
	Capabilities []PCICapability
}

// PCIBAR is one address range of a function: ports, or non-prefetchable 32-bit memory.
type PCIBAR struct {
	Port    bool
	Size    uint32 // a power of two: ports 4 to 256, memory from 16 bytes
	Handler Handler
	// Attach, if set, is told when the range gets a place, Detach when it
	// leaves that place for another: notifications ([Machine.AttachKick]) go
	// along. They stay while the range is only switched off, as guests do for a
	// moment to find out its size: moving one costs KVM about ten milliseconds.
	Attach func(base uint64) error
	Detach func(base uint64)
}

// PCICapability is an entry of a function's capability list.
type PCICapability struct {
	Data     []byte
	Writable []byte // mask of the bits the guest may write; missing bytes are read-only
	// Read, if set, is called before an access reads from it, Written after
	// one wrote to it: with its contents, which they may change, and the
	// offset in it at which the access starts.
	Read, Written func(data []byte, at int)
}

// PCIFunction is a function on the bus.
type PCIFunction struct {
	bus      *PCI
	name     string
	space    [256]byte
	writable [256]byte // mask
	caps     []PCICapability
	bars     [6]pciRange
	power    *PCIFunction // function 3 of the slot: see [PCI.AddPIIX]

	intx     sync.Mutex // guards what follows; taken after PCI.mu
	line     Line
	asserted bool // the function wants an interrupt
	blocked  bool // by INTx Disable
	raised   bool // state of line
}

type pciRange struct {
	PCIBAR
	place    uint64 // where it is mapped or attached
	mapped   bool   // on the bus
	attached bool
}

// NewPCI puts the host bridge on the port bus. Functions' ranges go on ports
// and mmio.
func NewPCI(ports, mmio *Bus) (*PCI, error) {
	p := &PCI{ports: ports, mmio: mmio, freePorts: PCIWindow{PCIPortBase, PCIPortSize}, freeMemory: PCIWindow{PCIMemoryBase, PCIMemorySize}}
	// 82441FX: firmware and old kernels know it.
	if _, err := p.Add(PCIConfig{Name: "host bridge", Vendor: 0x8086, Device: 0x1237, Class: 0x060000}); err != nil {
		return nil, err
	}
	if err := ports.Add("PCI configuration", pciConfigPort, 8, p); err != nil {
		return nil, err
	}
	return p, nil
}

// NewPCIMapped puts a bus without port instructions on mmio: configuration space
// (PCI Express 3.0, 7.2.2: 4 KiB a function), the ports, of which the functions
// get those from 0x1000 on, and the functions' memory, at the addresses it has
// on the bus. With bridge the first function is a host bridge.
func NewPCIMapped(mmio *Bus, config, ports, memory PCIWindow, bridge bool) (*PCI, error) {
	const firstPort = 0x1000 // Linux leaves those below to ISA
	p := &PCI{
		ports: mmio, mmio: mmio, portsAt: ports.Base,
		freePorts: PCIWindow{firstPort, ports.Size - firstPort}, freeMemory: memory,
	}
	if bridge { // QEMU's, which has no driver
		if _, err := p.Add(PCIConfig{Name: "host bridge", Vendor: 0x1b36, Device: 0x0008, Class: 0x060000}); err != nil {
			return nil, err
		}
	}
	return p, mmio.Add("PCI configuration", config.Base, config.Size, mappedConfig{p})
}

// Add puts a function into the next free slot. Its ranges have addresses and
// are switched on from the start, for guests that do not set up PCI themselves.
func (p *PCI) Add(c PCIConfig) (*PCIFunction, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := newPCIFunction(p, c)
	if err != nil {
		return nil, fmt.Errorf("pci: %s: %w", c.Name, err)
	}
	for slot := range p.functions {
		if p.functions[slot] != nil {
			continue
		}
		p.functions[slot] = f
		for i := range c.BARs {
			if err := p.allocate(f, i, c.BARs[i]); err != nil {
				p.remove(slot)
				return nil, fmt.Errorf("pci: %s: BAR %d: %w", c.Name, i, err)
			}
		}
		f.space[pciCommand] = pciCommandIO | pciCommandMemory | pciCommandMaster
		if err := p.remap(f); err != nil {
			p.remove(slot)
			return nil, fmt.Errorf("pci: %s: %w", c.Name, err)
		}
		return f, nil
	}
	return nil, fmt.Errorf("pci: %s: all %d slots are taken", c.Name, PCISlots)
}

// Remove takes the function off the bus. It belongs to the end of the machine:
// Detach is not called.
func (f *PCIFunction) Remove() {
	f.bus.mu.Lock()
	defer f.bus.mu.Unlock()
	for slot, g := range f.bus.functions {
		if g == f {
			f.bus.remove(slot)
		}
	}
}

func (p *PCI) remove(slot int) {
	f := p.functions[slot]
	p.functions[slot] = nil
	for i := range f.bars {
		p.unmap(&f.bars[i])
	}
	f.SetINTx(false)
}

func newPCIFunction(p *PCI, c PCIConfig) (*PCIFunction, error) {
	f := &PCIFunction{bus: p, name: c.Name, line: c.Line, caps: c.Capabilities}
	le := binary.LittleEndian
	s, w := f.space[:], f.writable[:]
	le.PutUint16(s[pciVendor:], c.Vendor)
	le.PutUint16(s[pciDevice:], c.Device)
	le.PutUint32(s[pciRevision:], c.Class<<8|uint32(c.Revision))
	le.PutUint16(s[pciSubVendor:], c.SubVendor)
	le.PutUint16(s[pciSubsystem:], c.Subsystem)
	le.PutUint16(w[pciCommand:], pciCommandIO|pciCommandMemory|pciCommandMaster|pciCommandINTxOff)
	if c.Line != nil {
		s[pciIRQLine], s[pciIRQPin] = c.IRQ, 1
		w[pciIRQLine] = 0xff
	}
	if len(c.BARs) > len(f.bars) {
		return nil, fmt.Errorf("%d BARs", len(c.BARs))
	}
	link, at := pciCapabilities, pciFirstCap
	for _, cap := range c.Capabilities {
		n := len(cap.Data)
		if n < 4 || n%4 != 0 || at+n > len(s) || len(cap.Writable) > n {
			return nil, fmt.Errorf("capability of %d bytes at %#x does not fit", n, at)
		}
		copy(s[at:], cap.Data)
		copy(w[at:], cap.Writable)
		s[at+1] = 0
		s[link] = byte(at)
		link, at = at+1, at+n
		s[pciStatus] |= pciStatusCapabilities
	}
	return f, nil
}

// allocate gives a range its first address.
func (p *PCI) allocate(f *PCIFunction, bar int, b PCIBAR) error {
	free, least, most := &p.freeMemory, uint32(16), uint32(PCIMemorySize)
	if b.Port {
		free, least, most = &p.freePorts, 4, 256
	}
	if b.Size == 0 {
		return nil // an unused BAR
	}
	if b.Size&(b.Size-1) != 0 || b.Size < least || b.Size > most || b.Handler == nil {
		return fmt.Errorf("bad size %#x", b.Size)
	}
	size := uint64(b.Size)
	base := (free.Base + size - 1) &^ (size - 1)
	taken := base + size - free.Base
	if taken > free.Size {
		return errors.New("the address window is full")
	}
	*free = PCIWindow{base + size, free.Size - taken}
	f.bars[bar].PCIBAR = b
	value := uint32(base)
	if b.Port {
		value |= 1
	}
	binary.LittleEndian.PutUint32(f.space[pciBAR0+4*bar:], value)
	binary.LittleEndian.PutUint32(f.writable[pciBAR0+4*bar:], -b.Size)
	return nil
}

// remap makes the buses show what the function's registers say. A range the
// guest puts on top of something else stays off.
func (p *PCI) remap(f *PCIFunction) error {
	var errs []error
	for i := range f.bars {
		r := &f.bars[i]
		if r.Size == 0 {
			continue
		}
		base, on := f.decode(i)
		if r.mapped && (!on || r.place != base) {
			p.unmap(r)
		}
		if !on || r.mapped {
			continue
		}
		if r.place != base {
			r.detach()
		}
		bus, at := p.busOf(r, base)
		if err := bus.Add(f.name, at, uint64(r.Size), r.Handler); err != nil {
			errs = append(errs, err)
			continue
		}
		p.evict(r, base)
		r.place, r.mapped = base, true
		if r.Attach != nil && !r.attached {
			if err := r.Attach(base); err != nil {
				errs = append(errs, err)
			} else {
				r.attached = true
			}
		}
	}
	return errors.Join(errs...)
}

// decode returns where the registers put a range and whether it is on. The
// value that asks for a range's size is no place.
func (f *PCIFunction) decode(bar int) (base uint64, on bool) {
	r := &f.bars[bar]
	mask := -r.Size
	v := binary.LittleEndian.Uint32(f.space[pciBAR0+4*bar:]) & mask
	if r.Port {
		return uint64(v), f.space[pciCommand]&pciCommandIO != 0 && v <= 0xffff&mask
	}
	return uint64(v), f.space[pciCommand]&pciCommandMemory != 0 && v != mask
}

// evict detaches ranges that are switched off from a place another one takes.
func (p *PCI) evict(by *pciRange, base uint64) {
	for _, f := range p.functions {
		if f == nil {
			continue
		}
		for i := range f.bars {
			r := &f.bars[i]
			if r != by && r.Port == by.Port && !r.mapped && r.place < base+uint64(by.Size) && base < r.place+uint64(r.Size) {
				r.detach()
			}
		}
	}
}

func (r *pciRange) detach() {
	if r.attached {
		r.attached = false
		r.Detach(r.place)
	}
}

func (p *PCI) unmap(r *pciRange) {
	if r.mapped {
		bus, at := p.busOf(r, r.place)
		bus.Remove(at)
		r.mapped = false
	}
}

// busOf returns the bus that a range is on, and where an address in it lies there.
func (p *PCI) busOf(r *pciRange, addr uint64) (*Bus, uint64) {
	if r.Port {
		return p.ports, p.portsAt + addr
	}
	return p.mmio, addr
}

// SetINTx asserts or releases the function's interrupt pin. Any goroutine may
// call it.
func (f *PCIFunction) SetINTx(on bool) {
	f.intx.Lock()
	defer f.intx.Unlock()
	f.asserted = on
	f.drive()
}

// drive puts the line to what pin and INTx Disable make of it.
func (f *PCIFunction) drive() {
	want := f.asserted && !f.blocked
	if f.line == nil || want == f.raised {
		return
	}
	if f.raised = want; want {
		f.line.Raise()
	} else {
		f.line.Lower()
	}
}

// selected returns the function and register that CONFIG_ADDRESS names, nil if
// there is none (PCI Local Bus 3.0, 3.2.2.3.2).
func (p *PCI) selected() (*PCIFunction, int) {
	const enable, bus = 1 << 31, 0xff0000
	if p.address&enable == 0 || p.address&bus != 0 {
		return nil, 0
	}
	f := p.functions[p.address>>11&0x1f]
	if n := p.address >> 8 & 7; n == 3 && f != nil {
		f = f.power
	} else if n != 0 {
		f = nil
	}
	return f, int(p.address & 0xfc)
}

// Read implements [Handler] for ports 0xcf8 to 0xcff.
func (p *PCI) Read(offset uint64, data []byte) {
	if p.isReset(offset, data) {
		p.Reset.Read(0, data)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset < 4 {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], p.address)
		copy(data, b[offset:])
		return
	}
	if f, register := p.selected(); f != nil {
		f.read(register+int(offset&3), data)
	}
}

// Write implements [Handler] for ports 0xcf8 to 0xcff. The address takes 32-bit
// writes only; narrower ones belong to other chips.
func (p *PCI) Write(offset uint64, data []byte) {
	if p.isReset(offset, data) {
		p.Reset.Write(0, data)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset < 4 {
		if offset == 0 && len(data) == 4 {
			p.address = binary.LittleEndian.Uint32(data) &^ 0x7f000003
		}
		return
	}
	if f, register := p.selected(); f != nil {
		f.write(register+int(offset&3), data)
	}
}

// mappedConfig is configuration space in memory. What is not there reads as
// ones: other buses, functions but the first, and what only PCI Express has.
type mappedConfig struct{ *PCI }

// access splits an access into pieces that cross no multiple of 4, as mechanism 1
// has them.
func (c mappedConfig) access(offset uint64, data []byte, f func(f *PCIFunction, register int, data []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot, register := offset>>15, offset&0x7fff // of function 0
	for ; slot < PCISlots && register < 256 && len(data) > 0 && c.functions[slot] != nil; register = (register + 4) &^ 3 {
		n := min(len(data), int(4-register&3))
		f(c.functions[slot], int(register), data[:n])
		data = data[n:]
	}
}

// Read implements [Handler].
func (c mappedConfig) Read(offset uint64, data []byte) { c.access(offset, data, (*PCIFunction).read) }

// Write implements [Handler].
func (c mappedConfig) Write(offset uint64, data []byte) { c.access(offset, data, (*PCIFunction).write) }

func (p *PCI) isReset(offset uint64, data []byte) bool {
	return offset == PortReset-pciConfigPort && len(data) == 1 && p.Reset != nil
}

func (f *PCIFunction) read(register int, data []byte) {
	f.intx.Lock()
	if f.space[pciStatus] &^= pciStatusINTx; f.asserted {
		f.space[pciStatus] |= pciStatusINTx
	}
	f.intx.Unlock()
	if c, contents, at := f.capability(register, len(data)); c != nil && c.Read != nil {
		c.Read(contents, at)
	}
	copy(data, f.space[register:])
}

func (f *PCIFunction) write(register int, data []byte) {
	for i, v := range data {
		at := (register + i) & 0xff
		f.space[at] = f.space[at]&^f.writable[at] | v&f.writable[at]
	}
	if register < pciBAR0+4*len(f.bars) {
		f.intx.Lock()
		f.blocked = f.space[pciCommand+1]&(pciCommandINTxOff>>8) != 0
		f.drive()
		f.intx.Unlock()
		_ = f.bus.remap(f) // what cannot be placed is not there
	}
	if c, contents, at := f.capability(register, len(data)); c != nil && c.Written != nil {
		c.Written(contents, at)
	}
}

// capability returns the capability that n bytes at register lie in, its
// contents, and the offset of register in it. Accesses do not cross a multiple
// of 4, and so no capability's border.
func (f *PCIFunction) capability(register, n int) (*PCICapability, []byte, int) {
	start := pciFirstCap
	for i := range f.caps {
		c := &f.caps[i]
		end := start + len(c.Data)
		if register >= start && register+n <= end {
			return c, f.space[start:end], register - start
		}
		start = end
	}
	return nil, nil, 0
}

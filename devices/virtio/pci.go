package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/gvmm/gvmm/devices"
)

// The memory BAR of a virtio function: the structures of virtio 1.3 4.1.4 and
// the MSI-X tables, a page each.
const (
	pciPage     = 0x1000
	pciCommon   = 0 * pciPage
	pciISR      = 1 * pciPage
	pciDevice   = 2 * pciPage
	pciNotify   = 3 * pciPage
	pciTable    = 4 * pciPage
	pciPending  = 5 * pciPage
	pciMemory   = 8 * pciPage // size of the BAR
	pciNotifyBy = 4           // notify_off_multiplier

	pciPortBytes = 0x100
	pciMemoryBAR = 1
)

// Fields of the common configuration (4.1.4.3).
const (
	commonOfferSel     = 0x00
	commonOffered      = 0x04
	commonAcceptSel    = 0x08
	commonAccepted     = 0x0c
	commonConfigVector = 0x10
	commonQueues       = 0x12
	commonStatus       = 0x14
	commonGeneration   = 0x15
	commonQueueSel     = 0x16
	commonQueueSize    = 0x18
	commonQueueVector  = 0x1a
	commonQueueEnable  = 0x1c
	commonQueueNotify  = 0x1e
	commonDesc         = 0x20
	commonAvail        = 0x28
	commonUsed         = 0x30
	commonBytes        = 0x40
)

// Registers of the legacy interface (4.1.4.10).
const (
	legacyOffered      = 0x00
	legacyAccepted     = 0x04
	legacyPFN          = 0x08
	legacyQueueSize    = 0x0c
	legacyQueueSel     = 0x0e
	legacyNotify       = 0x10
	legacyStatus       = 0x12
	legacyISR          = 0x13
	legacyConfig       = 0x14 // without MSI-X
	legacyConfigVector = 0x14 // with MSI-X
	legacyQueueVector  = 0x16
	legacyConfigMSIX   = 0x18

	legacyPage = 4096 // queue address unit and alignment of the used ring
)

// PCI is a device behind the virtio PCI transport. A device type that existed
// before virtio 1.0 is transitional: it has the legacy interface in port BAR 0,
// with INTx, beside the modern one in memory BAR 1, with MSI-X. Others are modern only.
type PCI struct {
	transport
	machine  devices.Machine
	function *devices.PCIFunction

	// irqMu guards what follows. Taken after transport.mu; workers take it alone.
	irqMu   sync.Mutex
	isr     uint8
	vectors []uint16 // for the configuration, then one a queue
	msix    msix
}

// NewPCI puts dev into the next free slot of bus. Its INTx pin is wired to the
// level-triggered input gsi (below 256). report is as for [NewMMIO].
func NewPCI(m devices.Machine, bus *devices.PCI, gsi uint32, dev Device, report func(error)) (*PCI, error) {
	line, err := m.LevelLine(gsi)
	if err != nil {
		return nil, fmt.Errorf("%s: interrupt %d: %w", dev.Name(), gsi, err)
	}
	t := &PCI{machine: m}
	if err := t.open(m, dev, t, report); err != nil {
		return nil, err
	}
	t.vectors = make([]uint16, 1+len(t.workers))
	t.msix.open(m, len(t.workers)+1)
	t.clearInterrupts()
	legacy, class := pciIDs(dev.ID())
	c := devices.PCIConfig{
		Name:   dev.Name(),
		Vendor: 0x1af4, Device: 0x1040 + dev.ID(), Revision: 1,
		SubVendor: 0x1af4, Subsystem: 0x1040 + dev.ID(),
		Class: class,
		IRQ:   uint8(gsi), Line: line,
		BARs: []devices.PCIBAR{{}, {
			Size: pciMemory, Handler: pciRegion{t},
			Attach: func(base uint64) error { return t.attach(base, memoryKick) },
			Detach: func(base uint64) { t.detach(base, memoryKick, len(t.workers)) },
		}},
		Capabilities: t.capabilities(),
	}
	if legacy != 0 {
		c.Device, c.Revision, c.Subsystem = legacy, 0, dev.ID()
		c.BARs[0] = devices.PCIBAR{
			Port: true, Size: pciPortBytes, Handler: legacyPorts{t},
			Attach: func(base uint64) error { return t.attach(base, portKick) },
			Detach: func(base uint64) { t.detach(base, portKick, len(t.workers)) },
		}
	}
	if t.function, err = bus.Add(c); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// Close stops the device and takes it off the bus, as [MMIO.Close] does.
func (t *PCI) Close() error {
	t.function.Remove()
	return t.close()
}

// pciIDs returns the transitional PCI device number of a device type (virtio
// 1.3 4.1.2.1), 0 if it is modern only, and its class.
func pciIDs(id uint16) (device uint16, class uint32) {
	switch id {
	case 1:
		return 0x1000, 0x020000 // network: Ethernet
	case 2:
		return 0x1001, 0x018000 // block: mass storage, other
	case 3:
		return 0x1003, 0x078000 // console: communication, other
	case 4:
		return 0x1005, 0x00ff00 // entropy: unclassified
	case 5:
		return 0x1002, 0x00ff00 // memory balloon: unclassified
	case 9:
		return 0x1009, 0x00ff00 // 9P
	}
	return 0, 0x00ff00
}

func portKick(base uint64, queue int) devices.Kick {
	return devices.Kick{Addr: base + legacyNotify, Port: true, Width: 2, Match: true, Value: uint64(queue)}
}

func memoryKick(base uint64, queue int) devices.Kick {
	return devices.Kick{Addr: base + pciNotify + uint64(queue)*pciNotifyBy, Width: 2}
}

func (t *PCI) attach(base uint64, kick func(uint64, int) devices.Kick) error {
	for i, w := range t.workers {
		if err := t.machine.AttachKick(w.fd, kick(base, i)); err != nil {
			t.detach(base, kick, i)
			return fmt.Errorf("%s: notification of queue %d: %w", t.dev.Name(), i, err)
		}
	}
	return nil
}

func (t *PCI) detach(base uint64, kick func(uint64, int) devices.Kick, queues int) {
	for i, w := range t.workers[:queues] {
		// A notification that stays attached wakes a queue for nothing.
		_ = t.machine.DetachKick(w.fd, kick(base, i))
	}
}

// capabilities lists the structures of the memory BAR (4.1.4) and MSI-X.
func (t *PCI) capabilities() []devices.PCICapability {
	le := binary.LittleEndian
	structure := func(kind uint8, offset, size uint32, more ...byte) devices.PCICapability {
		d := make([]byte, 16, 20)
		d[0], d[2], d[3], d[4] = 0x09, byte(16+len(more)), kind, pciMemoryBAR
		le.PutUint32(d[8:], offset)
		le.PutUint32(d[12:], size)
		return devices.PCICapability{Data: append(d, more...)}
	}
	window := structure(5, 0, 0, 0, 0, 0, 0)
	window.Writable = make([]byte, len(window.Data))
	for i := range window.Writable {
		if i == 4 || i >= 8 {
			window.Writable[i] = 0xff
		}
	}
	window.Read = func(d []byte, at int) { t.window(d, at, pciRegion{t}.Read) }
	window.Written = func(d []byte, at int) { t.window(d, at, pciRegion{t}.Write) }

	vectors := make([]byte, 12)
	vectors[0] = 0x11
	le.PutUint16(vectors[2:], uint16(len(t.workers))) // table size minus one
	le.PutUint32(vectors[4:], pciTable|pciMemoryBAR)
	le.PutUint32(vectors[8:], pciPending|pciMemoryBAR)
	return []devices.PCICapability{
		{Data: vectors, Writable: []byte{0, 0, 0, 0xc0}, Written: t.msixWritten},
		structure(1, pciCommon, commonBytes),
		structure(2, pciNotify, uint32(len(t.workers)*pciNotifyBy), pciNotifyBy, 0, 0, 0),
		structure(3, pciISR, 4),
		structure(4, pciDevice, pciPage),
		window,
	}
}

// window serves an access to pci_cfg_data: the driver reaches the BAR through
// configuration space (4.1.4.9).
func (t *PCI) window(d []byte, at int, access func(uint64, []byte)) {
	offset, n := binary.LittleEndian.Uint32(d[8:]), binary.LittleEndian.Uint32(d[12:])
	if at == 16 && d[4] == pciMemoryBAR && (n == 1 || n == 2 || n == 4) && offset%n == 0 && offset < pciMemory {
		access(uint64(offset), d[16:16+n])
	}
}

// msixWritten takes the MSI-X message control word.
func (t *PCI) msixWritten(d []byte, _ int) {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	t.msix.enabled, t.msix.masked = d[3]&0x80 != 0, d[3]&0x40 != 0
	if t.msix.enabled {
		t.acknowledge()
		t.msix.deliver()
	}
}

// clearInterrupts puts what belongs to interrupts to its state after a reset.
func (t *PCI) clearInterrupts() {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	for i := range t.vectors {
		t.vectors[i] = noVector
	}
	t.msix.pending = 0
	t.acknowledge()
}

// acknowledge clears and returns the interrupt status, and with it INTx.
func (t *PCI) acknowledge() uint8 {
	old := t.isr
	t.isr = 0
	if t.function != nil {
		t.function.SetINTx(false)
	}
	return old
}

func (t *PCI) readISR() uint8 {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	return t.acknowledge()
}

func (t *PCI) interrupt(source int) {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	if t.msix.enabled {
		t.msix.notify(t.vectors[source])
		return
	}
	t.isr |= interruptBit(source)
	t.function.SetINTx(true)
}

// vector reads the MSI-X vector register of a source that exists.
func (t *PCI) vector(source uint32) uint16 {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	return t.vectors[source]
}

// setVector writes one; a vector that does not exist reads back as none
// (4.1.5.1.2.1).
func (t *PCI) setVector(source, v uint32) {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	if uint16(v) >= uint16(len(t.msix.table)/msixEntryBytes) {
		v = noVector
	}
	if source < uint32(len(t.vectors)) {
		t.vectors[source] = uint16(v)
	}
}

func (t *PCI) writeStatus(v uint8) {
	if t.setStatus(v); v == 0 {
		t.clearInterrupts()
	}
}

// legacyPorts is the legacy interface (4.1.4.10).
type legacyPorts struct{ *PCI }

// Read implements [devices.Handler].
func (t legacyPorts) Read(offset uint64, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(data)
	config := t.configAt()
	if offset >= config {
		t.dev.ReadConfig(offset-config, data)
		return
	}
	var b [legacyConfigMSIX]byte
	le := binary.LittleEndian
	le.PutUint32(b[legacyOffered:], uint32(t.offered))
	le.PutUint32(b[legacyAccepted:], uint32(t.accepted))
	if r := t.selected(); r != nil {
		if r.ready {
			le.PutUint32(b[legacyPFN:], uint32(r.desc/legacyPage))
		}
		le.PutUint16(b[legacyQueueSize:], r.size)
		le.PutUint16(b[legacyQueueVector:], t.vector(1+t.queueSel))
	}
	le.PutUint16(b[legacyQueueSel:], uint16(t.queueSel))
	b[legacyStatus] = uint8(t.status.Load())
	if offset <= legacyISR && offset+uint64(len(data)) > legacyISR {
		b[legacyISR] = t.readISR()
	}
	le.PutUint16(b[legacyConfigVector:], t.vector(0))
	copy(data, b[offset:config])
}

// configAt returns where the device's configuration starts.
func (t legacyPorts) configAt() uint64 {
	t.irqMu.Lock()
	defer t.irqMu.Unlock()
	if t.msix.enabled {
		return legacyConfigMSIX
	}
	return legacyConfig
}

// Write implements [devices.Handler].
func (t legacyPorts) Write(offset uint64, data []byte) {
	var word [8]byte
	copy(word[:], data)
	v := binary.LittleEndian.Uint32(word[:])
	if offset == legacyNotify && len(data) == 2 {
		t.kick(v)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if config := t.configAt(); offset >= config {
		t.dev.WriteConfig(offset-config, data)
		return
	}
	switch {
	case offset == legacyAccepted && len(data) == 4:
		t.acceptSel = 0
		t.acceptWord(v)
	case offset == legacyPFN && len(data) == 4:
		if r := t.settable(); r != nil {
			r.placeLegacy(v)
		}
	case offset == legacyQueueSel && len(data) == 2:
		t.queueSel = v
	case offset == legacyStatus && len(data) == 1:
		t.writeStatus(uint8(v))
	case offset == legacyConfigVector && len(data) == 2:
		t.setVector(0, v)
	case offset == legacyQueueVector && len(data) == 2:
		t.setVector(1+t.queueSel, v)
	}
}

// placeLegacy lays out the ring's parts from one page number (2.7.2, legacy).
func (r *ring) placeLegacy(page uint32) {
	n := uint64(r.size)
	r.ready = page != 0
	r.desc = uint64(page) * legacyPage
	r.avail = r.desc + n*descBytes
	r.used = (r.avail + 6 + 2*n + legacyPage - 1) &^ (legacyPage - 1)
}

// pciRegion is the memory BAR.
type pciRegion struct{ *PCI }

// Read implements [devices.Handler].
func (t pciRegion) Read(offset uint64, data []byte) {
	clear(data)
	at := offset % pciPage
	switch offset - at {
	case pciCommon:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.readCommon(at, data)
	case pciISR:
		if at == 0 {
			data[0] = t.readISR()
		}
	case pciDevice:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.ReadConfig(at, data)
	case pciTable, pciPending:
		t.irqMu.Lock()
		defer t.irqMu.Unlock()
		t.msix.read(offset, data)
	}
}

// Write implements [devices.Handler].
func (t pciRegion) Write(offset uint64, data []byte) {
	at := offset % pciPage
	switch offset - at {
	case pciCommon:
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(data) == 8 {
			t.writeCommon(at, data[:4])
			at, data = at+4, data[4:]
		}
		t.writeCommon(at, data)
	case pciDevice:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.WriteConfig(at, data)
	case pciNotify:
		t.kick(uint32(at / pciNotifyBy))
	case pciTable:
		t.irqMu.Lock()
		defer t.irqMu.Unlock()
		t.msix.write(at, data)
	}
}

func (t *PCI) readCommon(at uint64, data []byte) {
	if at >= commonBytes {
		return
	}
	var b [commonBytes]byte
	le := binary.LittleEndian
	le.PutUint32(b[commonOfferSel:], t.offerSel)
	le.PutUint32(b[commonOffered:], word(t.offered, t.offerSel))
	le.PutUint32(b[commonAcceptSel:], t.acceptSel)
	le.PutUint32(b[commonAccepted:], word(t.accepted, t.acceptSel))
	le.PutUint16(b[commonConfigVector:], t.vector(0))
	le.PutUint16(b[commonQueues:], uint16(len(t.workers)))
	b[commonStatus] = uint8(t.status.Load())
	b[commonGeneration] = uint8(t.generation.Load())
	le.PutUint16(b[commonQueueSel:], uint16(t.queueSel))
	if r := t.selected(); r != nil {
		le.PutUint16(b[commonQueueSize:], r.size)
		le.PutUint16(b[commonQueueVector:], t.vector(1+t.queueSel))
		if r.ready {
			b[commonQueueEnable] = 1
		}
		le.PutUint16(b[commonQueueNotify:], uint16(t.queueSel))
		le.PutUint64(b[commonDesc:], r.desc)
		le.PutUint64(b[commonAvail:], r.avail)
		le.PutUint64(b[commonUsed:], r.used)
	}
	copy(data, b[at:])
}

func (t *PCI) writeCommon(at uint64, data []byte) {
	var word [4]byte
	copy(word[:], data)
	v := binary.LittleEndian.Uint32(word[:])
	switch at {
	case commonConfigVector:
		t.setVector(0, v)
	case commonStatus:
		t.writeStatus(uint8(v))
	case commonQueueSel:
		t.queueSel = v & 0xffff
	case commonQueueVector:
		t.setVector(1+t.queueSel, v)
	default:
		t.setRegister(at, v)
	}
}

package virtio

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/gvmm/gvmm/devices"
)

// Registers of virtio over MMIO, version 2 (virtio 1.3 4.2.2).
const (
	mmioMagic           = 0x000
	mmioVersion         = 0x004
	mmioDeviceID        = 0x008
	mmioVendorID        = 0x00c
	mmioFeatures        = 0x010
	mmioFeaturesSel     = 0x014
	mmioDriverFeats     = 0x020
	mmioDriverSel       = 0x024
	mmioQueueSel        = 0x030
	mmioQueueSizeMax    = 0x034
	mmioQueueSize       = 0x038
	mmioQueueReady      = 0x044
	mmioQueueNotify     = 0x050
	mmioInterruptStatus = 0x060
	mmioInterruptACK    = 0x064
	mmioStatus          = 0x070
	mmioDescLow         = 0x080
	mmioDescHigh        = 0x084
	mmioAvailLow        = 0x090
	mmioAvailHigh       = 0x094
	mmioUsedLow         = 0x0a0
	mmioUsedHigh        = 0x0a4
	mmioShmLenLow       = 0x0b0
	mmioShmBaseHigh     = 0x0bc
	mmioGeneration      = 0x0fc
	mmioConfig          = 0x100
)

// MMIOSize is the number of bytes of address space an [MMIO] device takes: as
// far apart as QEMU and kvmtool have them on arm64.
const MMIOSize = 0x200

// mmioCommon is what registers have the place of another in [transport.setRegister].
var mmioCommon = [mmioConfig / 4]uint8{
	mmioDriverSel / 4: commonAcceptSel, mmioDriverFeats / 4: commonAccepted,
	mmioQueueSel / 4: commonQueueSel, mmioQueueSize / 4: commonQueueSize, mmioQueueReady / 4: commonQueueEnable,
	mmioDescLow / 4: commonDesc, mmioAvailLow / 4: commonAvail, mmioUsedLow / 4: commonUsed,
	mmioDescHigh / 4: commonDesc + 4, mmioAvailHigh / 4: commonAvail + 4, mmioUsedHigh / 4: commonUsed + 4,
}

// MMIO is a device behind the virtio-mmio transport, version 2.
type MMIO struct {
	transport
	bus     *devices.Bus
	base    uint64
	line    devices.Line
	pending atomic.Uint32 // InterruptStatus
	mapped  bool          // on the bus
}

// NewMMIO puts dev on bus at [base, base+[MMIOSize]) with the edge-triggered
// interrupt gsi. report, which may be nil, is told (at most a few times) why
// the device needs a reset.
func NewMMIO(m devices.Machine, bus *devices.Bus, base uint64, gsi uint32, dev Device, report func(error)) (*MMIO, error) {
	line, err := m.EdgeLine(gsi)
	if err != nil {
		return nil, fmt.Errorf("%s: interrupt %d: %w", dev.Name(), gsi, err)
	}
	t := &MMIO{bus: bus, base: base, line: line}
	if err := t.open(m, dev, t, report); err != nil {
		return nil, err
	}
	if err := bus.Add(dev.Name(), base, MMIOSize, t); err != nil {
		_ = t.Close()
		return nil, err
	}
	t.mapped = true
	for i, w := range t.workers {
		k := devices.Kick{Addr: base + mmioQueueNotify, Width: 4, Match: true, Value: uint64(i)}
		if err := m.AttachKick(w.fd, k); err != nil {
			_ = t.Close()
			return nil, fmt.Errorf("%s: notification of queue %d: %w", dev.Name(), i, err)
		}
	}
	return t, nil
}

// Close stops the device and takes it off the bus. A second call does nothing.
// Notifications stay attached to the machine, which ends with the device:
// detaching one costs KVM about ten milliseconds.
func (t *MMIO) Close() error {
	if t.mapped {
		t.mapped = false
		t.bus.Remove(t.base)
	}
	return t.close()
}

func (t *MMIO) interrupt(source int) {
	t.pending.Or(uint32(interruptBit(source)))
	t.line.Raise()
}

// Read serves a register read. Registers are 32 bits wide; a narrower or wider
// read gets the bytes it covers.
func (t *MMIO) Read(offset uint64, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(data)
	if offset >= mmioConfig {
		t.dev.ReadConfig(offset-mmioConfig, data)
		return
	}
	for len(data) > 0 {
		var word [4]byte
		binary.LittleEndian.PutUint32(word[:], t.readRegister(offset&^3))
		n := copy(data, word[offset&3:])
		data, offset = data[n:], offset+uint64(n)
	}
}

func (t *MMIO) readRegister(offset uint64) uint32 {
	switch offset {
	case mmioMagic:
		return 0x74726976 // "virt"
	case mmioVersion:
		return 2
	case mmioDeviceID:
		return uint32(t.dev.ID())
	case mmioVendorID:
		return 0x4d4d5647 // "GVMM"
	case mmioFeatures:
		return word(t.offered, t.offerSel)
	case mmioQueueSizeMax:
		if t.queueSel < uint32(len(t.rings)) {
			return uint32(t.dev.QueueSizes()[t.queueSel])
		}
	case mmioQueueReady:
		if r := t.selected(); r != nil && r.ready {
			return 1
		}
	case mmioInterruptStatus:
		return t.pending.Load()
	case mmioStatus:
		return t.status.Load()
	case mmioGeneration:
		return t.generation.Load()
	}
	if offset >= mmioShmLenLow && offset <= mmioShmBaseHigh {
		return 0xffffffff // no shared memory region (4.2.2)
	}
	return 0
}

// Write serves a register write. All registers take 32-bit writes only (4.2.2.2).
func (t *MMIO) Write(offset uint64, data []byte) {
	if offset >= mmioConfig {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.WriteConfig(offset-mmioConfig, data)
		return
	}
	if len(data) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(data)
	switch offset {
	case mmioQueueNotify:
		t.kick(v)
		return
	case mmioInterruptACK:
		t.pending.And(^v)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case offset == mmioStatus:
		if t.setStatus(uint8(v)); uint8(v) == 0 {
			t.pending.Store(0)
		}
	case offset == mmioFeaturesSel:
		t.offerSel = v
	case offset%4 == 0 && mmioCommon[offset/4] != 0:
		t.setRegister(uint64(mmioCommon[offset/4]), v)
	}
}

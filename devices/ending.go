package devices

import (
	"encoding/binary"
	"fmt"
	"time"
)

// End is how a guest asked for its own end.
type End struct {
	Kind EndKind
	Code int    // the guest's own code, for EndCode
	Why  string // which door it took, for people
}

// EndKind says what a guest's end means.
type EndKind int

// The ways a guest ends itself.
const (
	EndPowerOff EndKind = iota
	EndReset
	EndCode  // the guest left a status of its own
	EndCrash // the guest says that it crashed
)

// The ports through which x86 guests end, and the sizes of their ranges.
const (
	PortPM1Event   = 0x600 // ACPI PM1a event block, 4 bytes
	PortPM1Control = 0x604 // ACPI PM1a control block, 2 bytes
	PortExit       = 0xf4  // isa-debug-exit as kvm-unit-tests uses it
	PortExitUK     = 0x501 // isa-debug-exit where Unikraft and OSv write
	PortPanic      = 0x505 // pvpanic
	PortReset      = 0xcf9 // reset control register of PC chipsets
)

// PowerManagement is the ACPI fixed hardware a guest needs to switch itself off:
// the PM1a event and control blocks at [PortPM1Event], six bytes, and two bytes
// behind them the PM timer, by which OVMF waits (ACPI 6.5, 4.8.3).
type PowerManagement struct {
	end    func(End)
	enable [2]byte
	start  time.Time
}

// PowerManagementPorts is how many ports a [PowerManagement] takes.
const PowerManagementPorts = 12

// NewPowerManagement returns the blocks; end is called when the guest sleeps.
func NewPowerManagement(end func(End)) *PowerManagement {
	return &PowerManagement{end: end, start: time.Now()}
}

// timer is the PM timer after d: 24 bits that count 3.579545 MHz.
func timer(d time.Duration) uint32 {
	const hz = 3579545
	return uint32(d/time.Second*hz+d%time.Second*hz/time.Second) & 0xffffff
}

const (
	pm1SciEnable   = 1 << 0
	pm1SleepEnable = 1 << 13
)

// Read implements [Handler]. No event is ever pending, and ACPI mode is always on.
func (p *PowerManagement) Read(offset uint64, data []byte) {
	clear(data)
	if offset == 8 && len(data) == 4 {
		binary.LittleEndian.PutUint32(data, timer(time.Since(p.start)))
		return
	}
	for i := range data {
		switch off := offset + uint64(i); off {
		case 2, 3:
			data[i] = p.enable[off-2]
		case 4:
			data[i] = pm1SciEnable
		}
	}
}

// Write implements [Handler]. Setting SLP_EN ends the guest, whatever the sleep
// type: S5 is the only one the tables declare.
func (p *PowerManagement) Write(offset uint64, data []byte) {
	for i, b := range data {
		switch off := offset + uint64(i); off {
		case 2, 3:
			p.enable[off-2] = b
		case 5:
			if b&(pm1SleepEnable>>8) != 0 {
				p.end(End{Kind: EndPowerOff, Why: "ACPI power-off"})
			}
		}
	}
}

// DebugExit is an isa-debug-exit port: what the guest writes is its own exit code.
type DebugExit struct {
	end      func(End)
	unikraft bool
}

// DebugExitPorts is how many ports a [DebugExit] takes.
const DebugExitPorts = 4

// NewDebugExit returns the port; end is called with the guest's code. With
// unikraft the two codes that Unikraft writes mean what they mean there:
// 41 an orderly halt and 42 a crash.
func NewDebugExit(end func(End), unikraft bool) *DebugExit { return &DebugExit{end, unikraft} }

// Read implements [Handler].
func (d *DebugExit) Read(_ uint64, data []byte) { clear(data) }

// Write implements [Handler].
func (d *DebugExit) Write(_ uint64, data []byte) {
	var code int
	for i := min(len(data), 4) - 1; i >= 0; i-- {
		code = code<<8 | int(data[i])
	}
	switch {
	case d.unikraft && code == 41:
		d.end(End{Kind: EndPowerOff, Why: "Unikraft halt"})
	case d.unikraft && code == 42:
		d.end(End{Kind: EndCrash, Why: "Unikraft crashed (code 42 at port 0x501)"})
	default:
		d.end(End{Kind: EndCode, Code: code & 0xff, Why: fmt.Sprintf("debug exit, code %d", code)})
	}
}

// Panic is the pvpanic port (QEMU docs/specs/pvpanic): reading tells which
// events are understood, writing bit 0 says the guest panicked. Bit 1 says that
// the guest's own crash kernel takes over, which ends nothing.
type Panic struct{ end func(End) }

// PanicPorts is how many ports a [Panic] takes.
const PanicPorts = 1

// NewPanic returns the port; end is called when the guest panics.
func NewPanic(end func(End)) *Panic { return &Panic{end} }

const panicked, crashLoaded = 1, 2

// Read implements [Handler].
func (p *Panic) Read(_ uint64, data []byte) { data[0] = panicked | crashLoaded }

// Write implements [Handler].
func (p *Panic) Write(_ uint64, data []byte) {
	if data[0]&panicked != 0 {
		p.end(End{Kind: EndCrash, Why: "the guest's panic device was written"})
	}
}

// ResetControl is the chipset's reset register at [PortReset]; bit 2 resets.
type ResetControl struct{ end func(End) }

// ResetControlPorts is how many ports a [ResetControl] takes.
const ResetControlPorts = 1

// NewResetControl returns the register; end is called when the guest resets.
func NewResetControl(end func(End)) *ResetControl { return &ResetControl{end} }

// Read implements [Handler].
func (r *ResetControl) Read(_ uint64, data []byte) { data[0] = 0 }

// Write implements [Handler].
func (r *ResetControl) Write(_ uint64, data []byte) {
	if data[0]&4 != 0 {
		r.end(End{Kind: EndReset, Why: "reset by port 0xcf9"})
	}
}

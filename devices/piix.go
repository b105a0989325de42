package devices

import "encoding/binary"

// Registers of the PIIX4's power management function (Intel 82371AB, 7.2).
const (
	piixPMBase = 0x40
	piixPMMisc = 0x80
)

// AddPIIX puts into the next slot, which must be the first behind the host
// bridge, what OVMF looks for there: the ISA bridge, over which it finds COM1,
// and as function 3 the power management, set up and switched on with its
// registers at port base. A guest that enumerates does not see function 3,
// since the bridge does not say that it has others; ACPI tells it all there is.
func (p *PCI) AddPIIX(base uint16) error {
	isa, err := p.Add(PCIConfig{Name: "ISA bridge", Vendor: 0x8086, Device: 0x7000, Class: 0x060100})
	if err != nil {
		return err
	}
	isa.power, err = newPCIFunction(p, PCIConfig{Name: "power management", Vendor: 0x8086, Device: 0x7113, Class: 0x068000})
	if err == nil {
		binary.LittleEndian.PutUint32(isa.power.space[piixPMBase:], uint32(base)|1) // ports
		isa.power.space[piixPMMisc] = 1                                             // on
	}
	return err
}

// Package devices holds the machine's devices that are not virtio: the buses,
// the serial port, the clock chip, the debug ports, the firmware configuration
// port and PCI.
//
// A device knows the offset and the bytes of an access, never its own place:
// the [Bus] maps addresses to devices. What a device needs of the machine
// (memory, interrupt lines, queue notifications) it gets through the small
// interfaces in this package; nothing here knows KVM.
package devices

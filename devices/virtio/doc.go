// Package virtio holds virtio devices and the transports that carry them
// (OASIS virtio 1.3).
//
// A [Device] knows its features, its configuration space and its queues. A
// transport ([MMIO], [PCI]) shows it to the guest and knows no device. Between
// them the package keeps what they share: split rings ([Queue]), feature
// negotiation, one goroutine a queue, reset and pause.
//
// The guest is hostile. Whatever it writes to registers and rings ends at worst
// in a device that says DEVICE_NEEDS_RESET.
package virtio

// Package vmm is the machine: it takes a [Config], has package boot make the
// launch plan, builds a KVM virtual machine around it and runs it to its end.
//
//	m, err := vmm.New(vmm.Config{Image: "image.elf", Stdout: os.Stdout})
//	if err != nil { ... }
//	defer m.Close()
//	outcome, err := m.Run(ctx)
//
// The run path is one plain loop a vCPU (vcpu.go) on a locked thread. Devices
// come from package devices, the ioctls from vmm/kvm; this package only ties
// them together.
package vmm

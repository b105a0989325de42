//go:build arm64 || uapi_arm64

package main

import (
	"unsafe"

	"github.com/gvmm/gvmm/vmm/kvm"
)

func (p *printer) inner(unsafe.Pointer, byte) {}

func archCalls(p *printer, _ *kvm.System, vm *kvm.VM, cpu *kvm.VCPU) {
	var err error
	p.do("KVM_CREATE_DEVICE", func() { _, err = vm.CreateDevice(kvm.GICv3) })
	p.do("KVM_CREATE_DEVICE:test", func() { vm.HasDevice(kvm.ITS) })
	p.do("KVM_SET_DEVICE_ATTR", func() { err = vm.SetDeviceAttr(1, 2, 3) })
	p.do("KVM_ARM_PREFERRED_TARGET", func() { _, err = vm.PreferredTarget() })
	p.do("KVM_ARM_VCPU_INIT", func() { err = cpu.Init(5, kvm.VCPUPSCI02|kvm.VCPUSVE) })
	p.do("KVM_ARM_VCPU_FINALIZE", func() { err = cpu.Finalize(kvm.FinalizeSVE) })
	check(err)
}

func archExit(string, *printer, *kvm.VCPU) {}

var archConstants = map[string]int{
	"KVM_DEV_TYPE_ARM_VGIC_V2": int(kvm.GICv2), "KVM_DEV_TYPE_ARM_VGIC_V3": int(kvm.GICv3), "KVM_DEV_TYPE_ARM_VGIC_ITS": int(kvm.ITS),
	"KVM_DEV_ARM_VGIC_GRP_ADDR": kvm.GICAddress, "KVM_DEV_ARM_VGIC_GRP_NR_IRQS": kvm.GICIRQs, "KVM_DEV_ARM_VGIC_GRP_CTRL": kvm.GICControl,
	"KVM_DEV_ARM_VGIC_CTRL_INIT": kvm.GICInitAttr,
	"KVM_VGIC_V2_ADDR_TYPE_DIST": kvm.GICAddressV2Dist, "KVM_VGIC_V2_ADDR_TYPE_CPU": kvm.GICAddressV2CPU,
	"KVM_VGIC_V3_ADDR_TYPE_DIST": kvm.GICAddressV3Dist, "KVM_VGIC_V3_ADDR_TYPE_REDIST": kvm.GICAddressRedist, "KVM_VGIC_ITS_ADDR_TYPE": kvm.GICAddressITS,
	"KVM_ARM_VCPU_PMU_V3_CTRL": kvm.VCPUPMU, "KVM_ARM_VCPU_PMU_V3_IRQ": kvm.PMUIRQ, "KVM_ARM_VCPU_PMU_V3_INIT": kvm.PMUInit,
	"KVM_ARM_VCPU_PVTIME_CTRL": kvm.VCPUPVTime, "KVM_ARM_VCPU_PVTIME_IPA": kvm.PVTimeIPA,
	"KVM_ARM_VCPU_SVE": kvm.FinalizeSVE, "(1<<KVM_ARM_VCPU_POWER_OFF)": kvm.VCPUPowerOff, "(1<<KVM_ARM_VCPU_PSCI_0_2)": kvm.VCPUPSCI02,
	"(1<<KVM_ARM_VCPU_PMU_V3)": kvm.VCPUPMUv3, "(1<<KVM_ARM_VCPU_SVE)": kvm.VCPUSVE,
	"(1<<KVM_ARM_VCPU_PTRAUTH_ADDRESS)": kvm.VCPUPtrAuthAddr, "(1<<KVM_ARM_VCPU_PTRAUTH_GENERIC)": kvm.VCPUPtrAuthGen,
	"CORE(regs.regs[0])": kvm.RegX0, "CORE(regs.sp)": kvm.RegSP, "CORE(regs.pc)": kvm.RegPC, "CORE(regs.pstate)": kvm.RegPState,
	"CORE(sp_el1)": kvm.RegSPEL1, "CORE(elr_el1)": kvm.RegELREL1, "CORE(spsr[0])": kvm.RegSPSR,
	"ARM64_SYS_REG(3,1,12,2,7)": int(kvm.SysReg(3, 1, 12, 2, 7)),
}

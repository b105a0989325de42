//go:build !amd64 && !arm64

package vmm

import (
	"context"
	"errors"

	"github.com/gvmm/gvmm/vmm/kvm"
)

var errHost = errors.New("virtual machines run on x86-64 and arm64 hosts only")

// VM is a virtual machine; there are none on this host's architecture.
type VM struct{}

// New refuses: images can be inspected and measured here, not run.
func New(Config) (*VM, error) { return nil, &LackingError{errHost} }

// Start is never reached.
func (m *VM) Start() {}

// Wait is never reached.
func (m *VM) Wait(context.Context) (Outcome, error) { return Outcome{}, errHost }

// CloseForExit is never reached.
func (m *VM) CloseForExit() error { return nil }

// Finding is one thing a host can or cannot do.
type Finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Probe says that this host cannot run virtual machines.
func Probe(kvm.Kernel) []Finding {
	return []Finding{{Name: "kvm", Detail: errHost.Error(), Remedy: "an x86-64 or arm64 host"}}
}

// Package fcsdk drives gvmm-firecracker with Firecracker's Go SDK, unchanged. It
// is a module of its own, so that what the SDK needs stays out of gvmm; run it
// with `go test` in its folder, on a machine with KVM.
package fcsdk

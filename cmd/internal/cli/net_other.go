//go:build !arm64

package cli

// netProcess would take gvmm beyond its size: gvmm-net is a file of its own.
var netProcess func([]string) int

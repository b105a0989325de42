package cli

import "github.com/gvmm/gvmm/cmd/internal/netproc"

// netProcess is gvmm-net's main: on arm64 there is room for it in gvmm's own
// file, which can then be copied alone.
var netProcess = netproc.Main

// Package difftest compares packages sev and sev/verify with programs that other
// people wrote: google/gce-tcb-verifier, which predicts digests of GCE's
// launches, and google/go-sev-guest, which verifies reports. It is a module of
// its own, so that what these need stays out of gvmm; run it with `go test`
// in its folder.
package difftest

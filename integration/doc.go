// Package integration holds the end-to-end tests: the gvmm binary, as it is
// released, runs our own guests on this machine's KVM and in the x86 lab, and
// Debian's kernel in the lab.
package integration

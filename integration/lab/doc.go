// Package lab makes a virtual machine a value of a test: start it on a [Host],
// expect text on its console, wait for how it ends.
//
// There are two hosts. [Local] is this machine. [Machine] is a machine in software:
// QEMU emulates a processor with SVM, Debian's cloud kernel runs on it and
// offers a full-fidelity /dev/kvm, and an agent (package lab/init) starts
// programs in it. The lab fetches kernel and QEMU itself and caches what it
// fetched, see [CacheDir].
package lab

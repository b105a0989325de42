// Package cet is gvmm's part in Intel's Control-flow Enforcement Technology
// (Intel SDM vol. 1, chapter 17): which of shadow stacks and indirect branch
// tracking a guest sees, the state that a monitor must keep for it, whether an
// image can bear it, what a guest died of, and an audit in software for
// machines without it.
package cet

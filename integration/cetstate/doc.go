// Package cetstate holds one test: a vCPU in the middle of a shadow-stacked call
// chain moves to another VM. It wants a KVM with CET, so the CET lab runs it.
package cetstate

// Package memory is the guest's physical memory as the monitor sees it.
//
// It is the only door to guest RAM: every address that comes from a guest goes
// through [Guest.Slice] or a function built on it, which checks it and returns
// an error; no other package turns a guest address into a pointer. The guest
// may change its memory at any moment, so readers copy a structure once and
// validate and use the copy.
package memory

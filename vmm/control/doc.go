// Package control is how other programs speak to a running VM: a Unix socket
// for each, in a directory of the user's own, and JSON, one message a line
// (docs/control.md). A client sends [Request]s and reads a [Reply] to each, in
// order. After the reply to a console request the connection carries the
// console's bytes instead.
//
// A socket belongs to whoever can open it: directory 0700, socket 0600.
package control

// Package ninep is a 9P server over one directory of the host: 9P2000.L as
// Linux and Unikraft speak it, and as much of 9P2000.u as Unikraft's releases
// up to 0.13 need (later ones still make directories with its Tcreate).
// Messages: https://github.com/chaos/diod/blob/master/protocol.md and the
// Plan 9 manual, section 5, intro(5).
//
// The client is hostile. It reaches nothing outside the directory: each fid
// holds a descriptor of its object (O_PATH), every step of a walk opens one
// checked name below such a descriptor with openat2(RESOLVE_BENEATH) and
// follows no symbolic link, ".." is climbed only below the root, and a
// descriptor is opened for I/O through /proc/self/fd, so that the object that
// was checked is the object that is opened. Only regular files and directories
// are opened: FIFOs, sockets and devices are for the client's own kernel.
//
// Files belong to whom the client says when the monitor runs as root, and to
// the monitor's user otherwise. Modes are the client's: a share that a root
// monitor lets a guest write can hold set-user-id files, as with any monitor.
package ninep

// Package qcow2 reads and writes disk images in QEMU's format (QEMU
// docs/interop/qcow2.txt, versions 2 and 3): backing files, packed clusters
// of both kinds, internal snapshots beside the active state, refcounts of every
// width. It does not create, check or repair images: qemu-img does.
//
// # Never a byte lost
//
// Metadata is changed through a shared mapping of the file, in an order that
// leaves the image whole at every step: the data of a cluster is in the file
// before anything refers to it, and a cluster's refcount and the table entry
// that refers to it are adjacent stores. A monitor killed at any moment leaves
// an image in which qemu-img check finds nothing. Flush is fdatasync(2) and
// covers data and metadata. What happens when the host itself loses power
// between two flushes is the file system's business: then a check may find
// leaked or missing refcounts, as with any writer that keeps no journal.
//
// Images are hostile: every offset is checked where it is used, for alignment
// and against the file's end. A file that is truncated under a running machine
// is an I/O error.
package qcow2

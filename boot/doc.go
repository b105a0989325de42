// Package boot turns an image file into a launch [Plan]: which bytes lie where
// in guest memory, and the registers the first vCPU starts with.
//
// It is pure: it opens no device and knows no KVM. Everything it reads (image,
// initrd) is hostile input; what it refuses it refuses with the offset and the
// reason.
package boot

package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/gvmm/gvmm/devices/ninep"
)

const (
	ninepMountTag  = 1 << 0 // feature: the configuration has the tag
	ninepQueueSize = 128    // what Unikraft's driver and Linux's expect
	ninepMaxTag    = 255
)

// NineP is a virtio 9P transport with one queue (virtio 1.3 5 gives only its
// number; feature bit and configuration, tag_len[2] tag, are those of Linux's
// uapi/linux/virtio_9p.h). A request is one chain: its readable bytes are the
// T-message, its writable ones take the R-message. A reset ends
// nothing: the next driver begins with Tversion, which ends the old session.
type NineP struct {
	base
	srv   *ninep.Server
	chain Chain
}

// NewNineP makes a device that serves srv under a tag of 1 to 255 bytes, which
// the guest names in its mount command. The caller closes srv after the device.
func NewNineP(tag string, srv *ninep.Server) (*NineP, error) {
	if tag == "" || len(tag) > ninepMaxTag {
		return nil, fmt.Errorf("virtio-9p: tag %q: not 1 to %d bytes", tag, ninepMaxTag)
	}
	config := binary.LittleEndian.AppendUint16(nil, uint16(len(tag)))
	return &NineP{srv: srv, base: base{name: "virtio-9p", id: 9, features: ninepMountTag,
		queues: []uint16{ninepQueueSize}, config: append(config, tag...)}}, nil
}

// Serve implements [Device]. A host file system that is slow holds up this
// share alone, and each reply is shown at once.
func (p *NineP) Serve(s *Session, queue int) {
	q := s.Queues[queue]
	for q.Pop(&p.chain) {
		n := p.srv.Serve(p.chain.Readable, p.chain.Writable)
		q.Push(&p.chain, uint32(n))
		q.Flush()
	}
}

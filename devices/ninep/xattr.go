package ninep

import "golang.org/x/sys/unix"

const (
	maxXattr      = 64 << 10 // XATTR_SIZE_MAX, XATTR_LIST_MAX
	maxXattrBytes = 1 << 20  // in all buffers of a server
)

// xattr is what a fid of an extended attribute holds: a value that was read
// (or the list of names), or one that the client is writing and that is stored
// when it clunks the fid.
type xattr struct {
	buf     []byte
	store   bool
	name    string
	flags   int // XATTR_CREATE, XATTR_REPLACE
	written int
}

func (s *Server) xattrwalk(c *call) unix.Errno {
	f, id, name := c.f, c.id, c.text
	if err := s.vacant(id); err != 0 {
		return err
	}
	path := procPath(f.node.fd)
	get := func(dst []byte) (int, unix.Errno) {
		return retryInt(func() (int, error) {
			if name == "" {
				return unix.Listxattr(path, dst)
			}
			return unix.Getxattr(path, name, dst)
		})
	}
	n, err := get(nil)
	if err != 0 {
		return err
	}
	buf, err := s.xattrBuffer(uint64(n))
	if err != 0 {
		return err
	}
	if n > 0 {
		if n, err = get(buf); err != 0 {
			s.xattrBytes -= len(buf)
			return err
		}
		s.xattrBytes -= len(buf) - n
		buf = buf[:n]
	}
	f.node.refs++
	s.fids[id] = &fid{node: f.node, uid: f.uid, file: -1, xattr: &xattr{buf: buf}}
	c.e.u64(uint64(n))
	return 0
}

// xattrBuffer returns a buffer of n bytes and accounts for it.
func (s *Server) xattrBuffer(n uint64) ([]byte, unix.Errno) {
	if n > maxXattr {
		return nil, unix.E2BIG
	}
	if s.xattrBytes+int(n) > maxXattrBytes {
		return nil, unix.ENOSPC
	}
	s.xattrBytes += int(n)
	return make([]byte, n), 0
}

func (s *Server) xattrcreate(c *call) unix.Errno {
	f, name, flags := c.f, c.text, c.flags
	switch {
	case name == "" || flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0:
		return unix.EINVAL
	case f.file >= 0:
		return unix.EBUSY
	}
	buf, err := s.xattrBuffer(c.off)
	if err != 0 {
		return err
	}
	f.xattr = &xattr{buf: buf, store: true, name: name, flags: int(flags)}
	return 0
}

func (x *xattr) read(c *call, off uint64, n int) unix.Errno {
	if x.store {
		return unix.EBADF
	}
	p := x.buf[min(off, uint64(len(x.buf))):]
	p = p[:min(n, len(p))]
	c.resp.CopyFrom(p, readHeader)
	c.e.u32(uint32(len(p)))
	c.data = len(p)
	return 0
}

func (x *xattr) write(c *call, off uint64, n int) unix.Errno {
	if !x.store || off > uint64(x.written) {
		return unix.EINVAL
	}
	if uint64(n) > uint64(len(x.buf))-off {
		return unix.ENOSPC
	}
	c.req.CopyTo(x.buf[off:][:n], writeHeader)
	x.written = max(x.written, int(off)+n)
	c.e.u32(uint32(n))
	return 0
}

// storeXattr sets the attribute that the client has written through f, if that
// is what f is for; one of size zero is removed.
func (s *Server) storeXattr(f *fid) unix.Errno {
	x := f.xattr
	if x == nil || !x.store {
		return 0
	}
	if x.written != len(x.buf) {
		return unix.EINVAL
	}
	path := procPath(f.node.fd)
	return retry(func() error {
		if len(x.buf) == 0 {
			return unix.Removexattr(path, x.name)
		}
		return unix.Setxattr(path, x.name, x.buf, x.flags)
	})
}

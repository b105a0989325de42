package ninep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/devices/iov"
)

const (
	maxFids  = 65536
	inSize   = 8 << 10  // largest request apart from Twrite's data
	outSize  = 32 << 10 // largest reply apart from Rread's data
	dirSize  = 16 << 10 // directory entries read from the host at a time
	entryMax = 8 << 10  // more than one directory entry takes in a reply
)

// Server serves one directory to one client.
type Server struct {
	mu       sync.Mutex
	root     *node // nil when closed
	readOnly bool
	asRoot   bool // give new files to the user the client names
	openat2  bool // the kernel has openat2 (5.6)

	fds, maxFDs int // descriptors held, and the most it may hold
	xattrBytes  int // held in the buffers of attribute fids

	msize uint32 // 0 before Tversion
	dotu  bool   // 9P2000.u was agreed on
	fids  map[uint32]*fid
	nodes map[nodeKey]*node
	locks map[lockKey]int // descriptor that holds the owner's locks

	call         call // the one that is served
	in, out, dir []byte
	file         iov.File
	part         iov.Buffers
	st           unix.Statx_t
}

// NewServer returns a server for the directory dir. A read-only one refuses
// every change with EROFS. It may hold up to half of the process's descriptors.
func NewServer(dir string, readOnly bool) (*Server, error) {
	s := &Server{
		readOnly: readOnly,
		asRoot:   unix.Geteuid() == 0,
		fids:     make(map[uint32]*fid),
		nodes:    make(map[nodeKey]*node),
		locks:    make(map[lockKey]int),
		in:       make([]byte, inSize),
		out:      make([]byte, 0, outSize+entryMax),
		dir:      make([]byte, dirSize),
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("share %s: RLIMIT_NOFILE: %w", dir, err)
	}
	s.maxFDs = int(min(limit.Cur/2, 4*maxFids))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", dir, err)
	}
	s.fds++
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.PROC_SUPER_MAGIC {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("share %s: it is /proc, through which a guest would control the monitor", dir)
	}
	if err := unix.Access(procPath(fd), unix.F_OK); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("share %s: %s: %w (is /proc mounted?)", dir, procPath(fd), err)
	}
	s.openat2 = true
	probe, errno := s.openBeneath(fd, ".", unix.O_PATH, 0)
	switch errno {
	case 0:
		s.close(probe)
	case unix.ENOSYS, unix.EPERM: // old kernel, or a container's seccomp filter
		s.openat2 = false
	}
	if s.root, errno = s.adopt(fd); errno != 0 {
		return nil, fmt.Errorf("share %s: statx: %w", dir, errno)
	}
	return s, nil
}

// Close ends the session and closes the directory. Requests after it fail.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	if s.root != nil {
		s.release(s.root)
		s.root = nil
	}
	return nil
}

// reset forgets the session: every fid and every lock.
func (s *Server) reset() {
	for id, f := range s.fids {
		delete(s.fids, id)
		s.drop(f)
	}
	s.msize = 0
}

// call is one request while it is served.
type call struct {
	req, resp iov.Buffers
	d         decoder // what follows the fields that request.fields names
	e         encoder // the reply, header included
	room      int     // most bytes of the reply
	data      int     // bytes already in resp behind what e holds
	fields
}

// Serve handles one request. req holds the T-message, as slices that the guest
// may change meanwhile; the R-message goes into resp. It returns the length of
// the reply, 0 if resp has no room even for an error. Calls are served one at
// a time.
func (s *Server) Serve(req, resp [][]byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.call
	*c = call{req: req, resp: resp, room: iov.Buffers(resp).Len()}
	if s.msize != 0 {
		c.room = min(c.room, int(s.msize))
	}
	c.e.b = s.out[:headerSize]
	typ, tag := uint8(0), uint16(noTag)
	n := c.req.CopyTo(s.in, 0)
	err := unix.EINVAL
	if n >= headerSize {
		typ, tag = s.in[4], binary.LittleEndian.Uint16(s.in[5:])
		err = s.frame(c, typ, n)
	}
	if err == 0 {
		err = s.dispatch(c, typ)
	}
	if err == 0 && len(c.e.b)+c.data > c.room {
		err = unix.EMSGSIZE
	}
	typ++
	if err != 0 {
		typ = s.encodeError(c, err)
	}
	size := len(c.e.b) + c.data
	if size > c.room {
		return 0
	}
	binary.LittleEndian.PutUint32(c.e.b, uint32(size))
	c.e.b[4] = typ
	binary.LittleEndian.PutUint16(c.e.b[5:], tag)
	c.resp.CopyFrom(c.e.b, 0)
	return size
}

// frame checks the length of the message whose first n bytes are in s.in and
// points the decoder at its fields.
func (s *Server) frame(c *call, typ uint8, n int) unix.Errno {
	size := uint64(binary.LittleEndian.Uint32(s.in))
	switch {
	case s.root == nil:
		return unix.EIO
	case size < headerSize || size > uint64(c.req.Len()):
		return unix.EINVAL
	case typ == tVersion && size <= inSize:
	case s.msize == 0: // no session yet
		return unix.EPROTO
	case size > uint64(s.msize) || size > inSize && typ != tWrite:
		return unix.EMSGSIZE
	}
	c.d.b = s.in[headerSize:min(size, uint64(n))]
	return 0
}

func (s *Server) encodeError(c *call, err unix.Errno) uint8 {
	c.data = 0
	c.e.b = c.e.b[:headerSize]
	if !s.dotu {
		c.e.u32(uint32(err))
		return rLerror
	}
	text := err.Error()
	c.e.str(text[:max(0, min(len(text), c.room-headerSize-6))])
	c.e.u32(uint32(err))
	return rError
}

func (s *Server) dispatch(c *call, typ uint8) unix.Errno {
	if int(typ) >= len(requests) || requests[typ].serve == nil {
		return unix.EOPNOTSUPP // Tauth too: no authentication is wanted
	}
	m := &requests[typ]
	if s.readOnly && m.changes {
		return unix.EROFS
	}
	if s.decode(c, m.fields); c.d.err != 0 {
		return c.d.err
	}
	return m.serve(s, c)
}

func (s *Server) version(c *call) unix.Errno {
	msize, version := c.count, c.text
	if msize < minMsize {
		return unix.EMSGSIZE
	}
	s.reset()
	s.msize = min(msize, maxMsize)
	switch version {
	case "9P2000.L", "9P2000.u":
		s.dotu = version == "9P2000.u"
	default:
		version = "unknown"
		s.msize, s.dotu = 0, false
	}
	c.e.u32(min(msize, maxMsize))
	c.e.str(version)
	return 0
}

// iounit is the most data of one read or write, in whole pages. It is never
// zero ("no limit of its own"): old Unikraft clients then write nothing.
func (s *Server) iounit() uint32 {
	n := s.msize - ioOverhead
	if n < 4096 {
		return n
	}
	return n &^ 4095
}

// errnoOf returns the errno in an error of package unix.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return unix.EIO
}

// retry calls f until it is not interrupted by a signal.
func retry(f func() error) unix.Errno {
	_, err := retryInt(func() (int, error) { return 0, f() })
	return err
}

// retryInt is retry for what returns a descriptor or a length.
func retryInt(f func() (int, error)) (int, unix.Errno) {
	for {
		n, err := f()
		if errno := errnoOf(err); errno != unix.EINTR {
			return n, errno
		}
	}
}

package ninep

import (
	"bytes"
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"
)

// Open flags on the wire: those of Linux on x86, whatever the host is.
const (
	oAccess    = 0o3
	oExcl      = 0o200
	oTrunc     = 0o1000
	oAppend    = 0o2000
	oDsync     = 0o10000
	oDirectory = 0o200000
	oSync      = 0o4000000
)

// hostFlags translates open flags. What only concerns the client's side or
// would change how the monitor has to do I/O (O_DIRECT, O_NONBLOCK) is dropped.
func hostFlags(wire uint32) (int, unix.Errno) {
	if wire&oAccess == oAccess {
		return 0, unix.EINVAL
	}
	flags := int(wire & oAccess)
	for _, f := range [...]struct {
		wire uint32
		host int
	}{{oTrunc, unix.O_TRUNC}, {oAppend, unix.O_APPEND}, {oDsync, unix.O_DSYNC}, {oSync, unix.O_SYNC}, {oDirectory, unix.O_DIRECTORY}} {
		if wire&f.wire == f.wire {
			flags |= f.host
		}
	}
	return flags, 0
}

func (s *Server) lopen(c *call) unix.Errno {
	flags, err := hostFlags(c.flags)
	if err != 0 {
		return err
	}
	return s.openFid(c, c.f, flags)
}

// openFid opens the object of f and encodes Rlopen or Ropen.
func (s *Server) openFid(c *call, f *fid, flags int) unix.Errno {
	if f.file >= 0 {
		return unix.EBUSY
	}
	file, err := s.openNode(f.node, flags)
	if err != 0 {
		return err
	}
	if err := statx(file, &s.st); err != 0 {
		s.close(file)
		return err
	}
	f.file = file
	c.e.qid(s.qidOf(&s.st))
	c.e.u32(s.iounit())
	return 0
}

// openNode opens a regular file or a directory for I/O.
func (s *Server) openNode(n *node, flags int) (int, unix.Errno) {
	writes := flags&(unix.O_ACCMODE|unix.O_TRUNC) != unix.O_RDONLY
	if s.readOnly && writes {
		return -1, unix.EROFS
	}
	switch n.mode {
	case unix.S_IFREG:
		if flags&unix.O_DIRECTORY != 0 {
			return -1, unix.ENOTDIR
		}
	case unix.S_IFDIR:
		if writes {
			return -1, unix.EISDIR
		}
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	default:
		return -1, unix.ENXIO
	}
	if n.key.dev != s.root.key.dev {
		// The files of a /proc below the share are doors to the monitor.
		var fs unix.Statfs_t
		if err := unix.Fstatfs(n.fd, &fs); err != nil {
			return -1, errnoOf(err)
		} else if fs.Type == unix.PROC_SUPER_MAGIC {
			return -1, unix.EACCES
		}
	}
	return s.reopen(n.fd, flags)
}

func (s *Server) lcreate(c *call) unix.Errno {
	flags, err := hostFlags(c.flags)
	if err != 0 {
		return err
	}
	return s.createFid(c, flags, c.flags&oExcl != 0)
}

// createFid creates the file c.name in the directory c.dir, or opens the one
// that is there unless excl is set, makes the fid the open file and encodes
// Rlcreate or Rcreate.
func (s *Server) createFid(c *call, flags int, excl bool) unix.Errno {
	f, name := c.dir, c.name
	switch {
	case f.file >= 0:
		return unix.EBUSY
	case s.fds+2 > s.maxFDs:
		return unix.EMFILE
	}
	n, file, err := s.createNode(f, name, flags&^unix.O_DIRECTORY, c.mode, c.gid)
	if err == unix.EEXIST && !excl {
		if n, err = s.lookup(f.node, name); err == 0 {
			if file, err = s.openNode(n, flags); err != 0 {
				s.release(n)
			}
		}
	}
	if err != 0 {
		return err
	}
	if err = statx(file, &s.st); err != 0 {
		s.close(file)
		s.release(n)
		return err
	}
	s.release(f.parent)
	f.parent, f.name = f.node, name
	f.node, f.file = n, file
	c.e.qid(s.qidOf(&s.st))
	c.e.u32(s.iounit())
	return 0
}

// createNode creates a regular file, which must not exist, and opens it.
func (s *Server) createNode(f *fid, name string, flags int, mode, gid uint32) (*node, int, unix.Errno) {
	file, err := s.openBeneath(f.node.fd, name, flags|unix.O_CREAT|unix.O_EXCL, mode&0o777)
	if err != 0 {
		return nil, -1, err
	}
	path, err := s.reopen(file, unix.O_PATH)
	if err != 0 {
		s.close(file)
		return nil, -1, err
	}
	n, err := s.adopt(path)
	if err != 0 {
		s.close(file)
		return nil, -1, err
	}
	s.settle(n, f.uid, gid, mode)
	return n, file, 0
}

// settle gives a new object, whose attributes are in s.st, its owner if the
// monitor may, and the client's mode, which the monitor's umask has no say in.
// Both are best effort: some file systems have neither. The object was created
// with no more rights than the client asked for.
func (s *Server) settle(n *node, uid, gid, mode uint32) {
	if s.asRoot && (uid != noID || gid != noID) {
		_ = unix.Fchownat(n.fd, "", ownerID(uid), ownerID(gid), unix.AT_EMPTY_PATH)
	}
	if !n.is(unix.S_IFLNK) && (uint32(s.st.Mode)^mode)&0o7777 != 0 {
		_ = chmod(n, mode)
	}
}

// ownerID turns a user or group id into an argument of chown: noID is -1.
func ownerID(id uint32) int { return int(int32(id)) }

func chmod(n *node, mode uint32) unix.Errno {
	if n.is(unix.S_IFLNK) {
		return unix.EOPNOTSUPP
	}
	return retry(func() error { return unix.Chmod(procPath(n.fd), mode&0o7777) })
}

func (s *Server) read(c *call) unix.Errno {
	f, off := c.f, c.off
	if c.room < readHeader {
		return unix.EMSGSIZE
	}
	n := int(min(uint64(c.count), uint64(c.room-readHeader)))
	switch {
	case f.xattr != nil:
		return f.xattr.read(c, off, n)
	case f.file < 0:
		return unix.EBADF
	case off > math.MaxInt64:
		return unix.EINVAL
	case s.dotu && f.node.is(unix.S_IFDIR):
		return s.ureaddir(c, n)
	}
	s.part = c.resp.AppendRange(s.part[:0], readHeader, n)
	got, err := s.file.ReadAt(f.file, s.part, int64(off))
	c.e.u32(uint32(got))
	c.data = got
	return errnoOf(err)
}

func (s *Server) write(c *call) unix.Errno {
	f, off, count := c.f, c.off, c.count
	// The message's size was checked: the data it announces is there.
	if uint64(count)+writeHeader > uint64(binary.LittleEndian.Uint32(s.in)) {
		return unix.EINVAL
	}
	if f.xattr != nil {
		return f.xattr.write(c, off, int(count))
	}
	if f.file < 0 {
		return unix.EBADF
	}
	if off > math.MaxInt64 {
		return unix.EFBIG
	}
	s.part = c.req.AppendRange(s.part[:0], writeHeader, int(count))
	put, err := s.file.WriteAt(f.file, s.part, int64(off))
	c.e.u32(uint32(put))
	return errnoOf(err)
}

func (s *Server) fsync(c *call) unix.Errno {
	if c.f.file < 0 {
		return unix.EBADF
	}
	sync := unix.Fsync
	if c.flags != 0 { // only the data; older clients do not send it
		sync = unix.Fdatasync
	}
	return retry(func() error { return sync(c.f.file) })
}

// Layout of linux_dirent64: ino[8] off[8] reclen[2] type[1] name NUL.
const (
	direntName = 19
	direntMax  = 512 // more than the longest takes
)

// entry is one directory entry as the host lists it.
type entry struct {
	ino  uint64
	next int64 // position behind it
	typ  uint8 // DT_*
	name []byte
}

// list encodes Rread or Rreaddir: the entries of the directory c.f from
// position off on, as add appends them, whole ones in at most n bytes. It
// returns the position behind the last.
func (s *Server) list(c *call, off int64, n int, add func(*entry)) (int64, unix.Errno) {
	limit := readHeader + min(n, outSize-readHeader)
	c.e.u32(0)
	end := func(err unix.Errno) (int64, unix.Errno) {
		size := len(c.e.b) - readHeader
		binary.LittleEndian.PutUint32(c.e.b[headerSize:], uint32(size))
		if size > 0 {
			err = 0 // an error behind the first entries comes up again
		}
		return off, err
	}
	if _, err := unix.Seek(c.f.file, off, unix.SEEK_SET); err != nil {
		return end(errnoOf(err))
	}
	var e entry
	buf := s.dir[:max(direntMax, min(limit, len(s.dir)))]
	for {
		n, err := retryInt(func() (int, error) { return unix.Getdents(c.f.file, buf) })
		if err != 0 || n <= 0 {
			return end(err)
		}
		for b := buf[:n]; len(b) > direntName; {
			reclen := int(binary.LittleEndian.Uint16(b[16:]))
			if reclen <= direntName || reclen > len(b) {
				return end(unix.EIO)
			}
			e.ino = binary.LittleEndian.Uint64(b)
			e.next = int64(binary.LittleEndian.Uint64(b[8:]))
			e.typ = b[18]
			e.name, _, _ = bytes.Cut(b[direntName:reclen], []byte{0})
			mark := len(c.e.b)
			if add(&e); len(c.e.b) > limit { // the next call's; an error if it never fits
				c.e.b = c.e.b[:mark]
				return end(unix.EINVAL)
			}
			off, b = e.next, b[reclen:]
		}
	}
}

func (s *Server) readdir(c *call) unix.Errno {
	f := c.f
	switch {
	case f.file < 0:
		return unix.EBADF
	case !f.node.is(unix.S_IFDIR):
		return unix.ENOTDIR
	case c.room < readHeader:
		return unix.EMSGSIZE
	}
	_, err := s.list(c, int64(c.off), int(min(uint64(c.count), uint64(c.room-readHeader))), func(e *entry) {
		q := qid{path: s.qidPath(f.node.key.dev, e.ino)}
		switch {
		case f.node == s.root && string(e.name) == "..":
			q.typ, q.path = qtDir, s.root.key.ino
		case e.typ == unix.DT_DIR:
			q.typ = qtDir
		case e.typ == unix.DT_LNK:
			q.typ = qtSymlink
		}
		c.e.qid(q)
		c.e.u64(uint64(e.next))
		c.e.u8(e.typ)
		c.e.bytes(e.name)
	})
	return err
}

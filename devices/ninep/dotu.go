package ninep

import (
	"encoding/binary"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// The messages of 9P2000.u (http://ericvh.github.io/9p-rfc/rfc9p2000.u.html).
// They are served in a 9P2000.L session too: Unikraft makes directories with
// Tcreate in both.

// Bits of a stat's mode and of Tcreate's perm above the nine of a file mode.
const (
	dmDir     = 1 << 31
	dmSymlink = 1 << 25
	dmLink    = 1 << 24
	dmDevice  = 1 << 23
	dmPipe    = 1 << 21
	dmSocket  = 1 << 20
	dmSetuid  = 1 << 19
	dmSetgid  = 1 << 18
	dmSticky  = 1 << 16

	dmSpecial = dmSymlink | dmLink | dmDevice | dmPipe | dmSocket
)

// Open modes.
const (
	uExec   = 3 // as reading
	uTrunc  = 0x10
	uAppend = 0x80
)

func uflags(mode uint8) int {
	flags := int(mode & 3)
	if flags == uExec {
		flags = unix.O_RDONLY
	}
	if mode&uTrunc != 0 {
		flags |= unix.O_TRUNC
	}
	if mode&uAppend != 0 {
		flags |= unix.O_APPEND
	}
	return flags
}

func (s *Server) uopen(c *call) unix.Errno {
	return s.openFid(c, c.f, uflags(c.umode))
}

func (s *Server) ucreate(c *call) unix.Errno {
	perm := c.mode
	c.mode = hostMode(perm)
	create := s.symlink
	switch {
	case c.dir.file >= 0:
		return unix.EBUSY
	case perm&dmDir != 0:
		create = s.mkdir
	case perm&dmSpecial == 0:
		return s.createFid(c, uflags(c.umode), false)
	case perm&dmSpecial != dmSymlink:
		return unix.EOPNOTSUPP
	}
	if err := create(c); err != 0 {
		return err
	}
	return s.uenter(c, c.dir, c.name, perm&dmDir != 0)
}

// uenter makes f the entry name of the directory it was, opened if asked for,
// and encodes Rcreate.
func (s *Server) uenter(c *call, f *fid, name string, open bool) unix.Errno {
	c.e.b = c.e.b[:headerSize]
	n, err := s.lookup(f.node, name)
	if err != 0 {
		return err
	}
	s.release(f.parent)
	f.parent, f.name, f.node = f.node, name, n
	if open {
		return s.openFid(c, f, unix.O_RDONLY)
	}
	c.e.qid(s.qidOf(&s.st))
	c.e.u32(0)
	return 0
}

// hostMode turns permission bits as 9P2000.u has them into the host's.
func hostMode(perm uint32) uint32 {
	mode := perm & 0o777
	for _, b := range modeBits {
		if perm&b.wire != 0 {
			mode |= b.host
		}
	}
	return mode
}

var modeBits = [...]struct{ wire, host uint32 }{
	{dmSetuid, unix.S_ISUID}, {dmSetgid, unix.S_ISGID}, {dmSticky, unix.S_ISVTX},
}

// wireMode is the mode of a stat.
func wireMode(mode uint32) uint32 {
	m := mode & 0o777
	for _, b := range modeBits {
		if mode&b.host != 0 {
			m |= b.wire
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= dmDir
	case unix.S_IFLNK:
		m |= dmSymlink
	case unix.S_IFCHR, unix.S_IFBLK:
		m |= dmDevice
	case unix.S_IFIFO:
		m |= dmPipe
	case unix.S_IFSOCK:
		m |= dmSocket
	}
	return m
}

// statFixed is a stat's size without the bytes of its five strings; its size[2]
// does not count itself.
const statFixed = 63

// encodeStat appends the stat of the object with attributes st, known as name.
func (s *Server) encodeStat(e *encoder, st *unix.Statx_t, name string, extension []byte) {
	e.u16(uint16(statFixed - 2 + len(name) + len(extension)))
	e.u16(0) // type
	e.u32(0) // dev
	e.qid(s.qidOf(st))
	e.u32(wireMode(uint32(st.Mode)))
	e.u32(uint32(st.Atime.Sec))
	e.u32(uint32(st.Mtime.Sec))
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		e.u64(0)
	} else {
		e.u64(st.Size)
	}
	e.str(name)
	e.str("") // uid, gid, muid: the numbers below say it
	e.str("")
	e.str("")
	e.bytes(extension)
	e.u32(st.Uid)
	e.u32(st.Gid)
	e.u32(noID)
}

func (s *Server) ustat(c *call) unix.Errno {
	f := c.f
	if err := statx(f.node.fd, &s.st); err != 0 {
		return err
	}
	name, target := f.name, []byte(nil)
	if f.parent == nil {
		name = "/"
	}
	if f.node.is(unix.S_IFLNK) {
		var err unix.Errno
		if target, err = s.linkTarget(f.node.fd, ""); err != 0 {
			return err
		}
	}
	c.e.u16(uint16(statFixed + len(name) + len(target)))
	s.encodeStat(&c.e, &s.st, name, target)
	return 0
}

// ureaddir serves Tread of a directory: whole stats, from an offset that is
// zero or where the last read ended.
func (s *Server) ureaddir(c *call, n int) unix.Errno {
	f := c.f
	switch c.off {
	case 0:
		f.dirOffset, f.dirCookie = 0, 0
	case f.dirOffset:
	default:
		return unix.EINVAL
	}
	limit := readHeader + min(n, outSize-readHeader)
	c.e.u32(0)
	full := false
	var link [unix.PathMax]byte
	err := s.entries(f.file, f.dirCookie, limit, func(e *entry) bool {
		name := string(e.name)
		if name == "." || name == ".." { // 9P directories do not list them
			f.dirCookie = e.next
			return true
		}
		err := unix.Statx(f.file, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, &s.st)
		if err != nil { // gone meanwhile
			f.dirCookie = e.next
			return true
		}
		target := 0
		if s.st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if target, err = unix.Readlinkat(f.file, name, link[:]); err != nil {
				target = 0
			}
		}
		if full = len(c.e.b)+statFixed+len(name)+target > limit; full {
			return false
		}
		s.encodeStat(&c.e, &s.st, name, link[:target])
		f.dirCookie = e.next
		return true
	})
	size := len(c.e.b) - readHeader
	if err == 0 && full && size == 0 {
		return unix.EINVAL
	}
	if size > 0 {
		err = 0
	}
	f.dirOffset += uint64(size)
	binary.LittleEndian.PutUint32(c.e.b[headerSize:], uint32(size))
	return err
}

// uwstat changes what is not "don't touch" (all ones, or an empty string). A
// stat that touches nothing asks for the file to be synced (stat(5)).
func (s *Server) uwstat(c *call) unix.Errno {
	f, d := c.f, &c.d
	d.u16() // size of the stat, twice
	d.u16()
	d.u16() // type
	d.u32() // dev
	d.take(qidSize)
	mode, atime, mtime, size := d.u32(), d.u32(), d.u32(), d.u64()
	name := d.str(maxName)
	d.str(maxName) // uid, gid, muid, extension
	d.str(maxName)
	d.str(maxName)
	d.str(unix.PathMax)
	uid, gid := d.u32(), d.u32()
	d.u32() // n_muid
	if d.err != 0 {
		return d.err
	}
	var a change
	if mode != noID {
		a.valid |= setMode
		a.mode = hostMode(mode)
	}
	if atime != noID {
		a.valid |= setAtime | setAtimeVal
		a.atime = uint64(atime)
	}
	if mtime != noID {
		a.valid |= setMtime | setMtimeVal
		a.mtime = uint64(mtime)
	}
	if size != math.MaxUint64 {
		a.valid |= setSize
		a.size = size
	}
	if uid != noID {
		a.valid |= setUID
		a.uid = uid
	}
	if gid != noID {
		a.valid |= setGID
		a.gid = gid
	}
	if a.valid == 0 && name == "" {
		if f.file < 0 {
			return 0
		}
		return retry(func() error { return unix.Fsync(f.file) })
	}
	if s.readOnly {
		return unix.EROFS
	}
	if err := s.apply(f, &a); err != 0 || name == "" || name == f.name {
		return err
	}
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return unix.EINVAL
	}
	if err := s.checkEntry(f); err != 0 {
		return err
	}
	return s.move(f.parent, f.name, f.parent, name)
}

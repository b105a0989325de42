package ninep

import (
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

// wireTypes has the bits of each file type (S_IFIFO >> 12 and so on).
var wireTypes = [16]uint32{1: dmPipe, 2: dmDevice, 4: dmDir, 6: dmDevice, 10: dmSymlink, 12: dmSocket}

// wireMode is the mode of a stat.
func wireMode(mode uint32) uint32 {
	m := mode & 0o777
	for _, b := range modeBits {
		if mode&b.host != 0 {
			m |= b.wire
		}
	}
	return m | wireTypes[mode&unix.S_IFMT>>12]
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
	e.u32(wireMode(uint32(st.Mode)), uint32(st.Atime.Sec), uint32(st.Mtime.Sec))
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
	e.u32(st.Uid, st.Gid, noID)
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
	var link [unix.PathMax]byte
	next, err := s.list(c, f.dirCookie, n, func(e *entry) {
		name := string(e.name)
		if name == "." || name == ".." { // 9P directories do not list them
			return
		}
		if unix.Statx(f.file, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, &s.st) != nil {
			return // gone meanwhile
		}
		target := 0
		if s.st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, _ = unix.Readlinkat(f.file, name, link[:])
		}
		s.encodeStat(&c.e, &s.st, name, link[:max(target, 0)])
	})
	f.dirCookie = next
	f.dirOffset += uint64(len(c.e.b) - readHeader)
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
	a := change{mode: hostMode(mode), uid: uid, gid: gid, size: size, atime: uint64(atime), mtime: uint64(mtime)}
	for _, field := range [...]struct {
		touched bool
		valid   uint32
	}{
		{mode != noID, setMode}, {uid != noID, setUID}, {gid != noID, setGID}, {size != math.MaxUint64, setSize},
		{atime != noID, setAtime | setAtimeVal}, {mtime != noID, setMtime | setMtimeVal},
	} {
		if field.touched {
			a.valid |= field.valid
		}
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

package ninep

import (
	"math"

	"golang.org/x/sys/unix"
)

// Rlock's status.
const (
	lockSuccess = 0
	lockBlocked = 1
)

// lockKey names an owner of record locks of one file. A process owns its locks
// whatever fid it took them through (fcntl(2)), so they live on a descriptor of
// their own, one for each owner, as open file description locks: those keep
// the owners apart, other monitors and the host's programs included.
type lockKey struct {
	node   *node
	proc   uint32
	client string
}

// lockRequest decodes what Tlock and Tgetlock have in common behind the fid.
func lockRequest(c *call, withFlags bool) (l unix.Flock_t, k lockKey) {
	f, d := c.f, &c.d
	typ := d.u8()
	if withFlags {
		d.u32() // whether the client waits: it comes again, the server never waits
	}
	start, size, proc, client := d.u64(), d.u64(), d.u32(), d.str(maxName)
	switch {
	case f.file < 0 || !f.node.is(unix.S_IFREG):
		d.fail(unix.EBADF)
	case typ > unix.F_UNLCK || start > math.MaxInt64 || size > math.MaxInt64-start:
		d.fail(unix.EINVAL)
	}
	l = unix.Flock_t{Type: int16(typ), Whence: unix.SEEK_SET, Start: int64(start), Len: int64(size)}
	return l, lockKey{f.node, proc, client}
}

func (s *Server) lock(c *call) unix.Errno {
	l, k := lockRequest(c, true)
	if c.d.err != 0 {
		return c.d.err
	}
	fd, held := s.locks[k]
	switch {
	case l.Type == unix.F_UNLCK && (!held || l.Start == 0 && l.Len == 0):
		if held {
			s.unlock(k)
		}
		c.e.u8(lockSuccess)
		return 0
	case !held:
		var err unix.Errno
		if fd, err = s.lockFile(c.f); err != 0 {
			return err
		}
	}
	err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
	if !held {
		if err != 0 {
			s.close(fd)
		} else {
			s.locks[k] = fd
			k.node.locks++
		}
	}
	switch err {
	case 0:
		c.e.u8(lockSuccess)
		return 0
	case unix.EAGAIN, unix.EACCES:
		c.e.u8(lockBlocked)
		return 0
	}
	return err
}

// lockFile opens f's file for holding locks: write locks need it writable.
func (s *Server) lockFile(f *fid) (int, unix.Errno) {
	fd, err := s.openNode(f.node, unix.O_RDWR)
	if err == 0 || err == unix.EMFILE {
		return fd, err
	}
	flags, e := unix.FcntlInt(uintptr(f.file), unix.F_GETFL, 0)
	if e != nil {
		return -1, errnoOf(e)
	}
	return s.openNode(f.node, flags&unix.O_ACCMODE)
}

func (s *Server) getlock(c *call) unix.Errno {
	l, k := lockRequest(c, false)
	if c.d.err != 0 {
		return c.d.err
	}
	if l.Type == unix.F_UNLCK { // Linux says so whatever it was asked: show any lock
		l.Type = unix.F_WRLCK
	}
	fd, held := s.locks[k]
	if !held { // the fid's own descriptor holds none: everybody is a stranger
		fd = c.f.file
	}
	if err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) }); err != 0 {
		return err
	}
	c.e.u8(uint8(l.Type))
	c.e.u64(uint64(l.Start), uint64(l.Len))
	c.e.u32(uint32(max(l.Pid, 0))) // -1: an open file description's
	c.e.str(k.client)
	return 0
}

func (s *Server) unlock(k lockKey) {
	s.close(s.locks[k])
	delete(s.locks, k)
	k.node.locks--
}

// unlockAll gives up every lock of a file that no fid refers to any more.
func (s *Server) unlockAll(n *node) {
	if n.locks == 0 {
		return
	}
	for k := range s.locks {
		if k.node == n {
			s.unlock(k)
		}
	}
}

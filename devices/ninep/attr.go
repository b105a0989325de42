package ninep

import (
	"math"

	"golang.org/x/sys/unix"
)

// Bits of Tsetattr's valid field. The one for ctime (1 << 6) asks for nothing:
// the host keeps that time.
const (
	setMode  = 1 << 0
	setUID   = 1 << 1
	setGID   = 1 << 2
	setSize  = 1 << 3
	setAtime = 1 << 4
	setMtime = 1 << 5

	setAtimeVal = 1 << 7 // to the value sent, not to now
	setMtimeVal = 1 << 8
)

// Bits of Rgetattr's valid field.
const (
	gotBasic = 0x7ff
	gotBtime = 0x800
)

func (s *Server) getattr(c *call) unix.Errno {
	st := &s.st // all of it, whatever the mask: everything known is cheap
	if err := statx(c.f.node.fd, st); err != 0 {
		return err
	}
	valid := uint64(gotBasic)
	if st.Mask&unix.STATX_BTIME != 0 {
		valid |= gotBtime
	} else {
		st.Btime = unix.StatxTimestamp{}
	}
	e := &c.e
	e.u64(valid)
	e.qid(s.qidOf(st))
	e.u32(uint32(st.Mode), st.Uid, st.Gid)
	e.u64(uint64(st.Nlink), unix.Mkdev(st.Rdev_major, st.Rdev_minor), st.Size, uint64(st.Blksize), st.Blocks)
	for _, t := range [...]*unix.StatxTimestamp{&st.Atime, &st.Mtime, &st.Ctime, &st.Btime} {
		e.u64(uint64(t.Sec), uint64(t.Nsec))
	}
	e.u64(0, 0) // gen, data_version
	return 0
}

// change is a set of new attributes; valid says which count.
type change struct {
	valid                uint32
	mode, uid, gid       uint32
	size                 uint64
	atime, mtime         uint64
	atimeNsec, mtimeNsec uint64
}

func (s *Server) setattr(c *call) unix.Errno {
	d := &c.d
	a := change{valid: d.u32(), mode: d.u32(), uid: d.u32(), gid: d.u32(), size: d.u64()}
	a.atime, a.atimeNsec, a.mtime, a.mtimeNsec = d.u64(), d.u64(), d.u64(), d.u64()
	if d.err != 0 {
		return d.err
	}
	return s.apply(c.f, &a)
}

// apply changes attributes in the order in which one does not undo another:
// chown and truncate clear set-user-id bits, truncate changes the times.
func (s *Server) apply(f *fid, a *change) unix.Errno {
	n := f.node
	if a.valid&setSize != 0 && a.size > math.MaxInt64 ||
		a.valid&setAtimeVal != 0 && a.atimeNsec > 999_999_999 ||
		a.valid&setMtimeVal != 0 && a.mtimeNsec > 999_999_999 {
		return unix.EINVAL
	}
	if a.valid&(setUID|setGID) != 0 {
		uid, gid := -1, -1
		if a.valid&setUID != 0 {
			uid = ownerID(a.uid)
		}
		if a.valid&setGID != 0 {
			gid = ownerID(a.gid)
		}
		if err := retry(func() error { return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH) }); err != 0 {
			return err
		}
	}
	if a.valid&setSize != 0 {
		if err := s.truncate(f, int64(a.size)); err != 0 {
			return err
		}
	}
	if a.valid&setMode != 0 {
		if err := chmod(n, a.mode); err != 0 {
			return err
		}
	}
	if a.valid&(setAtime|setMtime) != 0 {
		ts := []unix.Timespec{
			timeArg(a.valid, setAtime, setAtimeVal, a.atime, a.atimeNsec),
			timeArg(a.valid, setMtime, setMtimeVal, a.mtime, a.mtimeNsec),
		}
		// /proc/self/fd and not AT_EMPTY_PATH, which utimensat takes from Linux 5.8 on.
		return retry(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(n.fd), ts, 0) })
	}
	return 0
}

func timeArg(valid, set, value uint32, sec, nsec uint64) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&value == 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// truncate works on the open file if there is one: a client may shorten what it
// has open for writing and could not open any more.
func (s *Server) truncate(f *fid, size int64) unix.Errno {
	if f.file >= 0 && f.node.is(unix.S_IFREG) {
		err := retry(func() error { return unix.Ftruncate(f.file, size) })
		if err != unix.EINVAL && err != unix.EBADF { // open for reading only
			return err
		}
	}
	file, err := s.openNode(f.node, unix.O_WRONLY)
	if err != 0 {
		return err
	}
	defer s.close(file)
	return retry(func() error { return unix.Ftruncate(file, size) })
}

func (s *Server) statfs(c *call) unix.Errno {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(c.f.node.fd, &st) }); err != 0 {
		return err
	}
	e := &c.e
	e.u32(uint32(st.Type), uint32(st.Bsize))
	e.u64(st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree)
	e.u32(uint32(st.Fsid.Val[0]), uint32(st.Fsid.Val[1]))
	e.u32(uint32(st.Namelen))
	return 0
}

func (s *Server) readlink(c *call) unix.Errno {
	target, err := s.linkTarget(c.f.node.fd, "")
	if err == 0 {
		c.e.bytes(target)
	}
	return err
}

// linkTarget reads the symbolic link name of the directory fd, or fd itself
// where name is empty. The result is valid until the next call.
func (s *Server) linkTarget(fd int, name string) ([]byte, unix.Errno) {
	n, err := retryInt(func() (int, error) { return unix.Readlinkat(fd, name, s.dir[:unix.PathMax]) })
	if err == unix.ENOENT && name == "" { // not a link
		err = unix.EINVAL
	}
	return s.dir[:max(n, 0)], err
}

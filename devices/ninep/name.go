package ninep

import "golang.org/x/sys/unix"

const unlinkRemoveDir = 0x200 // AT_REMOVEDIR

// dirFid returns the fid of a directory that the next field names.
func (s *Server) dirFid(c *call) *fid {
	f := s.object(c)
	if f != nil && !f.node.is(unix.S_IFDIR) {
		c.d.fail(unix.ENOTDIR)
		return nil
	}
	return f
}

// created settles the new entry name of f, which has the given type, and
// encodes its qid.
func (s *Server) created(c *call, f *fid, name string, typ, mode, gid uint32) unix.Errno {
	n, err := s.lookup(f.node, name)
	if err != 0 {
		return err
	}
	defer s.release(n)
	if !n.is(typ) { // somebody on the host was quicker
		return unix.EEXIST
	}
	s.settle(n, f.uid, gid, mode)
	c.e.qid(s.qidOf(&s.st))
	return 0
}

func (s *Server) symlink(c *call) unix.Errno {
	f, name, target, gid := s.dirFid(c), c.d.name(), c.d.str(unix.PathMax-1), c.d.u32()
	if c.d.err != 0 {
		return c.d.err
	}
	return s.makeLink(c, f, name, target, gid)
}

func (s *Server) makeLink(c *call, f *fid, name, target string, gid uint32) unix.Errno {
	if err := retry(func() error { return unix.Symlinkat(target, f.node.fd, name) }); err != 0 {
		return err
	}
	return s.created(c, f, name, unix.S_IFLNK, 0, gid)
}

func (s *Server) mknod(c *call) unix.Errno {
	f, name, mode, major, minor, gid := s.dirFid(c), c.d.name(), c.d.u32(), c.d.u32(), c.d.u32(), c.d.u32()
	if c.d.err != 0 {
		return c.d.err
	}
	typ := mode & unix.S_IFMT
	switch typ {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return unix.EINVAL
	}
	dev := int(unix.Mkdev(major, minor))
	if err := retry(func() error { return unix.Mknodat(f.node.fd, name, typ|mode&0o777, dev) }); err != 0 {
		return err
	}
	return s.created(c, f, name, typ, mode, gid)
}

func (s *Server) mkdir(c *call) unix.Errno {
	f, name, mode, gid := s.dirFid(c), c.d.name(), c.d.u32(), c.d.u32()
	if c.d.err != 0 {
		return c.d.err
	}
	return s.makeDir(c, f, name, mode, gid)
}

func (s *Server) makeDir(c *call, f *fid, name string, mode, gid uint32) unix.Errno {
	if err := retry(func() error { return unix.Mkdirat(f.node.fd, name, mode&0o777) }); err != 0 {
		return err
	}
	return s.created(c, f, name, unix.S_IFDIR, mode, gid)
}

func (s *Server) link(c *call) unix.Errno {
	dir, f, name := s.dirFid(c), s.object(c), c.d.name()
	if c.d.err != 0 {
		return c.d.err
	}
	// AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
	return retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, procPath(f.node.fd), dir.node.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
}

func (s *Server) rename(c *call) unix.Errno {
	f, dir, name := s.object(c), s.dirFid(c), c.d.name()
	if c.d.err != 0 {
		return c.d.err
	}
	if err := s.checkEntry(f); err != 0 {
		return err
	}
	return s.move(f.parent, f.name, dir.node, name)
}

func (s *Server) renameat(c *call) unix.Errno {
	from, oldName, to, newName := s.dirFid(c), c.d.name(), s.dirFid(c), c.d.name()
	if c.d.err != 0 {
		return c.d.err
	}
	return s.move(from.node, oldName, to.node, newName)
}

// move renames an entry and tells the fids that were found there.
func (s *Server) move(from *node, oldName string, to *node, newName string) unix.Errno {
	if err := retry(func() error { return unix.Renameat(from.fd, oldName, to.fd, newName) }); err != 0 {
		return err
	}
	for _, f := range s.fids {
		if f.parent == from && f.name == oldName {
			to.refs++
			s.release(f.parent)
			f.parent, f.name = to, newName
		}
	}
	return 0
}

// checkEntry says whether f's object is still at the entry f was found at.
func (s *Server) checkEntry(f *fid) unix.Errno {
	if f.parent == nil {
		return unix.EBUSY
	}
	n, err := s.lookup(f.parent, f.name)
	if err != 0 {
		return err
	}
	s.release(n)
	if n != f.node {
		return unix.ENOENT
	}
	return 0
}

func (s *Server) unlinkat(c *call) unix.Errno {
	f, name, flags := s.dirFid(c), c.d.name(), c.d.u32()
	if c.d.err != 0 {
		return c.d.err
	}
	if flags&^unlinkRemoveDir != 0 {
		return unix.EINVAL
	}
	return unlink(f.node, name, flags != 0)
}

func unlink(dir *node, name string, isDir bool) unix.Errno {
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
	}
	return retry(func() error { return unix.Unlinkat(dir.fd, name, flags) })
}

// remove deletes the object of a fid and the fid, the latter in any case.
func (s *Server) remove(c *call) unix.Errno {
	f, errno := s.take(c)
	if errno != 0 {
		return errno
	}
	defer s.drop(f)
	switch {
	case f.xattr != nil:
		return unix.EINVAL
	case s.readOnly:
		return unix.EROFS
	}
	if err := s.checkEntry(f); err != 0 {
		return err
	}
	return unlink(f.parent, f.name, f.node.is(unix.S_IFDIR))
}

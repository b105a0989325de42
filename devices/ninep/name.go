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

// created settles the new entry c.name of c.dir, which has the given type, and
// encodes its qid.
func (s *Server) created(c *call, typ, mode uint32) unix.Errno {
	n, err := s.lookup(c.dir.node, c.name)
	if err != 0 {
		return err
	}
	defer s.release(n)
	if !n.is(typ) { // somebody on the host was quicker
		return unix.EEXIST
	}
	s.settle(n, c.dir.uid, c.gid, mode)
	c.e.qid(s.qidOf(&s.st))
	return 0
}

func (s *Server) symlink(c *call) unix.Errno {
	if err := retry(func() error { return unix.Symlinkat(c.text, c.dir.node.fd, c.name) }); err != 0 {
		return err
	}
	return s.created(c, unix.S_IFLNK, 0)
}

func (s *Server) mknod(c *call) unix.Errno {
	typ := c.mode & unix.S_IFMT
	switch typ {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return unix.EINVAL
	}
	dev := int(unix.Mkdev(c.dev[0], c.dev[1]))
	if err := retry(func() error { return unix.Mknodat(c.dir.node.fd, c.name, typ|c.mode&0o777, dev) }); err != 0 {
		return err
	}
	return s.created(c, typ, c.mode)
}

func (s *Server) mkdir(c *call) unix.Errno {
	if err := retry(func() error { return unix.Mkdirat(c.dir.node.fd, c.name, c.mode&0o777) }); err != 0 {
		return err
	}
	return s.created(c, unix.S_IFDIR, c.mode)
}

func (s *Server) link(c *call) unix.Errno {
	// AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
	return retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, procPath(c.f.node.fd), c.dir.node.fd, c.name, unix.AT_SYMLINK_FOLLOW)
	})
}

func (s *Server) rename(c *call) unix.Errno {
	if err := s.checkEntry(c.f); err != 0 {
		return err
	}
	return s.move(c.f.parent, c.f.name, c.dir.node, c.name)
}

func (s *Server) renameat(c *call) unix.Errno {
	return s.move(c.dir.node, c.name, c.to.node, c.newName)
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
	if c.flags&^unlinkRemoveDir != 0 {
		return unix.EINVAL
	}
	return unlink(c.dir.node, c.name, c.flags != 0)
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
	f := c.f
	delete(s.fids, c.id)
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

package ninep

import (
	"math/bits"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID
	// What every step from a directory to an entry must keep to.
	resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS
	// How deep below the root ".." is served.
	maxDepth = 4096
)

// nodeKey identifies an object of the host while a descriptor of it is open.
type nodeKey struct{ dev, ino, mnt uint64 }

// node is an object of the share that fids refer to. There is one for each
// object, however many fids and names it has.
type node struct {
	fd    int // O_PATH
	key   nodeKey
	mode  uint32 // only the type, which never changes
	refs  int
	locks int // entries of Server.locks
}

func (n *node) is(typ uint32) bool { return n.mode == typ }

// fid is what the client calls a fid: an object and what is open of it.
type fid struct {
	node *node
	// The entry it was found at, for Tremove and Trename; parent is nil for
	// the root and for what was reached by "..".
	parent *node
	name   string
	uid    uint32 // the attaching user, noID if not told
	file   int    // descriptor opened for I/O, or -1
	xattr  *xattr // set: the fid is an extended attribute, not a file

	// 9P2000.u reads directories by byte offset: the next one, and the host's
	// position that belongs to it.
	dirOffset uint64
	dirCookie int64
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// openBeneath opens the entry name of the directory dirfd. name is one checked
// component; a symbolic link is opened itself (with O_PATH) or is ELOOP.
func (s *Server) openBeneath(dirfd int, name string, flags int, mode uint32) (int, unix.Errno) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	return s.open(func() (int, error) {
		if s.openat2 {
			return unix.Openat2(dirfd, name, &unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: resolve})
		}
		return unix.Openat(dirfd, name, flags, mode)
	})
}

// open counts the descriptor that f opens.
func (s *Server) open(f func() (int, error)) (int, unix.Errno) {
	if s.fds >= s.maxFDs {
		return -1, unix.EMFILE
	}
	fd, err := retryInt(f)
	if err == 0 {
		s.fds++
	}
	return fd, err
}

// reopen opens the object behind the descriptor fd anew with the given flags.
// What it is was checked on fd and cannot change: this never opens a FIFO or a
// device.
func (s *Server) reopen(fd, flags int) (int, unix.Errno) {
	return s.open(func() (int, error) { return unix.Open(procPath(fd), flags|unix.O_CLOEXEC, 0) })
}

func (s *Server) close(fd int) {
	s.fds--
	_ = unix.Close(fd)
}

// adopt makes the O_PATH descriptor fd a reference to its node and leaves the
// object's attributes in s.st. It owns fd from then on, also when it fails.
func (s *Server) adopt(fd int) (*node, unix.Errno) {
	if err := statx(fd, &s.st); err != 0 {
		s.close(fd)
		return nil, err
	}
	key := keyOf(&s.st)
	if n := s.nodes[key]; n != nil {
		s.close(fd)
		n.refs++
		return n, 0
	}
	n := &node{fd: fd, key: key, mode: uint32(s.st.Mode) & unix.S_IFMT, refs: 1}
	s.nodes[key] = n
	return n, 0
}

func keyOf(st *unix.Statx_t) nodeKey {
	k := nodeKey{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		k.mnt = st.Mnt_id
	}
	return k
}

// lookup returns a reference to the entry name of dir, its attributes in s.st.
func (s *Server) lookup(dir *node, name string) (*node, unix.Errno) {
	fd, err := s.openBeneath(dir.fd, name, unix.O_PATH, 0)
	if err != 0 {
		return nil, err
	}
	return s.adopt(fd)
}

// parent returns a reference to the directory above dir, and the root above
// the root. A directory that is not below the root any more, because somebody
// on the host has moved it away, has the root above it.
func (s *Server) parent(dir *node) (*node, unix.Errno) {
	if dir == s.root || !dir.is(unix.S_IFDIR) {
		return s.rootOr(dir)
	}
	if s.fds+3 > s.maxFDs {
		return nil, unix.EMFILE
	}
	above, err := up(dir.fd)
	if err != 0 {
		return nil, err
	}
	s.fds++
	below, err := s.belowRoot(above)
	if err != 0 || !below {
		s.close(above)
		if err != 0 {
			return nil, err
		}
		return s.rootOr(s.root)
	}
	return s.adopt(above)
}

// belowRoot says whether the directory fd is the root or below it.
func (s *Server) belowRoot(fd int) (bool, unix.Errno) {
	at, last := fd, nodeKey{}
	defer func() {
		if at != fd {
			_ = unix.Close(at)
		}
	}()
	for range maxDepth {
		if err := statx(at, &s.st); err != 0 {
			return false, err
		}
		switch key := keyOf(&s.st); key {
		case s.root.key:
			return true, 0
		case last: // the host's root is above itself
			return false, 0
		default:
			last = key
		}
		above, err := up(at)
		if err != 0 {
			return false, err
		}
		if at != fd {
			_ = unix.Close(at)
		}
		at = above
	}
	return false, unix.ELOOP
}

// up opens the directory above fd, wherever that is.
func up(fd int) (int, unix.Errno) {
	return retryInt(func() (int, error) {
		return unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
}

// rootOr returns a reference to the root if n is the root: a file has no "..".
func (s *Server) rootOr(n *node) (*node, unix.Errno) {
	if n != s.root {
		return nil, unix.ENOTDIR
	}
	if err := statx(n.fd, &s.st); err != 0 {
		return nil, err
	}
	n.refs++
	return n, 0
}

// release gives a reference up.
func (s *Server) release(n *node) {
	if n == nil {
		return
	}
	if n.refs--; n.refs > 0 {
		return
	}
	s.unlockAll(n)
	delete(s.nodes, n.key)
	s.close(n.fd)
}

// drop gives up everything a fid holds.
func (s *Server) drop(f *fid) {
	if f.file >= 0 {
		s.close(f.file)
	}
	if f.xattr != nil {
		s.xattrBytes -= len(f.xattr.buf)
	}
	s.release(f.node)
	s.release(f.parent)
}

// find returns the fid that the next field names. It may be an attribute.
func (s *Server) find(c *call) *fid {
	c.id = c.d.u32()
	f := s.fids[c.id]
	if f == nil {
		c.d.fail(unix.EBADF)
	}
	return f
}

// object returns the fid of a file system object that the next field names. It
// is nil only when c.d.err is set.
func (s *Server) object(c *call) *fid {
	f := s.find(c)
	if f != nil && f.xattr != nil {
		c.d.fail(unix.EINVAL)
		return nil
	}
	return f
}

// vacant says whether id can be given to a new fid.
func (s *Server) vacant(id uint32) unix.Errno {
	switch {
	case id == noID || s.fids[id] != nil:
		return unix.EINVAL
	case len(s.fids) >= maxFids:
		return unix.ENFILE
	}
	return 0
}

func (s *Server) attach(c *call) unix.Errno {
	c.d.str(maxName)      // uname
	c.d.str(unix.PathMax) // aname: the share has one tree
	uid := c.d.u32()
	switch {
	case c.d.err != 0:
		return c.d.err
	case c.afid != noID: // nobody got one from Tauth
		return unix.EBADF
	}
	if err := s.vacant(c.id); err != 0 {
		return err
	}
	root, err := s.rootOr(s.root)
	if err != 0 {
		return err
	}
	s.fids[c.id] = &fid{node: root, uid: uid, file: -1}
	c.e.qid(s.qidOf(&s.st))
	return 0
}

func (s *Server) walk(c *call) unix.Errno {
	f, id, count := c.f, c.id, int(c.count)
	if count > maxWalk {
		return unix.EINVAL
	}
	if s.fids[id] != f {
		if err := s.vacant(id); err != 0 {
			return err
		}
	} else if f.file >= 0 {
		return unix.EBUSY
	}
	// The names so far lead to at, the entry name of from (nil: none known).
	at, from, name := f.node, f.parent, f.name
	at.refs++
	if from != nil {
		from.refs++
	}
	done := 0
	c.e.u16(0)
	for ; done < count; done++ {
		step := c.d.str(maxName)
		next, err := s.step(at, step, c.d.err)
		if err != 0 {
			s.release(at)
			s.release(from)
			if done == 0 || c.d.err != 0 {
				return err
			}
			c.e.b[headerSize] = byte(done) // the client sees how far it got
			return 0
		}
		switch step {
		case ".":
			s.release(at)
		case "..":
			s.release(at)
			s.release(from)
			from, name = nil, ""
		default:
			s.release(from)
			from, name = at, step
		}
		at = next
		c.e.qid(s.qidOf(&s.st))
	}
	c.e.b[headerSize] = byte(done)
	if s.fids[id] == f {
		s.drop(f)
	}
	s.fids[id] = &fid{node: at, parent: from, name: name, uid: f.uid, file: -1}
	return 0
}

// step walks one name from at and returns a reference to what is there, its
// attributes in s.st.
func (s *Server) step(at *node, name string, bad unix.Errno) (*node, unix.Errno) {
	switch {
	case bad != 0:
		return nil, bad
	case name == "..":
		return s.parent(at)
	case name == ".":
		if err := statx(at.fd, &s.st); err != 0 {
			return nil, err
		}
		at.refs++
		return at, 0
	case name == "" || strings.Contains(name, "/"):
		return nil, unix.ENOENT
	}
	return s.lookup(at, name)
}

func (s *Server) clunk(c *call) unix.Errno {
	delete(s.fids, c.id)
	err := s.storeXattr(c.f)
	s.drop(c.f)
	return err
}

// qidOf identifies the object with the attributes st.
func (s *Server) qidOf(st *unix.Statx_t) qid {
	q := qid{typ: qtFile, version: uint32(st.Mtime.Sec) ^ uint32(st.Size<<8)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		q.typ = qtDir
	case unix.S_IFLNK:
		q.typ = qtSymlink
	}
	q.path = s.qidPath(unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino)
	return q
}

// qidPath is the inode number on the root's file system, and on others that
// are mounted below it something else that is as stable.
func (s *Server) qidPath(dev, ino uint64) uint64 {
	return ino ^ bits.Reverse64(dev^s.root.key.dev)
}

package ninep

import "golang.org/x/sys/unix"

// request is how one request is laid out and served.
type request struct {
	fields  string // a letter for each field, as decode knows them
	changes bool   // refused by a read-only share
	serve   func(*Server, *call) unix.Errno
}

const changes = true

// requests is every request that is served, by its number: 9P2000, its
// dialects' additions, and of 9P2000.u what differs (Linux net/9p/protocol.c,
// http://ericvh.github.io/9p-rfc/rfc9p2000.u.html).
var requests = [...]request{
	tVersion: {"ct", false, (*Server).version},
	tAttach:  {"ij", false, (*Server).attach},
	tFlush:   {"", false, (*Server).flush},
	tWalk:    {"fiw", false, (*Server).walk},
	tRead:    {"xoc", false, (*Server).read},
	tWrite:   {"xoc", changes, (*Server).write},
	tClunk:   {"x", false, (*Server).clunk},
	tRemove:  {"x", false, (*Server).remove},

	tStatfs:      {"f", false, (*Server).statfs},
	tLopen:       {"fF", false, (*Server).lopen},
	tLcreate:     {"dnFmg", changes, (*Server).lcreate},
	tSymlink:     {"dnpg", changes, (*Server).symlink},
	tMknod:       {"dnmMMg", changes, (*Server).mknod},
	tRename:      {"fdn", changes, (*Server).rename},
	tReadlink:    {"f", false, (*Server).readlink},
	tGetattr:     {"fo", false, (*Server).getattr},
	tSetattr:     {"f", changes, (*Server).setattr},
	tXattrwalk:   {"fit", false, (*Server).xattrwalk},
	tXattrcreate: {"ftoF", changes, (*Server).xattrcreate},
	tReaddir:     {"foc", false, (*Server).readdir},
	tFsync:       {"f?F", false, (*Server).fsync},
	tLock:        {"f", false, (*Server).lock},
	tGetlock:     {"f", false, (*Server).getlock},
	tLink:        {"dfn", changes, (*Server).link},
	tMkdir:       {"dnmg", changes, (*Server).mkdir},
	tRenameat:    {"dnDN", changes, (*Server).renameat},
	tUnlinkat:    {"dnF", changes, (*Server).unlinkat},

	tOpen:   {"fb", false, (*Server).uopen},
	tCreate: {"dnmb?p", changes, (*Server).ucreate},
	tStat:   {"f", false, (*Server).ustat},
	tWstat:  {"f", false, (*Server).uwstat},
}

// fields are the fields of requests; a message sets those it has.
type fields struct {
	f             *fid // the object; of "x" it may be an attribute
	dir, to       *fid // directories
	name, newName string
	text          string // a version, a target, an attribute's name
	id, afid      uint32 // for a new fid, or that of "x"
	flags, mode   uint32
	dev           [2]uint32 // major, minor
	gid, count    uint32
	off           uint64 // or a size or mask of 8 bytes
	umode         uint8
}

// decode takes the fields off the request. It stops at the first that is
// missing or not allowed.
func (s *Server) decode(c *call, layout string) {
	d := &c.d
	c.gid = noID
	for i := 0; i < len(layout) && d.err == 0; i++ {
		switch layout[i] {
		case '?': // the rest may be missing
			if len(d.b) == 0 {
				return
			}
		case 'f':
			c.f = s.object(c)
		case 'x':
			c.f = s.find(c)
		case 'd':
			c.dir = s.dirFid(c)
		case 'D':
			c.to = s.dirFid(c)
		case 'n':
			c.name = d.name()
		case 'N':
			c.newName = d.name()
		case 't':
			c.text = d.str(maxName)
		case 'p':
			c.text = d.str(unix.PathMax - 1)
		case 'i':
			c.id = d.u32()
		case 'j':
			c.afid = d.u32()
		case 'F':
			c.flags = d.u32()
		case 'm':
			c.mode = d.u32()
		case 'M':
			c.dev[0], c.dev[1] = c.dev[1], d.u32()
		case 'g':
			c.gid = d.u32()
		case 'c':
			c.count = d.u32()
		case 'w':
			c.count = uint32(d.u16())
		case 'o':
			c.off = d.u64()
		case 'b':
			c.umode = d.u8()
		}
	}
}

// flush has nothing to do: requests are served in order, the old one is answered.
func (s *Server) flush(*call) unix.Errno { return 0 }

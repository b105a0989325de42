package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// VM is what a server controls.
type VM interface {
	Status(counters bool) Status
	Pause()
	Resume()
	Terminate() // as SIGTERM does
	SetBalloon(bytes uint64) error
	Debug(d Debug) (dump string, err error)
	Console() (*Attachment, error)
}

// maxRequest bounds a line from a client.
const maxRequest = 4096

// maxClients bounds the connections of one server.
const maxClients = 64

// Server answers on the socket of one VM.
type Server struct {
	vm     VM
	listen *net.UnixListener

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// Serve makes the socket of a name in dir and answers on it until Close. A
// socket that a killed monitor left behind is replaced; one that answers is an
// error.
func Serve(dir, name string, vm VM) (*Server, error) {
	p, err := path(dir, name)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(p); err == nil {
		if !stale(p) {
			return nil, fmt.Errorf("name %q: a running VM has it: give another by --name", name)
		}
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	// The mode is the socket's from its first moment: the directory is ours alone.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(p, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &Server{vm: vm, listen: l, conns: map[net.Conn]bool{}}
	go s.accept()
	return s, nil
}

// Close removes the socket and ends all connections.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	return s.listen.Close()
}

func (s *Server) accept() {
	for {
		c, err := s.listen.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed || len(s.conns) == maxClients {
			_ = c.Close()
		} else {
			s.conns[c] = true
			go s.serve(c)
		}
		s.mu.Unlock()
	}
}

func (s *Server) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	r := bufio.NewReaderSize(c, maxRequest)
	w := json.NewEncoder(c)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				_ = w.Encode(Reply{Error: fmt.Sprintf("a request has at most %d bytes", maxRequest)})
			}
			return
		}
		var q Request
		if err := json.Unmarshal(line, &q); err != nil {
			_ = w.Encode(Reply{Error: "not a request: " + err.Error()})
			return
		}
		reply, attached := s.answer(q)
		if w.Encode(reply) != nil || attached != nil {
			if attached != nil {
				attached.carry(r, c)
			}
			return
		}
	}
}

func (s *Server) answer(q Request) (Reply, *Attachment) {
	failed := func(err error) Reply {
		if err != nil {
			return Reply{Error: err.Error()}
		}
		return Reply{}
	}
	switch q.Op {
	case OpStatus, OpStats:
		st := s.vm.Status(q.Op == OpStats)
		return Reply{Status: &st}, nil
	case OpPause:
		s.vm.Pause()
	case OpResume:
		s.vm.Resume()
	case OpStop:
		s.vm.Terminate()
	case OpBalloon:
		if q.MiB < 0 || q.MiB > 1<<30 {
			return Reply{Error: fmt.Sprintf("balloon of %d MiB", q.MiB)}, nil
		}
		return failed(s.vm.SetBalloon(uint64(q.MiB) << 20)), nil
	case OpDebug:
		if q.Debug == nil || len(q.Debug.SysRq) > 1 {
			return Reply{Error: "debug: say what, and at most one key"}, nil
		}
		dump, err := s.vm.Debug(*q.Debug)
		r := failed(err)
		r.Dump = dump
		return r, nil
	case OpConsole:
		a, err := s.vm.Console()
		return failed(err), a
	default:
		return Reply{Error: fmt.Sprintf("unknown request %q", q.Op)}, nil
	}
	return Reply{}, nil
}

// lock keeps other processes from making and removing sockets in dir.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: lock: %w", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// stale reports whether nobody listens on a socket any more.
func stale(p string) bool {
	c, err := net.Dial("unix", p)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

func ours(st os.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

// Attachment is a client's hold of a console.
type Attachment struct {
	Output io.Reader         // what the guest prints; ends with the VM
	Input  func([]byte) bool // what the client types; false once nobody reads it
	Detach func()            // gives it up; Output ends
}

// carry moves bytes both ways until either side ends.
func (a *Attachment) carry(r io.Reader, c net.Conn) {
	go func() {
		buf := make([]byte, 256)
		for {
			n, err := r.Read(buf)
			if n > 0 && !a.Input(buf[:n]) || err != nil {
				return // the client may still look on
			}
		}
	}()
	_, _ = io.Copy(c, a.Output)
	a.Detach()
}

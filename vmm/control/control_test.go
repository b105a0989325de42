package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a VM that notes what it is told.
type fake struct {
	mu      sync.Mutex
	state   State
	stopped int
	balloon uint64
	console *Console
	typed   chan string
}

func (f *fake) Status(counters bool) Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{Name: "one", PID: 7, State: f.state, CPUs: 2}
	if counters {
		s.Stats = &Stats{Exits: []uint64{5, 6}}
	}
	return s
}

func (f *fake) set(s State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
}

func (f *fake) Pause()     { f.set(Paused) }
func (f *fake) Resume()    { f.set(Running) }
func (f *fake) Terminate() { f.stopped++ }

func (f *fake) SetBalloon(n uint64) error {
	if n == 1<<20 {
		return errors.New("no balloon")
	}
	f.balloon = n
	return nil
}

func (f *fake) Debug(d Debug) (string, error) {
	if d.NMI != nil {
		return "", fmt.Errorf("no vCPU %d", *d.NMI)
	}
	return d.SysRq + "!", nil
}

func (f *fake) Console() (*Attachment, error) {
	return f.console.Attach(func(p []byte) bool { f.typed <- string(p); return true }), nil
}

func newFake() *fake {
	return &fake{state: Running, console: NewConsole(io.Discard), typed: make(chan string, 8)}
}

func serve(t *testing.T, dir, name string, vm VM) *Server {
	t.Helper()
	s, err := Serve(dir, name, vm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func dial(t *testing.T, dir, name string) *Client {
	t.Helper()
	c, err := Dial(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRequests(t *testing.T) {
	dir, vm := t.TempDir(), newFake()
	serve(t, dir, "one", vm)
	c := dial(t, dir, "one")
	do := func(q Request) (Reply, error) { return c.Do(q, 5*time.Second) }
	if r, err := do(Request{Op: OpPause}); err != nil || r.Status != nil {
		t.Error(r, err)
	}
	if r, err := do(Request{Op: OpStatus}); err != nil || r.Status.State != Paused || r.Status.CPUs != 2 || r.Status.Stats != nil {
		t.Error(r, err)
	}
	if r, err := do(Request{Op: OpResume}); err != nil {
		t.Error(r, err)
	}
	if r, err := do(Request{Op: OpStats}); err != nil || r.Status.State != Running || len(r.Status.Stats.Exits) != 2 {
		t.Error(r, err)
	}
	if r, err := do(Request{Op: OpDebug, Debug: &Debug{SysRq: "h"}}); err != nil || r.Dump != "h!" {
		t.Error(r, err)
	}
	two := 2
	if _, err := do(Request{Op: OpBalloon, MiB: 3}); err != nil || vm.balloon != 3<<20 {
		t.Error(vm.balloon, err)
	}
	for _, c := range []struct {
		q   Request
		say string
	}{{Request{Op: OpBalloon, MiB: 1}, "no balloon"}, {Request{Op: OpBalloon, MiB: -1}, "-1 MiB"},
		{Request{Op: OpDebug}, "say what"}, {Request{Op: OpDebug, Debug: &Debug{NMI: &two}}, "no vCPU 2"}, {Request{Op: "dance"}, `unknown request "dance"`}} {
		if _, err := do(c.q); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%+v: %v", c.q, err)
		}
	}
	if _, err := do(Request{Op: OpStop}); err != nil || vm.stopped != 1 {
		t.Error(vm.stopped, err)
	}
}

// What is no request ends the connection, not the server.
func TestRubbish(t *testing.T) {
	dir := t.TempDir()
	serve(t, dir, "one", newFake())
	for _, line := range []string{"hello\n", "[]\n", strings.Repeat("x", maxRequest) + "\n", "{\"op\":\"status\"", "\x00\n"} {
		conn, err := net.Dial("unix", filepath.Join(dir, "one.sock"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if strings.HasSuffix(line, "\n") {
			var r Reply
			if err := json.Unmarshal(bytes.TrimSpace(answer), &r); err != nil || r.Error == "" {
				t.Errorf("%.10q: %s %v", line, answer, err)
			}
		} else if len(answer) > 0 {
			t.Errorf("%.10q: %s %v", line, answer, err)
		}
		_ = conn.Close()
	}
	if _, err := dial(t, dir, "one").Do(Request{Op: OpStatus}, 5*time.Second); err != nil {
		t.Error(err)
	}
}

func TestNamesAndStaleSockets(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir, "one", newFake())
	if _, err := Serve(dir, "one", newFake()); err == nil || !strings.Contains(err.Error(), "a running VM has it") {
		t.Error(err)
	}
	st, err := os.Stat(filepath.Join(dir, "one.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	for _, name := range []string{"", ".one", "a/b", strings.Repeat("n", 100), "a\nb"} {
		if _, err := Serve(dir, name, newFake()); err == nil {
			t.Errorf("%q taken as a name", name)
		}
	}
	// As kill -9 leaves it: the file stays, nobody listens.
	s.listen.SetUnlinkOnClose(false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "one.sock")); err != nil {
		t.Fatal(err)
	}
	serve(t, dir, "two", newFake())
	vms, removed, err := List(dir)
	if err != nil || len(vms) != 1 || vms[0].PID != 7 || len(removed) != 1 || removed[0] != "one.sock" {
		t.Error(vms, removed, err)
	}
	if _, err := Dial(dir, "one"); err == nil || !strings.Contains(err.Error(), "gvmm ps") {
		t.Error(err)
	}
}

// Of many that want one name at once, one gets it, over and over.
func TestNameRace(t *testing.T) {
	dir := t.TempDir()
	for range 20 {
		var got sync.Map
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if s, err := Serve(dir, "one", newFake()); err == nil {
					got.Store(i, s)
				}
			})
		}
		wg.Wait()
		n := 0
		for _, s := range got.Range {
			n++
			s.(*Server).listen.SetUnlinkOnClose(false)
			if err := s.(*Server).Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n != 1 {
			t.Fatalf("%d servers have one name", n)
		}
	}
}

func TestConsole(t *testing.T) {
	dir, vm := t.TempDir(), newFake()
	s := serve(t, dir, "one", vm)
	typed, typing := io.Pipe()
	seen, printing := io.Pipe()
	ended := make(chan error, 1)
	c := dial(t, dir, "one")
	go func() { ended <- c.Carry(typed, printing) }()
	if _, err := io.WriteString(typing, "help\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-vm.typed; got != "help\n" {
		t.Errorf("typed %q", got)
	}
	if _, err := vm.console.Write([]byte("no help here\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(seen).ReadString('\n'); err != nil || line != "no help here\n" {
		t.Error(line, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A client that reads nothing costs the guest nothing.
func TestSlowOnlooker(t *testing.T) {
	c := NewConsole(io.Discard)
	a := c.Attach(func([]byte) bool { return true })
	line := []byte(fmt.Sprintln(strings.Repeat("x", 1023)))
	for range 1000 {
		if _, err := c.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	a.Detach()
	got, err := io.ReadAll(a.Output)
	if err != nil || len(got) != consoleBacklog {
		t.Error(len(got), err)
	}
}

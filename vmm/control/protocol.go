package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Op is what a request asks for.
type Op string

// The requests.
const (
	OpStatus  Op = "status"  // what the VM is and does
	OpStats   Op = "stats"   // likewise, with counters
	OpStop    Op = "stop"    // end it, as SIGTERM does; the reply comes first
	OpPause   Op = "pause"   // the reply comes when no vCPU runs and all queues stand
	OpResume  Op = "resume"  //
	OpBalloon Op = "balloon" // set the size of the balloon
	OpConsole Op = "console" // the connection becomes the console
	OpDebug   Op = "debug"   // look at vCPUs, poke the guest
)

// Request is one line from a client.
type Request struct {
	Op  Op  `json:"op"`
	MiB int `json:"mib,omitempty"` // of a balloon

	Debug *Debug `json:"debug,omitempty"`
}

// Debug is what a debug request is to do, in this order. The vCPUs stand still
// for the first two.
type Debug struct {
	Dump  bool   `json:"dump,omitempty"`  // describe every vCPU
	NMI   *int   `json:"nmi,omitempty"`   // inject an NMI into this one
	SysRq string `json:"sysrq,omitempty"` // send a break and this key on the serial console
}

// Reply is one line to a client. Error is "" if what was asked was done.
type Reply struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"` // to status and stats
	Dump   string  `json:"dump,omitempty"`   // to debug
}

// State is whether a VM runs.
type State string

// The states.
const (
	Running State = "running"
	Paused  State = "paused"
)

// Status describes a VM.
type Status struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	State   State  `json:"state"`
	Image   string `json:"image"`
	Machine string `json:"machine"`
	CPUs    int    `json:"cpus"`
	Memory  uint64 `json:"memory"`          // bytes
	Uptime  int64  `json:"uptime_ms"`       // since the first instruction
	Stats   *Stats `json:"stats,omitempty"` // to stats
}

// Stats are a VM's counters.
type Stats struct {
	Exits    []uint64 `json:"exits"`             // of each vCPU, to the monitor
	Resident uint64   `json:"resident"`          // bytes of the monitor, guest memory included
	CPUTime  int64    `json:"cpu_ms"`            // of the monitor, guest included
	Balloon  *Balloon `json:"balloon,omitempty"` // where there is one
}

// Balloon is the state of a balloon, in bytes. What the guest has not reported
// is missing.
type Balloon struct {
	Target uint64            `json:"target"`
	Actual uint64            `json:"actual"`
	Guest  map[string]uint64 `json:"guest,omitempty"` // the guest's memory statistics by name
}

// Dir returns the directory of the sockets and makes it if need be: gvmm in
// XDG_RUNTIME_DIR, or in /run for root, or in the directory of temporary files.
func Dir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	name := "gvmm"
	if base == "" {
		if base = "/run"; os.Geteuid() != 0 {
			base, name = os.TempDir(), fmt.Sprintf("gvmm-%d", os.Geteuid())
		}
	}
	return makeDir(filepath.Join(base, name))
}

// makeDir makes a directory that only this user can use, or makes sure of that.
func makeDir(dir string) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if !st.IsDir() || st.Mode().Perm()&0o077 != 0 || !ours(st) {
		return "", fmt.Errorf("%s: not a directory of this user's own (mode 0700): control sockets do not go there", dir)
	}
	return dir, nil
}

// suffix is what socket files end in.
const suffix = ".sock"

// maxPath is the longest path of a socket (sockaddr_un).
const maxPath = 107

// path returns the socket of a name.
func path(dir, name string) (string, error) {
	p := filepath.Join(dir, name+suffix)
	switch {
	case name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00\n"):
		return "", fmt.Errorf("name %q: give one without slashes that does not begin with a dot", name)
	case len(p) > maxPath:
		return "", fmt.Errorf("name %q: its socket's path would have %d bytes, sockets have at most %d", name, len(p), maxPath)
	}
	return p, nil
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gvmm/gvmm/vmm/control"
)

// TestMain makes the test binary, found as "gvmm" in PATH, a stand-in for gvmm.
func TestMain(m *testing.M) {
	if how := os.Getenv("FAKE_GVMM"); how != "" && len(os.Args) > 1 && os.Args[1] == "run" {
		os.Exit(fakeGVMM(how))
	}
	os.Exit(m.Run())
}

// fakeVM is what the stand-in serves. Embedded, the interface may grow.
type fakeVM struct {
	control.VM
	mu      sync.Mutex
	paused  bool
	balloon uint64
}

func (f *fakeVM) Status(bool) control.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := control.Status{State: control.Running, Stats: &control.Stats{Balloon: &control.Balloon{
		Target: f.balloon, Actual: f.balloon, Guest: map[string]uint64{"free": 7, "swap_in": 3},
	}}}
	if f.paused {
		s.State = control.Paused
	}
	return s
}

func (f *fakeVM) set(paused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = paused
}
func (f *fakeVM) Pause()  { f.set(true) }
func (f *fakeVM) Resume() { f.set(false) }
func (f *fakeVM) SetBalloon(n uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.balloon = n
	return nil
}

func fakeGVMM(how string) int {
	switch how {
	case "quick":
		return 0
	case "crash":
		fmt.Fprintln(os.Stderr, "gvmm: triple fault")
		return 139
	case "refuse":
		fmt.Fprintln(os.Stderr, "gvmm: no KVM here")
		return 126
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	dir, err := control.Dir()
	if err != nil {
		return 125
	}
	i := slices.IndexFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "--name=") })
	s, err := control.Serve(dir, strings.TrimPrefix(os.Args[i], "--name="), &fakeVM{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	<-c
	_ = s.Close()
	fmt.Fprintln(os.Stderr, "gvmm: terminated")
	return 143
}

// fake puts the stand-in where the program finds gvmm.
func fake(t *testing.T, how string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "gvmm"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAKE_GVMM", how)
	t.Setenv("PATH", dir)
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
}

// newServer is a server without a socket, for calls.
func newServer(t *testing.T) *server {
	t.Helper()
	return &server{
		id: "test", name: "test", limit: 1000, log: &logger{out: io.Discard}, metrics: newMetrics("test"), ended: make(chan *machine, 1),
		r: resources{Drives: []drive{}, Nets: []nic{}, Machine: machineConfig{CPUs: 1, MiB: 128, HugePages: "None"}},
	}
}

// started makes s a server whose VM runs, in this process.
func (s *server) started(t *testing.T) *fakeVM {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dir, err := control.Dir()
	if err != nil {
		t.Fatal(err)
	}
	vm := &fakeVM{}
	c, err := control.Serve(dir, s.name, vm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s.vm.Store(&machine{name: s.name})
	s.r.Balloon, s.stats = &balloon{Interval: 1}, true
	return vm
}

type answer struct {
	code   int
	body   map[string]any
	fault  string
	header http.Header
}

type recorder struct {
	header http.Header
	code   int
	bytes.Buffer
}

func (r *recorder) Header() http.Header  { return r.header }
func (r *recorder) WriteHeader(code int) { r.code = code }

// call makes a request "METHOD /path" and reads the answer.
func (s *server) call(t *testing.T, what, body string) answer {
	t.Helper()
	method, path, _ := strings.Cut(what, " ")
	q, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	w := &recorder{header: http.Header{}}
	s.ServeHTTP(w, q)
	a := answer{code: w.code, header: w.header}
	if w.Len() > 0 {
		if err := json.Unmarshal(w.Bytes(), &a.body); err != nil {
			t.Fatalf("%s: the answer is no object: %q", what, w)
		}
		if ct := w.header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: type %q", what, ct)
		}
	}
	a.fault, _ = a.body["fault_message"].(string)
	return a
}

// TestContract makes every call of Firecracker's OpenAPI description: it must
// be answered with the status that stands there, or refused by name.
func TestContract(t *testing.T) {
	list, err := os.ReadFile("testdata/openapi.txt")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const after = "after " // the call is one after the start
	const no = "no "       // gvmm has no such thing, which the answer must say
	bodies := map[string]string{
		"GET /": "", "GET /version": "", "GET /machine-config": "", "GET /vm/config": "",
		"PUT /actions": `after {"action_type": "FlushMetrics"}`,
		"GET /balloon": "after ", "PUT /balloon": `{"amount_mib": 1, "deflate_on_oom": true}`, "PATCH /balloon": `after {"amount_mib": 2}`,
		"GET /balloon/statistics": "after ", "PATCH /balloon/statistics": `after {"stats_polling_interval_s": 2}`,
		"PATCH /balloon/hinting/start": "after no ", "GET /balloon/hinting/status": "after no ", "PATCH /balloon/hinting/stop": "after no ",
		"PUT /boot-source":         `{"kernel_image_path": "FILE", "initrd_path": "FILE", "boot_args": "a"}`,
		"PUT /cpu-config":          `no {"cpuid_modifiers": []}`,
		"PUT /drives/{drive_id}":   `{"drive_id": "x", "is_root_device": true, "path_on_host": "FILE", "is_read_only": true, "rate_limiter": {}}`,
		"PATCH /drives/{drive_id}": `after no {"drive_id": "x", "path_on_host": "FILE"}`,
		"PUT /pmem/{id}":           `no {"id": "x"}`, "PATCH /pmem/{id}": `after no {"id": "x"}`,
		"PUT /logger":         `{"log_path": "FILE", "level": "Debug", "show_level": true, "show_log_origin": false, "module": "x"}`,
		"PUT /machine-config": `{"vcpu_count": 2, "mem_size_mib": 64, "smt": true, "track_dirty_pages": false}`, "PATCH /machine-config": `{"vcpu_count": 2}`,
		"PUT /metrics": `{"metrics_path": "FILE"}`,
		"PUT /mmds":    "no {}", "PATCH /mmds": "no {}", "GET /mmds": "no ", "PUT /mmds/config": `no {"network_interfaces": ["x"]}`,
		"PUT /entropy": "{}", "PUT /serial": `no {"serial_out_path": "FILE"}`,
		"PUT /hotplug/memory": `no {"total_size_mib": 128}`, "PATCH /hotplug/memory": `after no {"requested_size_mib": 1}`, "GET /hotplug/memory": "after no ",
		"PUT /network-interfaces/{iface_id}":   `{"iface_id": "x", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01"}`,
		"PATCH /network-interfaces/{iface_id}": `after {"iface_id": "x"}`,
		"PUT /snapshot/create":                 `after no {"mem_file_path": "m", "snapshot_path": "s"}`, "PUT /snapshot/load": `no {"snapshot_path": "s"}`,
		"PATCH /vm":  `after {"state": "Paused"}`,
		"PUT /vsock": `{"guest_cid": 3, "uds_path": "FILE.sock", "vsock_id": "1"}`,
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if f[0] == "#" {
			continue
		}
		name := f[0] + " " + f[1]
		t.Run(name, func(t *testing.T) {
			body, ok := bodies[name]
			if !ok {
				t.Fatal("the description has a call that this test does not make")
			}
			s := newServer(t)
			body, late := strings.CutPrefix(body, after)
			body, refused := strings.CutPrefix(body, no)
			if late {
				if body != "" && f[0] != "GET" { // before the start it is refused
					if a := s.call(t, "PUT /x", body); a.code != 400 {
						t.Errorf("an unknown path: %+v", a)
					}
				}
				s.started(t)
			}
			path := strings.NewReplacer("{drive_id}", "x", "{iface_id}", "x", "{id}", "x").Replace(f[1])
			a := s.call(t, f[0]+" "+path, strings.ReplaceAll(body, "FILE", file))
			switch {
			case refused && (a.code != 400 || !strings.Contains(a.fault, "not supported: gvmm has no")):
				t.Errorf("%+v: want it refused", a)
			case !refused && fmt.Sprint(a.code) != f[2]:
				t.Errorf("%+v: want %s", a, f[2])
			case f[2] == "204" && !refused && a.body != nil:
				t.Errorf("an answer of no content has %v", a.body)
			}
			if refused || f[0] == "GET" {
				return
			}
			// The other side of the start.
			other := newServer(t)
			if !late {
				other.started(t)
			}
			if a := other.call(t, f[0]+" "+path, strings.ReplaceAll(body, "FILE", file)); a.code != 400 || !strings.Contains(a.fault, "the microVM") {
				t.Errorf("on the wrong side of the start: %+v", a)
			}
			if a := s.call(t, f[0]+" "+path, `{"nonsense": 1}`); a.code != 400 || !strings.Contains(a.fault, "nonsense") {
				t.Errorf("an unknown field: %+v", a)
			}
			if a := s.call(t, f[0]+" "+path, ""); a.code != 400 || !strings.HasPrefix(a.fault, "Empty "+f[0]) {
				t.Errorf("no body: %+v", a)
			}
		})
		delete(bodies, name)
	}
	for name := range bodies {
		t.Errorf("%s is not in the description", name)
	}
}

// TestFaults holds refusals to the words that tell why.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	file, odd := filepath.Join(dir, "file"), filepath.Join(dir, "a,b")
	for _, f := range []string{file, odd} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ what, body, want string }{
		{"PUT /boot-source", `{"kernel_image_path": "/nowhere"}`, "kernel file cannot be opened"},
		{"PUT /boot-source", `{"kernel_image_path": ""}`, "kernel file cannot be opened"},
		{"PUT /boot-source", `{"kernel_image_path": "FILE", "initrd_path": "/nowhere"}`, "initrd"},
		{"PUT /boot-source", `{"kernel_image_path": null}`, "missing field `kernel_image_path`"},
		{"PUT /boot-source", `{"Kernel_Image_Path": "FILE"}`, "missing field"},
		{"PUT /boot-source", `{"kernel_image_path": "FILE", "Boot_Args": ""}`, "unknown field `Boot_Args`"},
		{"PUT /boot-source", `{"kernel_image_path": "FILE", "boot_args": "a\u0000b"}`, "NUL"},
		{"PUT /boot-source", `{"kernel_image_path": "FILE"} x`, "deserializing"},
		{"PUT /boot-source", `[]`, "deserializing"}, {"PUT /boot-source", `null`, "deserializing"}, {"PUT /boot-source", `{`, "deserializing"},
		{"PUT /machine-config", `{"vcpu_count": 1}`, "missing field `mem_size_mib`"},
		{"PUT /machine-config", `{"vcpu_count": 0, "mem_size_mib": 1}`, "vCPUs"}, {"PUT /machine-config", `{"vcpu_count": 33, "mem_size_mib": 1}`, "vCPUs"},
		{"PUT /machine-config", `{"vcpu_count": 3, "mem_size_mib": 1, "smt": true}`, "vCPUs"}, {"PUT /machine-config", `{"vcpu_count": -1, "mem_size_mib": 1}`, "deserializing"},
		{"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": 0}`, "memory size"},
		{"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": "2M"}`, "huge pages"}, {"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": "1G"}`, "unknown variant"},
		{"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": 2, "cpu_template": "T2"}`, "CPU templates"},
		{"PATCH /machine-config", `{}`, "Empty PATCH"},
		{"PUT /drives/x", `{"drive_id": "y", "is_root_device": false}`, "does not match"}, {"PUT /drives/a-b", `{}`, "alphanumeric"}, {"PUT /drives", `{}`, "cannot be empty"},
		{"PUT /drives/x", `{"drive_id": "x", "is_root_device": false, "path_on_host": "/nowhere"}`, "no such file"},
		{"PUT /drives/x", `{"drive_id": "x", "is_root_device": false, "path_on_host": "ODD"}`, "comma"},
		{"PUT /drives/x", `{"drive_id": "x", "is_root_device": false, "socket": "FILE"}`, "vhost-user"},
		{"PUT /drives/x", `{"drive_id": "x", "is_root_device": false, "path_on_host": "FILE", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}`, "rate limiters"},
		{"PUT /network-interfaces/x", `{"iface_id": "x", "host_dev_name": "tap0", "guest_mac": "x"}`, "guest_mac"},
		{"PUT /network-interfaces/x", `{"iface_id": "x", "host_dev_name": "tap,if=eth0"}`, "tap"}, {"PUT /network-interfaces/x", `{"iface_id": "x", "host_dev_name": "tap0", "mtu": 9000}`, "MTU"},
		{"PUT /vsock", `{"guest_cid": 2, "uds_path": "x"}`, "guest_cid"}, {"PUT /vsock", `{"guest_cid": 3, "uds_path": "FILE"}`, "exists"},
		{"PUT /balloon", `{"amount_mib": 129, "deflate_on_oom": true}`, "too large"}, {"PUT /balloon", `{"amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true}`, "hinting"},
		{"GET /balloon", "", "No balloon"},
		{"PUT /actions", `{"action_type": "InstanceStart"}`, "without kernel"}, {"PUT /actions", `{"action_type": "SendCtrlAltDel"}`, "before starting"}, {"PUT /actions", `{"action_type": "Dance"}`, "unknown variant `Dance`"},
		{"PUT /logger", `{"level": "loud"}`, "loud"}, {"PUT /logger", `{"log_path": "/nowhere/x"}`, "no such file"}, {"PUT /metrics", `{"metrics_path": "/nowhere/x"}`, "no such file"},
		{"GET /version", "{}", "GET request cannot have a body"}, {"GET /vm", "", "Invalid request"}, {"GET /nowhere", "", "Invalid request"}, {"POST /actions", "{}", "Invalid request"},
		{"DELETE /drives/x", "", "before starting"},
	} {
		s := newServer(t)
		a := s.call(t, c.what, strings.NewReplacer("FILE", file, "ODD", odd).Replace(c.body))
		if a.code != 400 || !strings.Contains(a.fault, c.want) || len(a.body) != 1 {
			t.Errorf("%s %s:\n%+v, want 400 with %q", c.what, c.body, a, c.want)
		}
		if r := newServer(t).r; fmt.Sprintf("%+v", s.r) != fmt.Sprintf("%+v", r) {
			t.Errorf("%s %s: refused, and yet it changed the configuration: %+v", c.what, c.body, s.r)
		}
	}
	if a := newServer(t).call(t, "PUT /drives/x", strings.Repeat(" ", 1001)); a.code != 413 {
		t.Errorf("a body that is too large: %+v", a)
	}
}

// TestRunning pauses, resumes and watches.
func TestRunning(t *testing.T) {
	s := newServer(t)
	vm := s.started(t)
	state := func(want string) {
		t.Helper()
		if a := s.call(t, "GET /", ""); a.body["state"] != want || a.body["id"] != "test" {
			t.Errorf("%+v, want %s", a, want)
		}
	}
	state("Running")
	for call, want := range map[string]string{"Paused": "Paused", "Resumed": "Running"} {
		if a := s.call(t, "PATCH /vm", `{"state": "`+call+`"}`); a.code != 204 {
			t.Errorf("%s: %+v", call, a)
		}
		state(want)
	}
	if a := s.call(t, "PATCH /balloon", `{"amount_mib": 3}`); a.code != 204 || vm.Status(true).Stats.Balloon.Target != 3<<20 {
		t.Errorf("balloon: %+v", a)
	}
	a := s.call(t, "GET /balloon/statistics", "")
	for k, want := range map[string]float64{"target_mib": 3, "actual_pages": 768, "free_memory": 7, "swap_in": 3} {
		if a.body[k] != want {
			t.Errorf("balloon statistics: %s is %v, want %v", k, a.body[k], want)
		}
	}
	s.stats = false
	if a := s.call(t, "GET /balloon/statistics", ""); a.code != 400 || !strings.Contains(a.fault, "not enabled") {
		t.Errorf("statistics that are off: %+v", a)
	}
	if a := s.call(t, "PUT /actions", `{"action_type": "SendCtrlAltDel"}`); a.code != 400 || !strings.Contains(a.fault, "SIGTERM") {
		t.Errorf("SendCtrlAltDel: %+v", a)
	}
}

// TestFlags looks at what gvmm is told.
func TestFlags(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	for _, c := range []struct{ what, body string }{
		{"PUT /boot-source", `{"kernel_image_path": "FILE", "initrd_path": "FILE", "boot_args": "a=\"b  c\" -- d"}`},
		{"PUT /drives/data", `{"drive_id": "data", "is_root_device": false, "path_on_host": "FILE"}`},
		{"PUT /drives/root", `{"drive_id": "root", "is_root_device": true, "path_on_host": "FILE", "is_read_only": true, "partuuid": "77"}`},
		{"PUT /network-interfaces/x", `{"iface_id": "x", "host_dev_name": "tap7"}`},
		{"PUT /network-interfaces/x", `{"iface_id": "x", "host_dev_name": "tap0", "guest_mac": "02:0A:00:00:00:01"}`},
		{"PUT /vsock", `{"guest_cid": 5, "uds_path": "v.sock"}`}, {"PUT /balloon", `{"amount_mib": 0, "deflate_on_oom": true}`}, {"PUT /entropy", `{"rate_limiter": null}`},
		{"PATCH /machine-config", `{"vcpu_count": 4}`},
	} {
		if a := s.call(t, c.what, strings.ReplaceAll(c.body, "FILE", file)); a.code != 204 {
			t.Fatalf("%s: %+v", c.what, a)
		}
	}
	got := strings.ReplaceAll(strings.Join(s.r.flags("n"), "\n"), file, "FILE")
	want := strings.Join([]string{
		"run", "--machine=microvm", "--name=n", "--no-auto", "--raw-append", `--append=a="b  c" root=PARTUUID=77 ro -- d`, "--memory=128M", "--cpus=4",
		"--balloon=true", "--rng=true", "--no-rng=false", "--initrd=FILE", "--disk=FILE,format=raw,ro", "--disk=FILE,format=raw", "--net=tap,if=tap0,mac=02:0a:00:00:00:01",
		"--vsock=cid=5,path=v.sock", "FILE",
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	a := s.call(t, "PUT /drives/other", strings.ReplaceAll(`{"drive_id": "other", "is_root_device": true, "path_on_host": "FILE"}`, "FILE", file))
	if a.code != 400 || !strings.Contains(a.fault, "root block device already exists") {
		t.Errorf("a second root device: %+v", a)
	}
	for args, want := range map[string]string{
		"": " root=/dev/vda rw", "app --": "app root=/dev/vda rw --", "a -- b -- c": "a root=/dev/vda rw -- b -- c", "a --b": "a --b root=/dev/vda rw",
	} {
		r := resources{Boot: &bootSource{Args: &args}, Drives: []drive{{Root: true}}}
		if got := r.params(); got != want {
			t.Errorf("%q becomes %q, want %q", args, got, want)
		}
	}
}

// program runs the program and returns what it says and its status.
func program(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	status = run(args, &o, &e)
	return status, o.String(), e.String()
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte(`{"drives": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--nonsense", 153, "Found argument 'nonsense'"}, {"nonsense", 153, "Found argument 'nonsense'"}, {"--id=x", 153, "Found argument"},
		{"--id", 153, "requires a value"}, {"--id --no-api", 153, "requires a value"}, {"--id a --id b", 153, "more than once"}, {"--id a_b", 153, "instance ID"},
		{"--no-api", 153, "'config-file' required"}, {"--no-seccomp --seccomp-filter x", 153, "cannot be used together"}, {"--http-api-max-payload-size x", 153, "max-payload"},
		{"--level loud", 152, "loud"}, {"--metadata x", 1, "MMDS"}, {"--snapshot-version", 1, "snapshots"}, {"--log-path /nowhere/x", 1, "no such file"},
		{"--metrics-path /nowhere/x", 1, "no such file"}, {"--api-sock " + file, 1, "already used"}, {"--no-api --config-file /nowhere", 1, "no such file"},
		{"--api-sock " + dir + "/" + strings.Repeat("x", 100), 1, "107 bytes"}, {"--api-sock /nowhere/x", 1, "no such file"},
		{"--no-api --config-file " + file, 1, "missing field `boot-source`"},
		{"--version --nonsense", 0, "Firecracker v"}, {"--nonsense --help", 0, "--api-sock <api-sock>"}, {"-h", 0, "--id"},
	} {
		code, stdout, stderr := program(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("%s: status %d, %q %q; want %d and %q", c.args, code, stdout, stderr, c.code, c.says)
		}
	}
}

// TestConfigFile runs VMs without an API to their ends.
func TestConfigFile(t *testing.T) {
	for how, want := range map[string]struct {
		code int
		says string
	}{"quick": {0, ""}, "crash": {1, "triple fault"}, "refuse": {1, "Start microvm error: gvmm: no KVM here"}} {
		t.Run(how, func(t *testing.T) {
			fake(t, how)
			dir := t.TempDir()
			file, metrics, log := filepath.Join(dir, "config"), filepath.Join(dir, "metrics"), filepath.Join(dir, "log")
			config := `{"boot-source": {"kernel_image_path": "FILE"}, "drives": [{"drive_id": "a", "is_root_device": true, "path_on_host": "FILE"}],
				"network-interfaces": [], "vsock": null, "cpu-config": null, "logger": {"log_path": "LOG", "level": "Info", "show_level": true},
				"metrics": {"metrics_path": "METRICS", "emit_id": true, "properties": {"k": "v"}}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64}}`
			if err := os.WriteFile(file, []byte(strings.NewReplacer("FILE", file, "METRICS", metrics, "LOG", log).Replace(config)), 0o600); err != nil {
				t.Fatal(err)
			}
			code, _, stderr := program(t, "--no-api", "--config-file", file, "--id", "me", "--no-seccomp")
			if code != want.code || !strings.Contains(stderr, want.says) {
				t.Errorf("status %d, %s", code, stderr)
			}
			b, err := os.ReadFile(metrics)
			if err != nil {
				t.Fatal(err)
			}
			var m map[string]any
			if err := json.Unmarshal(bytes.TrimSpace(b), &m); err != nil || m["id"] != "me" || m["utc_timestamp_ms"] == nil || m["put_api_requests"] == nil {
				t.Errorf("metrics %v: %s", err, b)
			}
			if b, err := os.ReadFile(log); err != nil || !bytes.Contains(b, []byte("[me:main:INFO] Firecracker exiting.")) {
				t.Errorf("log: %v, %s", err, b)
			}
		})
	}
}

// TestServe starts a VM through the socket and ends it with a signal.
func TestServe(t *testing.T) {
	fake(t, "stay")
	sock := filepath.Join(t.TempDir(), "s")
	type end struct {
		code   int
		stderr string
	}
	ended := make(chan end, 1)
	go func() {
		var e bytes.Buffer
		code := run([]string{"--api-sock", sock, "--id", "served", "--level", "Off", "--", "rubbish"}, io.Discard, &e)
		ended <- end{code, e.String()}
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		for c, err = net.Dial("unix", sock); err != nil && ctx.Err() == nil; c, err = net.Dial("unix", sock) {
			time.Sleep(time.Millisecond) // until it listens
		}
		return c, err
	}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, c := range []struct{ path, body string }{
		{"/boot-source", `{"kernel_image_path": "` + os.Args[0] + `"}`}, {"/actions", `{"action_type": "InstanceStart"}`}, {"/actions", `{"action_type": "FlushMetrics"}`},
	} {
		q, err := http.NewRequestWithContext(ctx, "PUT", "http://localhost"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		a, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(a.Body)
		_ = a.Body.Close()
		if a.StatusCode != 204 {
			t.Errorf("%s: %s %s", c.path, a.Status, b)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-ended:
		if e.code != 143 || !strings.Contains(e.stderr, "terminated") {
			t.Errorf("%+v", e)
		}
	case <-ctx.Done():
		t.Fatal("SIGTERM does not end it")
	}
	if _, err := os.Lstat(sock); !os.IsNotExist(err) {
		t.Error("the socket is left: ", err)
	}
	dir, err := control.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if vms, stale, err := control.List(dir); len(vms)+len(stale) > 0 || err != nil {
		t.Errorf("left: %v, %v, %v", vms, stale, err)
	}
}

// FuzzDecode: whatever is accepted has what it must have, and survives being
// made into flags.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"drive_id": "a", "is_root_device": true, "rate_limiter": {"ops": null}}`))
	f.Add([]byte(`{"drive_id": null}`))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var d drive
		if decode(body, &d, "drive_id", "is_root_device") != nil {
			return
		}
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil || m["drive_id"] != d.ID || m["is_root_device"] != d.Root {
			t.Errorf("%q became %+v: %v", body, d, err)
		}
		d.Limiter.limits()
		r := resources{Boot: &bootSource{Kernel: "k", Args: &d.ID}, Drives: []drive{d}}
		if line := r.params(); !strings.Contains(line, "root=") && d.Root {
			t.Errorf("%q: no root in %q", body, line)
		}
	})
}

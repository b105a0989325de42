// Command gvmm-firecracker answers Firecracker's command line and API, and runs
// the microVM with gvmm. Called `firecracker` it serves kraft, firectl and
// Firecracker's Go SDK.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit statuses (Firecracker's src/vmm/src/lib.rs, FcExitCode). A signal's are
// those of a shell.
const (
	statusOK        = 0
	statusError     = 1   // the guest crashed, or something could not be had
	statusBadConfig = 152 // --level
	statusUsage     = 153
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// option is an option of the command line. value is its default, "-" for none;
// "" says that it takes none.
type option struct{ name, value, help string }

// options are Firecracker's (src/firecracker/src/main.rs).
func options() []option {
	return []option{
		{"api-sock", "/run/firecracker.socket", "Unix socket of the API (/run/firecracker.socket)"},
		{"boot-timer", "", "accepted; there is no boot timer device"},
		{"config-file", "-", "JSON file of the microVM, which starts at once"},
		{"describe-snapshot", "-", "refused: gvmm has no snapshots"},
		{"enable-pci", "", "devices on PCI instead of MMIO"},
		{"help", "", "this"},
		{"http-api-max-payload-size", "51200", "most bytes of a request's body (51200)"},
		{"id", "anonymous-instance", "the microVM's identifier"},
		{"level", "-", "of the log: Off, Error, Warning, Info, Debug or Trace"},
		{"log-path", "-", "FIFO or file for the log, instead of standard error"},
		{"metadata", "-", "refused: gvmm has no metadata service (MMDS)"},
		{"metrics-path", "-", "FIFO or file for the metrics"},
		{"mmds-size-limit", "-", "accepted; there is no metadata service (MMDS)"},
		{"module", "-", "accepted; the log is not sorted by module"},
		{"no-api", "", "no API; goes with --config-file"},
		{"no-seccomp", "", "accepted; gvmm's own sandbox stays as it is"},
		{"parent-cpu-time-us", "-", "accepted, from the jailer"},
		{"seccomp-filter", "-", "accepted; gvmm's own sandbox stays as it is"},
		{"show-level", "", "levels in the log"},
		{"show-log-origin", "", "accepted; log lines name no source files"},
		{"snapshot-version", "", "refused: gvmm has no snapshots"},
		{"start-time-cpu-us", "-", "accepted, from the jailer"},
		{"start-time-us", "-", "accepted, from the jailer"},
		{"version", "", "print the version"},
	}
}

// parse reads the command line into what options were given, and defaults.
func parse(args []string) (map[string]string, error) {
	known, got := map[string]option{}, map[string]string{}
	for _, o := range options() {
		known[o.name] = o
	}
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	for _, a := range args {
		if a == "--help" || a == "-h" || a == "--version" { // before all others
			return map[string]string{strings.TrimLeft(a, "-"): ""}, nil
		}
	}
	for i := 0; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "--")
		o, found := known[name]
		_, twice := got[name]
		missing := o.value != "" && (i+1 == len(args) || strings.HasPrefix(args[i+1], "--"))
		if err := cmp.Or(when(!ok || !found, "Found argument '%s' which wasn't expected, or isn't valid in this context.", name),
			when(twice, "The argument '%s' was provided more than once.", name),
			when(missing, "The argument '%s' requires a value, but none was supplied.", name)); err != nil {
			return nil, err
		}
		if got[name] = ""; o.value != "" {
			i++
			got[name] = args[i]
		}
	}
	has := func(name string) bool { _, ok := got[name]; return ok }
	for _, o := range options() {
		if !has(o.name) && len(o.value) > 1 {
			got[o.name] = o.value
		}
	}
	_, err := strconv.ParseUint(got["http-api-max-payload-size"], 10, 31)
	return got, cmp.Or(when(has("no-api") && !has("config-file"), "Argument 'config-file' required, but not found."),
		when(has("no-seccomp") && has("seccomp-filter"), "Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'."),
		when(err != nil, "http-api-max-payload-size: %w", err),
		when(!regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`).MatchString(got["id"]), "Invalid instance ID %q: give 1 to 64 letters, digits and hyphens", got["id"]))
}

func help(w io.Writer) {
	fmt.Fprintf(w, "Firecracker v%s: its command line and API, on gvmm\n\noptional arguments:\n", version)
	for _, o := range options() {
		name := o.name
		if o.value != "" {
			name += " <" + o.name + ">"
		}
		fmt.Fprintf(w, "  --%-55s %s\n", name, o.help)
	}
}

// run is the program. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "Arguments parsing error: %v\n\nFor more information try --help.\n", err)
		return statusUsage
	}
	has := func(name string) bool { _, ok := opts[name]; return ok }
	if has("help") || has("h") {
		help(stdout)
		return statusOK
	}
	if has("version") {
		fmt.Fprintf(stdout, "Firecracker v%s\n\nIts API on gvmm, by gvmm-firecracker.\n", version)
		return statusOK
	}
	s := &server{
		id: opts["id"], name: fmt.Sprintf("%s-%d", opts["id"], os.Getpid()), log: &logger{id: opts["id"], out: stderr},
		metrics: newMetrics(opts["id"]), ended: make(chan *machine, 1),
		r: resources{Drives: []drive{}, Nets: []nic{}, pci: has("enable-pci"), Machine: machineConfig{CPUs: 1, MiB: 128, HugePages: "None"}},
	}
	s.limit, _ = strconv.ParseInt(opts["http-api-max-payload-size"], 10, 32) // parse has looked at it
	status, err := s.configure(opts, has)
	if err == nil {
		status, err = s.serve(opts, has)
	}
	if err != nil {
		fmt.Fprintf(stderr, "Error: %v\n", err)
		if s.log.out != stderr {
			s.log.log(errorLevel, "%v", err)
		}
	}
	s.log.log(infoLevel, "Firecracker exiting. exit_code=%d", status)
	return status
}

// configure applies what the command line says of log and metrics.
func (s *server) configure(opts map[string]string, has func(string) bool) (int, error) {
	show, lvl := has("show-level"), cmp.Or(opts["level"], "Info")
	if !has("level") && !has("log-path") {
		lvl = "Warning" // it goes to standard error, which kraft keeps with the console
	}
	if level(lvl) < 0 {
		return statusBadConfig, errorf("Invalid value for logger level: %s. Possible values: [Error, Warning, Info, Debug]", lvl)
	}
	c := loggerConfig{Level: &lvl, Show: &show}
	if path := opts["log-path"]; path != "" {
		c.Path = &path
	}
	err := s.log.set(&c)
	s.log.log(infoLevel, "Running Firecracker v%s, on gvmm", version)
	for _, o := range options() {
		err = cmp.Or(err, when(has(o.name) && strings.HasPrefix(o.help, "refused"), "--%s is %s", o.name, o.help))
		if has(o.name) && strings.HasPrefix(o.help, "accepted") {
			s.log.log(warnLevel, "--%s is %s", o.name, o.help)
		}
	}
	if path := opts["metrics-path"]; path != "" && err == nil {
		m := &metricsConfig{Path: path}
		err = keep(&s.r.Metrics, m, s.metrics.set(m))
	}
	return statusError, err
}

// listen makes a Unix socket that is listened on from the moment it has its
// name, for which kraft waits.
func listen(path string) (net.Listener, error) {
	early := filepath.Join(filepath.Dir(path), fmt.Sprintf(".fc%d", os.Getpid()))
	l, err := net.Listen("unix", early) // removes it when closed
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(when(len(path) > 107, "a socket's path has at most 107 bytes"), os.Link(early, path), os.Remove(early)); err != nil {
		return nil, cmp.Or(err, l.Close())
	}
	return l, nil
}

// flushEvery is how often metrics are written by themselves.
const flushEvery = time.Minute

// serve answers requests until the VM ends, or a signal comes.
func (s *server) serve(opts map[string]string, has func(string) bool) (status int, err error) {
	defer func() {
		if err := s.metrics.flush(); err != nil {
			s.log.log(errorLevel, "metrics: %v", err)
		}
	}()
	signals, failed := make(chan os.Signal, 1), make(chan error, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if !has("no-api") {
		l, err := listen(opts["api-sock"])
		if err != nil {
			return statusError, errorf("Failed to open the API socket at: %s. Check that it is not already used: %w", opts["api-sock"], err)
		}
		defer func() { _ = os.Remove(opts["api-sock"]) }()
		api := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute, MaxHeaderBytes: 1 << 16}
		go func() { failed <- api.Serve(l) }()
		defer func() { // the answer to what ended the VM is sent before the end
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = api.Shutdown(ctx)
		}()
	}
	defer func() {
		if vm := s.vm.Load(); vm != nil {
			vm.stop()
		}
	}()
	if has("config-file") {
		if err := s.startFile(opts["config-file"]); err != nil {
			return statusError, err
		}
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s.vm.Load() != nil && s.metrics.flush() != nil {
				s.log.log(errorLevel, "The metrics cannot be written.")
			}
		case vm := <-s.ended:
			if vm.code != 0 {
				return statusError, fmt.Errorf("the guest did not end in order: %s", vm.last)
			}
			return statusOK, nil
		case err := <-failed:
			return statusError, err
		case sig := <-signals:
			n, _ := sig.(syscall.Signal)
			return 128 + int(n), fmt.Errorf("ended by signal: %v", n)
		}
	}
}

// startFile configures and starts the microVM of a file: an object of what the
// API would be given, applied in Firecracker's order.
func (s *server) startFile(path string) error {
	b, err := os.ReadFile(path)
	var file map[string]json.RawMessage
	if err = cmp.Or(err, json.Unmarshal(b, &file)); err != nil {
		return fmt.Errorf("configuration file %s: %w", path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, part := range []string{"logger", "metrics", "machine-config", "cpu-config", "boot-source", "drives drive_id", "network-interfaces iface_id",
		"vsock", "balloon", "mmds-config", "entropy", "pmem id", "memory-hotplug"} {
		name, id, list := strings.Cut(part, " ")
		body, ok := file[name]
		if name == "boot-source" && !ok || name == "drives" && !ok {
			return fmt.Errorf("configuration file %s: missing field `%s`", path, name)
		}
		if !ok || string(body) == "null" {
			continue
		}
		bodies := []json.RawMessage{body}
		if list {
			err = json.Unmarshal(body, &bodies)
		}
		for _, body := range bodies {
			var ids map[string]any
			_ = json.Unmarshal(body, &ids) // errors are dispatch's
			url := map[string]string{"mmds-config": "mmds", "memory-hotplug": "hotplug"}[name]
			err = cmp.Or(err, newCall(s, "PUT", fmt.Sprintf("%s/%v", cmp.Or(url, name), ids[id]), body).dispatch())
		}
		if err != nil {
			return fmt.Errorf("configuration file %s: %s: %w", path, name, err)
		}
	}
	return s.start()
}

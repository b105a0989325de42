package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type (
	loggerConfig struct {
		Path   *string `json:"log_path"`
		Level  *string `json:"level"`
		Show   *bool   `json:"show_level"`
		Origin *bool   `json:"show_log_origin"`
		Module *string `json:"module"`
	}
	metricsConfig struct {
		Path       string            `json:"metrics_path"`
		ID         bool              `json:"emit_id"`
		Properties map[string]string `json:"properties,omitempty"`
	}
)

// logger writes Firecracker's log lines, to standard error until it is told
// where to: standard output is the guest's console here.
type logger struct {
	id string

	mu    sync.Mutex
	out   io.Writer
	level int
	show  bool
}

// levels are the names of the levels, the wordiest last.
func levels() []string { return []string{"off", "error", "warn", "info", "debug", "trace"} }

const (
	errorLevel = 1 + iota
	warnLevel
	infoLevel
)

// level returns the number of a level, -1 for none.
func level(name string) int {
	return slices.Index(levels(), strings.Replace(strings.ToLower(name), "warning", "warn", 1))
}

// set configures the logger.
func (l *logger) set(c *loggerConfig) error {
	n := infoLevel
	if c.Level != nil {
		if n = level(*c.Level); n < 0 {
			return decodeError("level: %q is none of Error, Warning, Info, Debug, Trace, Off", *c.Level)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Path != nil {
		f, err := openSink(*c.Path)
		if err != nil {
			return errorf("Logger error: Failed to open target file: %w", err)
		}
		l.out = f
	}
	if l.level = n; c.Show != nil {
		l.show = *c.Show
	}
	return nil
}

// log writes one line.
func (l *logger) log(level int, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	show := ""
	if l.show {
		show = ":" + strings.ToUpper(levels()[level])
	}
	if line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", `\n`); level <= l.level {
		_, _ = fmt.Fprintf(l.out, "%s [%s:main%s] %s\n", time.Now().Format("2006-01-02T15:04:05.000000000"), l.id, show, line)
	}
}

// sink is a file or FIFO that never keeps a writer waiting for long.
type sink struct{ *os.File }

func openSink(path string) (sink, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o644)
	return sink{f}, err
}

// Write implements [io.Writer]. A FIFO that nobody reads loses lines.
func (s sink) Write(p []byte) (int, error) {
	_ = s.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) // files have none and need none
	return s.File.Write(p)
}

// metrics counts requests and times, in Firecracker's groups and names (its
// docs/metrics.md). What gvmm does not count is an empty group.
type metrics struct {
	metricsConfig

	id     string
	mu     sync.Mutex
	out    io.Writer // nil: not configured
	groups map[string]map[string]uint64
}

// requestNames maps the first word of a path to what metrics call it.
func requestNames() map[string]string {
	return map[string]string{
		"": "instance_info", "version": "vmm_version", "actions": "actions", "boot-source": "boot_source", "drives": "drive",
		"logger": "logger", "machine-config": "machine_cfg", "cpu-config": "cpu_cfg", "metrics": "metrics", "mmds": "mmds",
		"network-interfaces": "network", "vsock": "vsock", "pmem": "pmem", "serial": "serial", "hotplug": "hotplug_memory",
	}
}

func newMetrics(id string) *metrics {
	m := &metrics{id: id, groups: map[string]map[string]uint64{
		"api_server": {"process_startup_time_us": 0}, "vmm": {"panic_count": 0}, "vcpu": {"failures": 0}, "latencies_us": {"pause_vm": 0, "resume_vm": 0},
		"get_api_requests": {}, "put_api_requests": {}, "patch_api_requests": {}, "deprecated_api": {"deprecated_http_api_calls": 0},
		"balloon": {}, "block": {}, "entropy": {}, "i8042": {}, "logger": {}, "mmds": {}, "net": {}, "seccomp": {}, "signals": {}, "uart": {}, "vsock": {},
	}}
	for _, name := range requestNames() {
		m.groups["get_api_requests"][name+"_count"] = 0
		for _, g := range []string{"put_api_requests", "patch_api_requests"} {
			m.groups[g][name+"_count"], m.groups[g][name+"_fails"] = 0, 0
		}
	}
	return m
}

// add counts in a group that there is.
func (m *metrics) add(group, name string, n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.groups[group]; g != nil {
		g[name] += n
	}
}

func (m *metrics) set(c *metricsConfig) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := openSink(c.Path)
	if err = cmp.Or(when(m.out != nil, "it is initialized already"), err); err != nil {
		return errorf("Metrics error: Cannot initialize the metrics system due to bad user input: %w", err)
	}
	m.metricsConfig, m.out = *c, f
	return nil
}

// flush writes a line of metrics where that is configured. Counts begin anew.
func (m *metrics) flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.out == nil {
		return nil
	}
	line := map[string]any{"utc_timestamp_ms": time.Now().UnixMilli()}
	if m.ID {
		line["id"] = m.id
	}
	if m.Properties != nil {
		line["properties"] = m.Properties
	}
	for name, g := range m.groups {
		line[name] = maps.Clone(g)
		for k := range g {
			g[k] = 0
		}
	}
	return json.NewEncoder(m.out).Encode(line)
}

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gvmm/gvmm/vmm/control"
)

// version is the version of Firecracker whose API this is.
const version = "1.16.0"

// server answers the API, one request at a time, as Firecracker does.
type server struct {
	id, name string // of the instance, and what `gvmm ps` calls the VM
	limit    int64  // bytes of a request's body
	log      *logger
	metrics  *metrics

	mu    sync.Mutex
	r     resources
	stats bool // the balloon had statistics when the VM started

	vm    atomic.Pointer[machine] // nil before the start
	ended chan *machine           // tells of the VM's end
}

// call is one request.
type call struct {
	*server
	method string
	path   [3]string // its words, "" where there are no more
	body   []byte
	answer any // nil: 204 No Content
	old    bool
}

func newCall(s *server, method, path string, body []byte) *call {
	c := &call{server: s, method: method, body: body}
	copy(c.path[:], strings.Split(strings.Trim(path, "/"), "/"))
	return c
}

// ServeHTTP implements [http.Handler].
func (s *server) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	s.log.log(infoLevel, "The API server received a %s request on %q.", q.Method, q.URL.Path)
	body, err := io.ReadAll(http.MaxBytesReader(w, q.Body, s.limit))
	c := newCall(s, q.Method, q.URL.Path, body)
	if err == nil {
		s.mu.Lock()
		err = c.dispatch()
		s.mu.Unlock()
	}
	c.count(err)
	w.Header().Set("Server", "Firecracker API")
	if c.old {
		w.Header().Set("Deprecation", "true")
	}
	status := http.StatusOK
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		status = http.StatusRequestEntityTooLarge
	} else if err != nil {
		status = http.StatusBadRequest
	} else if c.answer == nil {
		s.log.log(infoLevel, "The request was executed successfully. Status code: 204 No Content.")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if err != nil {
		s.log.log(errorLevel, "Received Error. Status code: %d %s. Message: %v", status, http.StatusText(status), err)
		c.answer = map[string]string{"fault_message": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(c.answer) // a client that is gone
}

// count counts a request in the metrics.
func (c *call) count(err error) {
	group := strings.ToLower(c.method) + "_api_requests"
	if name, known := requestNames()[c.path[0]]; known {
		c.metrics.add(group, name+"_count", 1)
		if err != nil && c.method != "GET" {
			c.metrics.add(group, name+"_fails", 1)
		}
	}
	if c.old {
		c.metrics.add("deprecated_api", "deprecated_http_api_calls", 1)
	}
}

// stage is when a request is in place.
type stage int

const (
	anytime stage = iota
	preBoot
	postBoot
)

func (c *call) check(at stage) error {
	started := c.vm.Load() != nil
	return cmp.Or(when(at == preBoot && started, "The requested operation is not supported after starting the microVM."),
		when(at == postBoot && !started, "The requested operation is not supported before starting the microVM."))
}

// with reads the request's body into a T and applies it, if the time is right.
// What v has already stays if it is not in the body.
func with[T any](c *call, at stage, v *T, apply func(*T) error, required ...string) error {
	if err := cmp.Or(when(string(c.body) == "{}" && c.method == "PATCH", "Empty PATCH request."), decode(c.body, v, required...), c.check(at)); err != nil {
		return err
	}
	return apply(v)
}

// device is with for something that has an id, in the path and in the body.
func device[T any](c *call, at stage, id string, apply func(*T) error, required ...string) error {
	var named map[string]any
	_ = json.Unmarshal(c.body, &named) // errors are with's
	name := c.path[1]
	err := cmp.Or(when(name == "", "The ID cannot be empty."),
		when(!regexp.MustCompile(`^\w*$`).MatchString(name), "API Resource IDs can only contain alphanumeric characters and underscores."),
		decode(c.body, new(T), append(required, id)...),
		when(named[id] != name, "The id from the path [%s] does not match the id from the body [%v]!", name, named[id]))
	if err != nil {
		return err
	}
	return with(c, at, new(T), apply)
}

func (c *call) reply(answer any) error {
	c.answer = answer
	return nil
}

// refuse answers for what gvmm does not have.
func (c *call) refuse(at stage, what string) error {
	return cmp.Or(c.check(at), lacking(true, what))
}

// dispatch finds who answers a request: the paths of Firecracker's OpenAPI
// description.
func (c *call) dispatch() error {
	r := &c.r
	if err := cmp.Or(when(c.method == "GET" && len(c.body) > 0, "GET request cannot have a body."),
		when(len(c.body) == 0 && (c.method == "PUT" || c.method == "PATCH" && c.path[1] != "hinting"), "Empty %s request.", c.method)); err != nil {
		return err
	}
	switch c.method + " " + c.path[0] {
	case "GET ":
		return c.reply(map[string]string{"id": c.id, "state": c.state(), "vmm_version": version, "app_name": "Firecracker"})
	case "GET version":
		return c.reply(map[string]string{"firecracker_version": version})
	case "GET machine-config":
		return c.reply(r.Machine)
	case "PUT actions":
		return with(c, anytime, new(action), c.act, "action_type")
	case "PUT boot-source":
		return with(c, preBoot, new(bootSource), r.setBoot, "kernel_image_path")
	case "PUT machine-config":
		c.old = strings.Contains(string(c.body), "cpu_template")
		return with(c, preBoot, new(machineConfig), r.setMachine, "vcpu_count", "mem_size_mib")
	case "PATCH machine-config":
		m := r.Machine
		return with(c, preBoot, &m, r.setMachine)
	case "PUT drives":
		return device(c, preBoot, "drive_id", r.setDrive, "is_root_device")
	case "PATCH drives":
		return device(c, postBoot, "drive_id", func(*drive) error { return lacking(true, "way to change a drive of a running VM") })
	case "PUT network-interfaces":
		return device(c, preBoot, "iface_id", r.setNet, "host_dev_name")
	case "PATCH network-interfaces":
		return device(c, postBoot, "iface_id", func(n *nic) error { return lacking(n.RX.limits() || n.TX.limits(), noLimiters) })
	case "PUT vsock":
		c.old = strings.Contains(string(c.body), "vsock_id")
		return with(c, preBoot, new(vsock), r.setVsock, "guest_cid", "uds_path")
	case "PUT entropy":
		return with(c, preBoot, new(entropy), r.setEntropy)
	case "PUT logger":
		return with(c, preBoot, new(loggerConfig), func(l *loggerConfig) error { return keep(&r.Logger, l, c.log.set(l)) })
	case "PUT metrics":
		return with(c, preBoot, new(metricsConfig), func(m *metricsConfig) error { return keep(&r.Metrics, m, c.metrics.set(m)) }, "metrics_path")
	case "PUT balloon":
		return with(c, preBoot, new(balloon), r.setBalloon, "amount_mib", "deflate_on_oom")
	case "GET balloon", "PATCH balloon":
		return c.balloon()
	case "PATCH vm":
		return with(c, postBoot, new(vmState), c.setState, "state")
	}
	for _, no := range []struct {
		at    stage
		calls string
		what  string
	}{
		{anytime, "GET mmds, PUT mmds, PATCH mmds", "metadata service (MMDS)"},
		{preBoot, "PUT cpu-config", "CPU templates"},
		{preBoot, "PUT serial", "serial port but the one on standard input and output"},
		{preBoot, "PUT pmem, PUT hotplug", "virtio-pmem or memory hotplug"},
		{postBoot, "PATCH pmem, GET hotplug, PATCH hotplug", "virtio-pmem or memory hotplug"},
		{postBoot, "DELETE drives, DELETE network-interfaces, DELETE pmem", "way to take a device from a running VM"},
		{preBoot, "PUT snapshot load", "snapshots"},
		{postBoot, "PUT snapshot create", "snapshots"},
	} {
		all := strings.Split(no.calls, ", ")
		if slices.Contains(all, c.method+" "+c.path[0]) || slices.Contains(all, c.method+" "+c.path[0]+" "+c.path[1]) {
			return c.refuse(no.at, no.what)
		}
	}
	if c.method == "GET" && c.path[0] == "vm" && c.path[1] == "config" {
		return c.reply(r)
	}
	return errorf("Invalid request method and/or path: %s %s.", c.method, strings.TrimRight(strings.Join(c.path[:], "/"), "/"))
}

type (
	vmState struct {
		State string `json:"state"`
	}
	action struct {
		Type string `json:"action_type"`
	}
)

// state is the state of the VM, in Firecracker's words.
func (s *server) state() string {
	vm := s.vm.Load()
	if vm == nil {
		return "Not started"
	}
	if reply, err := vm.do(control.Request{Op: control.OpStatus}); err == nil && reply.Status != nil && reply.Status.State == control.Paused {
		return "Paused"
	}
	return "Running"
}

func (c *call) setState(v *vmState) error {
	op, ok := map[string]control.Op{"Paused": control.OpPause, "Resumed": control.OpResume}[v.State]
	if !ok {
		return noneOf("state", v.State, "Paused", "Resumed")
	}
	began := time.Now()
	_, err := c.vm.Load().do(control.Request{Op: op})
	c.metrics.add("latencies_us", string(op)+"_vm", uint64(time.Since(began).Microseconds()))
	return err
}

func (c *call) act(a *action) error {
	switch a.Type {
	case "InstanceStart":
		if err := c.check(preBoot); err != nil {
			return err
		}
		return c.start()
	case "FlushMetrics":
		if err := c.check(postBoot); err != nil {
			return err
		}
		return c.metrics.flush()
	case "SendCtrlAltDel":
		return c.refuse(postBoot, "keyboard to press Ctrl, Alt and Del on: end this process (SIGTERM) to end the VM")
	}
	return noneOf("action_type", a.Type, "FlushMetrics", "InstanceStart", "SendCtrlAltDel")
}

// start starts the VM.
func (s *server) start() error {
	if s.r.Boot == nil {
		return errorf("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	vm, err := startVM(&s.r, s.name, &s.vm, func(line string) {
		if strings.HasSuffix(line, "(status 0)") { // the guest ended in order
			s.log.log(infoLevel, "%s", line)
		} else {
			s.log.log(warnLevel, "%s", line)
		}
	})
	if err != nil {
		return errorf("Start microvm error: %w", err)
	}
	go func() {
		<-vm.done
		s.ended <- vm
	}()
	if b := s.r.Balloon; b != nil {
		s.stats = b.Interval > 0
		if _, err := vm.do(control.Request{Op: control.OpBalloon, MiB: int(b.MiB)}); err != nil {
			s.log.log(errorLevel, "The balloon stays empty: %v", err)
		}
	}
	s.log.log(infoLevel, "The microVM runs: process %d, %s to gvmm ps.", vm.cmd.Process.Pid, vm.name)
	return nil
}

// balloon answers for a balloon: its size, and its statistics.
func (c *call) balloon() error {
	b := c.r.Balloon
	none := when(b == nil, "Balloon config error: No balloon device found.")
	switch c.method + " " + c.path[1] {
	case "GET ":
		return cmp.Or(none, c.reply(b))
	case "PATCH ":
		return with(c, postBoot, new(balloon), func(u *balloon) error {
			if err := cmp.Or(none, when(b != nil && uint64(u.MiB) > c.r.Machine.MiB, "Balloon update error: Amount of pages requested is too large.")); err != nil {
				return err
			}
			_, err := c.vm.Load().do(control.Request{Op: control.OpBalloon, MiB: int(u.MiB)})
			return keep(&b.MiB, u.MiB, err)
		}, "amount_mib")
	case "GET statistics":
		if err := cmp.Or(c.check(postBoot), none, when(!c.stats, "Internal VMM error: Statistics for the balloon device are not enabled")); err != nil {
			return err
		}
		return c.statistics()
	case "PATCH statistics":
		return with(c, postBoot, new(balloon), func(u *balloon) error {
			if err := cmp.Or(none, when(c.stats != (u.Interval > 0), "Balloon update error: Statistics cannot be turned on or off after boot")); err != nil {
				return err
			}
			return keep(&b.Interval, u.Interval)
		}, "stats_polling_interval_s")
	}
	return c.refuse(postBoot, "free page hinting")
}

func (c *call) statistics() error {
	reply, err := c.vm.Load().do(control.Request{Op: control.OpStats})
	if err != nil {
		return err
	}
	if reply.Status == nil || reply.Status.Stats == nil || reply.Status.Stats.Balloon == nil {
		return errors.New("gvmm says nothing of the balloon")
	}
	s := reply.Status.Stats.Balloon
	names := map[string]string{"free": "free_memory", "total": "total_memory", "available": "available_memory", "caches": "disk_caches"}
	answer := map[string]uint64{"target_pages": s.Target >> 12, "actual_pages": s.Actual >> 12, "target_mib": s.Target >> 20, "actual_mib": s.Actual >> 20}
	for k, v := range s.Guest {
		answer[cmp.Or(names[k], k)] = v
	}
	return c.reply(answer)
}

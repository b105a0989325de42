package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// The bodies of the API, named as in Firecracker's OpenAPI description
// (src/firecracker/swagger/firecracker.yaml, definitions).
type (
	bootSource struct {
		Kernel string  `json:"kernel_image_path"`
		Initrd string  `json:"initrd_path,omitempty"`
		Args   *string `json:"boot_args"`
	}
	machineConfig struct {
		CPUs      uint8  `json:"vcpu_count"`
		MiB       uint64 `json:"mem_size_mib"`
		SMT       bool   `json:"smt"`
		Template  string `json:"cpu_template,omitempty"`
		Dirty     bool   `json:"track_dirty_pages"`
		HugePages string `json:"huge_pages"`
	}
	limiter map[string]*struct { // by what it limits
		Size   uint64 `json:"size"`
		Burst  uint64 `json:"one_time_burst"`
		Refill uint64 `json:"refill_time"`
	}
	drive struct {
		ID       string  `json:"drive_id"`
		PartUUID string  `json:"partuuid,omitempty"`
		Root     bool    `json:"is_root_device"`
		Cache    string  `json:"cache_type"`
		ReadOnly bool    `json:"is_read_only"`
		Path     string  `json:"path_on_host"`
		Limiter  limiter `json:"rate_limiter"`
		Engine   string  `json:"io_engine"`
		Socket   string  `json:"socket,omitempty"`
	}
	nic struct {
		ID  string  `json:"iface_id"`
		Tap string  `json:"host_dev_name"`
		MAC string  `json:"guest_mac,omitempty"`
		MTU *uint16 `json:"mtu,omitempty"`
		RX  limiter `json:"rx_rate_limiter"`
		TX  limiter `json:"tx_rate_limiter"`
	}
	vsock struct {
		ID   string `json:"vsock_id,omitempty"`
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	balloon struct {
		MiB       uint32 `json:"amount_mib"`
		OOM       bool   `json:"deflate_on_oom"`
		Interval  uint16 `json:"stats_polling_interval_s"`
		Hinting   bool   `json:"free_page_hinting"`
		Reporting bool   `json:"free_page_reporting"`
	}
	entropy struct {
		Limiter limiter `json:"rate_limiter"`
	}
)

// resources is what has been configured, in the form of GET /vm/config.
type resources struct {
	Balloon *balloon       `json:"balloon"`
	Drives  []drive        `json:"drives"`
	Boot    *bootSource    `json:"boot-source"`
	Logger  *loggerConfig  `json:"logger"`
	Machine machineConfig  `json:"machine-config"`
	Metrics *metricsConfig `json:"metrics"`
	Nets    []nic          `json:"network-interfaces"`
	Vsock   *vsock         `json:"vsock"`
	Entropy *entropy       `json:"entropy"`

	pci bool
}

// errorf makes an error in Firecracker's own words, which are sentences.
func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// when is errorf, if something is so.
func when(so bool, format string, args ...any) error {
	if so {
		return errorf(format, args...)
	}
	return nil
}

func decodeError(format string, args ...any) error {
	return errorf("An error occurred when deserializing the json body of a request: %w.", errorf(format, args...))
}

// noneOf is the error for a word that is none of those known.
func noneOf(field, word string, known ...string) error {
	if slices.Contains(known, word) {
		return nil
	}
	return decodeError("%s: unknown variant `%s`, expected one of `%s`", field, word, strings.Join(known, "`, `"))
}

// lacking is the answer to what Firecracker can do and gvmm cannot.
func lacking(asked bool, what string) error {
	return when(asked, "The requested operation is not supported: gvmm has no %s", what)
}

// decode reads a JSON object into v: names must be as they are, those required
// there, and nothing else.
func decode(body []byte, v any, required ...string) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var fields map[string]json.RawMessage
	if err := cmp.Or(json.Unmarshal(body, &fields), d.Decode(v)); err != nil || fields == nil {
		return decodeError("%w", cmp.Or(err, errorf("null")))
	}
	t := reflect.TypeOf(v).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if f, ok := fields[name]; slices.Contains(required, name) && (!ok || string(f) == "null") {
			return decodeError("missing field `%s`", name)
		}
		delete(fields, name)
	}
	for name := range fields {
		return decodeError("unknown field `%s`", name) // it differs in case
	}
	return nil
}

// limits reports whether a rate limiter limits anything.
func (l limiter) limits() bool {
	for _, b := range l {
		if b != nil && b.Size != 0 && b.Refill != 0 {
			return true
		}
	}
	return false
}

const noLimiters = "rate limiters: leave them out"

// commas refuses what cannot be part of a flag of gvmm's.
func commas(format, s string) error {
	return when(s == "" || strings.ContainsAny(s, ",\x00"), format, fmt.Errorf("%q: it must not be empty or hold a comma", s))
}

// opens tries to open a file.
func opens(format, path string, flag int) error {
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if err == nil {
		err = f.Close()
	}
	return when(err != nil, format, err)
}

// keep puts v where it belongs, if all checks are nil.
func keep[T any](at *T, v T, checks ...error) error {
	err := cmp.Or(checks...)
	if err == nil {
		*at = v
	}
	return err
}

func (r *resources) setBoot(b *bootSource) error {
	return keep(&r.Boot, b,
		opens("Boot source error: The kernel file cannot be opened: %w", b.Kernel, os.O_RDONLY),
		opens("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. %w", cmp.Or(b.Initrd, os.DevNull), os.O_RDONLY),
		when(b.Args != nil && strings.Contains(*b.Args, "\x00"), "Boot source error: The kernel command line is invalid: a NUL byte would end it"))
}

// setMachine takes a whole machine configuration.
func (r *resources) setMachine(m *machineConfig) error {
	m.Template, m.HugePages = cmp.Or(m.Template, "None"), cmp.Or(m.HugePages, "None")
	return keep(&r.Machine, machineConfig{CPUs: m.CPUs, MiB: m.MiB, SMT: m.SMT, Dirty: m.Dirty, HugePages: m.HugePages},
		noneOf("huge_pages", m.HugePages, "None", "Transparent", "2M"),
		noneOf("cpu_template", m.Template, "C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"),
		when(m.SMT && runtime.GOARCH == "arm64", "Machine config error: Enabling simultaneous multithreading is not supported on aarch64."),
		when(m.CPUs == 0 || m.CPUs > 32 || m.SMT && m.CPUs > 1 && m.CPUs%2 == 1, "Machine config error: The number of vCPUs must be greater than 0, at most 32 and must be 1 or an even number if SMT is enabled."),
		when(m.MiB == 0 || m.MiB > 1<<30 || m.HugePages != "None" && m.MiB%2 == 1, "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."),
		when(r.Balloon != nil && m.MiB < uint64(r.Balloon.MiB), "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."),
		lacking(m.Template != "None", "CPU templates: leave cpu_template out"),
		lacking(m.HugePages != "None", "choice of huge pages, the host's setting holds: leave huge_pages out"))
}

// setDrive adds a drive or replaces one; the root device is the first.
func (r *resources) setDrive(d *drive) error {
	d.Cache, d.Engine = cmp.Or(d.Cache, "Unsafe"), cmp.Or(d.Engine, "Sync")
	drives := slices.Clone(r.Drives)
	at := slices.IndexFunc(drives, func(o drive) bool { return o.ID == d.ID })
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	switch {
	case at < 0 && d.Root:
		drives = slices.Insert(drives, 0, *d)
	case at < 0:
		drives = append(drives, *d)
	default:
		if drives[at] = *d; d.Root {
			drives[0], drives[at] = drives[at], drives[0]
		}
	}
	return keep(&r.Drives, drives,
		noneOf("cache_type", d.Cache, "Unsafe", "Writeback"),
		noneOf("io_engine", d.Engine, "Sync", "Async"),
		lacking(d.Socket != "", "vhost-user block devices: give path_on_host"),
		lacking(d.Limiter.limits(), noLimiters),
		when(d.Root && at != 0 && len(r.Drives) > 0 && r.Drives[0].Root, "Drive config error: A root block device already exists!"),
		commas("Drive config error: path_on_host: %w", d.Path),
		opens("Drive config error: Unable to create the virtio block device: %w", d.Path, mode))
}

func (r *resources) setNet(n *nic) error {
	mac, err := net.ParseMAC(cmp.Or(n.MAC, "02:00:00:00:00:00"))
	others := slices.DeleteFunc(slices.Clone(r.Nets), func(o nic) bool { return o.ID == n.ID })
	if n.MAC != "" {
		n.MAC = mac.String()
	}
	return keep(&r.Nets, append(others, *n),
		when(err != nil || len(mac) != 6, "An error occurred when deserializing the json body of a request: guest_mac: not a MAC address."),
		when(n.MAC != "" && slices.ContainsFunc(others, func(o nic) bool { return o.MAC == n.MAC }), "Network config error: The MAC address is already in use: %s", n.MAC),
		lacking(n.MTU != nil, "MTU for the guest: leave mtu out"),
		lacking(n.RX.limits() || n.TX.limits(), noLimiters),
		when(len(n.Tap) > 15 || strings.Contains(n.Tap, "/"), "Network config error: Cannot open/create the tap device: %q is no name of an interface", n.Tap),
		commas("Network config error: Cannot open/create the tap device: %w", n.Tap))
}

func (r *resources) setVsock(v *vsock) error {
	_, err := os.Lstat(v.Path)
	return keep(&r.Vsock, &vsock{CID: v.CID, Path: v.Path},
		commas("Vsock config error: uds_path: %w", v.Path),
		when(v.CID < 3, "Vsock config error: Cannot create vsock device: guest_cid must be 3 or more"),
		when(err == nil, "Vsock config error: Cannot create backend for vsock device: %s exists: remove it, or give another uds_path", v.Path))
}

func (r *resources) setBalloon(b *balloon) error {
	return keep(&r.Balloon, b,
		lacking(b.Hinting, "free page hinting: leave free_page_hinting out"),
		when(uint64(b.MiB) > r.Machine.MiB, "Balloon config error: Amount of pages requested is too large."))
}

func (r *resources) setEntropy(e *entropy) error {
	return keep(&r.Entropy, e, lacking(e.Limiter.limits(), noLimiters))
}

// defaultArgs are Firecracker's parameters for a kernel that is given none (its
// src/vmm/src/vmm_config/boot_source.rs).
const defaultArgs = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"

// params are the guest's parameters: those given, and where there is a root
// device its name, in front of any ` -- `.
func (r *resources) params() string {
	args := defaultArgs
	if r.Boot.Args != nil {
		args = *r.Boot.Args
	}
	if len(r.Drives) == 0 || !r.Drives[0].Root {
		return args
	}
	root := " root=/dev/vda rw"
	if id := r.Drives[0].PartUUID; id != "" {
		root = " root=PARTUUID=" + id + " rw"
	}
	if r.Drives[0].ReadOnly {
		root = strings.TrimSuffix(root, "rw") + "ro"
	}
	at := len(args)
	if i := strings.Index(args+" ", " -- "); i >= 0 {
		at = i
	}
	return args[:at] + root + args[at:]
}

// flags are the arguments of `gvmm run` for the VM.
func (r *resources) flags(name string) []string {
	args := []string{
		"run", "--machine=microvm", "--name=" + name, "--no-auto", "--raw-append", "--append=" + r.params(),
		fmt.Sprintf("--memory=%dM", r.Machine.MiB), fmt.Sprintf("--cpus=%d", r.Machine.CPUs),
		fmt.Sprintf("--balloon=%t", r.Balloon != nil), fmt.Sprintf("--rng=%t", r.Entropy != nil), fmt.Sprintf("--no-rng=%t", r.Entropy == nil),
	}
	switch {
	case r.pci && runtime.GOARCH == "arm64":
		args = append(args, "--virtio-transport=pci")
	case r.pci:
		args[1] = "--machine=pc"
	}
	if r.Boot.Initrd != "" {
		args = append(args, "--initrd="+r.Boot.Initrd)
	}
	for _, d := range r.Drives {
		disk := "--disk=" + d.Path + ",format=raw"
		if d.ReadOnly {
			disk += ",ro"
		}
		args = append(args, disk)
	}
	for _, n := range r.Nets {
		tap := "--net=tap,if=" + n.Tap
		if n.MAC != "" {
			tap += ",mac=" + n.MAC
		}
		args = append(args, tap)
	}
	if v := r.Vsock; v != nil {
		args = append(args, fmt.Sprintf("--vsock=cid=%d,path=%s", v.CID, v.Path))
	}
	image := r.Boot.Kernel
	if strings.HasPrefix(image, "-") {
		image = "./" + image
	}
	return append(args, image)
}

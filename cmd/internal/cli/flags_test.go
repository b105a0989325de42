package cli

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/gvmm/gvmm/devices/netdev"
	"github.com/gvmm/gvmm/vmm"

	"github.com/gvmm/gvmm/vmm/kvm"
)

func parseFlags(t *testing.T, args ...string) (vmm.Config, error) {
	t.Helper()
	var cfg vmm.Config
	fs := newFlags("run", "", &bytes.Buffer{})
	finish := machineFlags(fs, &cfg)
	_, err := parse(fs, args, finish)
	return cfg, err
}

func TestMachineFlags(t *testing.T) {
	cfg, err := parseFlags(t, "-M", "2G", "-c2", "--initrd=r.cpio", "-a", `a b="c d"`, "-d", "x.img,ro,serial=S1", "-d", "y.img,format=raw,direct,queues=3",
		"-n", "user,hostfwd=udp::53-:5353", "-p", "8080:80", "-p", "0.0.0.0:2222:22/udp", "-v", "/tmp", "-v", "/usr:sys,ro", "--no-rng", "--balloon", "--vsock", "cid=5,path=v.sock", "image", "--", "-x", "y z")
	if err != nil {
		t.Fatal(err)
	}
	localhost := netip.MustParseAddr("127.0.0.1")
	want := vmm.Config{
		Image: "image", Initrd: "r.cpio", Memory: 2 << 30, CPUs: 2, Machine: "auto", Params: `a b="c d"`, Args: []string{"-x", "y z"},
		Disks: []vmm.Disk{{Path: "x.img", ReadOnly: true, Serial: "S1"}, {Path: "y.img", Format: "raw", Direct: true, Queues: 3}},
		Nets: []vmm.Net{{User: true, Forwards: []netdev.Forward{
			{Proto: "udp", HostAddr: localhost, HostPort: 53, GuestPort: 5353},
			{Proto: "tcp", HostAddr: localhost, HostPort: 8080, GuestPort: 80},
			{Proto: "udp", HostAddr: netip.MustParseAddr("0.0.0.0"), HostPort: 2222, GuestPort: 22}}}},
		Shares:  []vmm.Share{{Dir: "/tmp", Tag: "fs0"}, {Dir: "/usr", Tag: "sys", ReadOnly: true}},
		RNG:     vmm.Off,
		Balloon: true,
		Vsock:   &vmm.Vsock{CID: 5, Path: "v.sock"},
		Console: vmm.SerialConsole,
		CET:     "auto",
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
}

func TestFlagRefusals(t *testing.T) {
	for _, c := range []struct{ args, say string }{
		{"", "no IMAGE"},
		{"a b", "more than one IMAGE"},
		{"-c 0 a", "--cpus 0"},
		{"-M x a", "no memory size"},
		{"-M 0 a", "no memory size"},
		{"-M 99999999999999999999 a", "no memory size"},
		{"--nonsense a", "nonsense"},
		{"-d x,rw a", "unknown option"},
		{"-d x,queues=0 a", "queues=0"},
		{"-d x,format=vmdk a", "qcow2"},
		{"-d ,ro a", "no file"},
		{"--vsock 5 a", "cid=N,path=SOCKET"},
		{"--vsock cid=5 a", "cid=N,path=SOCKET"},
		{"--vsock cid=x,path=v a", "a number from 3 on"},
		{"-n bridge a", "unknown network"},
		{"-n tap,hostfwd=tcp::1-:2 a", "unknown option"},
		{"-n user,hostfwd=sctp::1-:2 a", "tcp or udp"},
		{"-n user,hostfwd=tcp::1 a", "no -"},
		{"-p 80 a", "the form is"},
		{"-p 80:x a", "no port"},
		{"-p 0:80 a", "no port"},
		{"-p 1.2.3:80:80 a", "no IP address"},
		{"-p 80:80/icmp a", "tcp or udp"},
		{"-v /tmp,rw a", "unknown option"},
		{"-v :tag a", "the form is"},
		{"--rng --no-rng a", "exclude"},
		{"--sev-snp=polcy=30000 a", "polcy=30000: unknown"},
		{"--sev-snp=policy=xyz a", "no hexadecimal number"},
		{"--sev-snp=host-data=0102 a", "want 32 bytes"},
		{"--sev-snp=cbit=5 a", "give 32 to 62"},
		{"--sev-snp=id-block=flags.go a", "bytes"},
		{"--sev-snp=id-auth=nowhere a", "no such file"},
	} {
		_, err := parseFlags(t, strings.Fields(c.args)...)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%q: %v, want it to say %q", c.args, err, c.say)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{
		"64": 64 << 20, "64M": 64 << 20, "64m": 64 << 20, "64MiB": 64 << 20, "64MB": 64 << 20, "1G": 1 << 30, "2048K": 2 << 20, "1T": 1 << 40,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"run", "--help"}, {"help", "run"}, {"inspect", "-h"}, {"probe", "--help"}, {"version"}} {
		var out, errs bytes.Buffer
		if status := Main(args, &out, &errs, kvm.Host{}); status != 0 || errs.Len() > 0 || out.Len() == 0 {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, status, out.String(), errs.String())
		}
	}
	for _, args := range [][]string{{}, {"fly"}, {"run"}, {"run", "/nonexistent/image"}, {"inspect"}, {"probe", "x"}, {"run", "--json", "x"}, {"run", "--timeout", "-1s", "x"}, {"run", "--log-level", "loud", "x"}} {
		var out, errs bytes.Buffer
		if status := Main(args, &out, &errs, kvm.Host{}); status != vmm.StatusCannotStart || !strings.HasPrefix(errs.String(), "gvmm") {
			t.Errorf("%q: status %d, stderr %q", args, status, errs.String())
		}
	}
}

func TestEscapeSequence(t *testing.T) {
	for _, c := range []struct {
		in, want string
		ended    bool
	}{
		{"abc", "abc", false},
		{"a\x01x", "a", true},
		{"a\x01ab", "a\x01b", false},
		{"a\x01\x01b", "a\x01b", false},
		{"a\x01qb", "aqb", false},
	} {
		ended := false
		term := &terminal{cancel: func(error) { ended = true }}
		var got []byte
		for _, b := range []byte(c.in) { // one key at a time
			p := []byte{b}
			got = append(got, p[:term.filter(p)]...)
		}
		if string(got) != c.want || ended != c.ended {
			t.Errorf("%q: %q, ended %v", c.in, got, ended)
		}
	}
}

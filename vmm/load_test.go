package vmm

import (
	"reflect"
	"testing"

	"github.com/gvmm/gvmm/cca"
)

func TestAutoParams(t *testing.T) {
	user := Net{User: true}
	for _, c := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"nothing", Config{}, nil},
		{"tap", Config{Nets: []Net{{}}}, nil},
		{"user network", Config{Nets: []Net{user}}, []string{"netdev.ip=" + userNetIP}},
		{"initrd", Config{Initrd: "x"}, []string{`vfs.fstab=[ "initrd0:/:extract::ramfs=2:" ]`}},
		{"share", Config{Shares: []Share{{Tag: "fs0"}}}, []string{`vfs.fstab=[ "fs0:/:9pfs:::mkmp" ]`}},
		{"both", Config{Initrd: "x", Shares: []Share{{Tag: "fs0"}, {Tag: "data", ReadOnly: true}}},
			[]string{`vfs.fstab=[ "initrd0:/:extract::ramfs=2:" "fs0:/fs0:9pfs:::mkmp" "data:/data:9pfs:0x1::mkmp" ]`}},
	} {
		if got := autoParams(&c.cfg); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	ok := Config{Image: "i", CPUs: 1, Console: SerialConsole}
	if err := ok.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"cpus":          func(c *Config) { c.CPUs = 65 },
		"memory":        func(c *Config) { c.Memory = 4097 },
		"console":       func(c *Config) { c.Console = "vga" },
		"serial":        func(c *Config) { c.Disks = []Disk{{Serial: "123456789012345678901"}} },
		"tag twice":     func(c *Config) { c.Shares = []Share{{Tag: "a"}, {Tag: "a"}} },
		"tag too long":  func(c *Config) { c.Shares = []Share{{Tag: "12345678901234567890123456789012"}} },
		"pmu in realm":  func(c *Config) { c.ARM64.PMU, c.Realm = true, new(cca.Config) },
		"negative cpus": func(c *Config) { c.CPUs = -1 },
	} {
		c := ok
		change(&c)
		if err := c.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

package boot

import (
	"slices"
	"strings"
	"testing"
)

func slots(n int) []MMIODevice {
	var d []MMIODevice
	for i := range n {
		s, _ := MMIOSlot(i)
		d = append(d, s)
	}
	return d
}

const (
	dev0 = "virtio_mmio.device=4K@0xd0000000:5"
	dev1 = "virtio_mmio.device=4K@0xd0001000:6"
)

func TestUnikraftCmdline(t *testing.T) {
	const fstab = `vfs.fstab=[ "initrd0:/:extract::ramfs=1:" ]`
	for _, c := range []struct {
		name, params string
		auto, args   []string
		mmio         int
		noLib        bool // the image has no library parameters
		want         string
	}{
		{name: "nothing", want: "app"},
		{name: "arguments only: a -- in front would become one", args: []string{"a", "b"}, want: "app a b"},
		{name: "parameters get their --", params: "a.b=1", want: "app a.b=1 --"},
		{name: "no -- for an image that hands everything on", params: "foo bar", noLib: true, want: "app foo bar"},
		{name: "parameters and arguments", params: "a.b=1", args: []string{"x"}, want: "app a.b=1 -- x"},
		{name: "device", mmio: 1, want: "app " + dev0 + " --"},
		{name: "two devices in order", mmio: 2, args: []string{"x"}, want: "app " + dev0 + " " + dev1 + " -- x"},
		{name: "all", params: "a.b=1", auto: []string{"netdev.ip=1.2.3.4/24"}, mmio: 1, args: []string{"x"},
			want: "app a.b=1 netdev.ip=1.2.3.4/24 " + dev0 + " -- x"},
		{name: "user has the --", params: "a.b=1 -- x", mmio: 1, args: []string{"y"}, want: "app a.b=1 " + dev0 + " -- x y"},
		{name: "user's line ends in --", params: "a.b=1 --", mmio: 1, want: "app a.b=1 " + dev0 + " --"},
		{name: "user's line ends in -- and a space", params: "a.b=1 -- ", mmio: 1, want: "app a.b=1 " + dev0 + " -- "},
		{name: "user's line begins with --", params: "-- x", mmio: 1, want: "app " + dev0 + " -- x"},
		{name: "user's -- alone stays as it is", params: "a.b=1\t--  x", want: "app a.b=1\t--  x"},
		{name: "-- in a list is a value", params: "a.b=[ -- ]", mmio: 1, want: "app a.b=[ -- ] " + dev0 + " --"},
		{name: "-- in a list, then the real one", params: "a.b=[ 1 -- 2] -- x", mmio: 1, want: "app a.b=[ 1 -- 2] " + dev0 + " -- x"},
		{name: "-- in quotes with more", params: `a.b="x -- y" -- z`, mmio: 1, want: `app a.b="x -- y" ` + dev0 + " -- z"},
		{name: "quoted -- is one", params: `a.b=1 "--" z`, mmio: 1, want: "app a.b=1 " + dev0 + ` "--" z`},
		{name: "list with quotes, byte for byte", params: fstab, mmio: 1, args: []string{"/bin"}, want: "app " + fstab + " " + dev0 + " -- /bin"},
		{name: "list closed at once", params: "a.b=[] x", mmio: 1, want: "app a.b=[] x " + dev0 + " --"},
		{name: "automatic parameter the user sets", params: fstab, auto: []string{`vfs.fstab=[ "fs0:/:9pfs" ]`, "netdev.ip=x"}, want: "app " + fstab + " netdev.ip=x --"},
		{name: "a key behind the -- is no parameter", params: "a.b=1 -- netdev.ip=y", auto: []string{"netdev.ip=x"}, want: "app a.b=1 netdev.ip=x -- netdev.ip=y"},
		{name: "a key inside a list is no parameter", params: "a.b=[ netdev.ip=y ]", auto: []string{"netdev.ip=x"}, want: "app a.b=[ netdev.ip=y ] netdev.ip=x --"},
		{name: "arguments are quoted", params: "a.b=1", args: []string{"a b", `q"q`, `it's`, `back\slash`}, want: `app a.b=1 -- "a b" "q\"q" "it's" "back\\slash"`},
		{name: "escaped space at the end", params: `a.b=x\ `, mmio: 1, want: `app a.b=x\  ` + dev0 + " --"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := &Image{Unikraft: true, LibParams: !c.noLib}
			o := Options{Name: "app", Params: c.params, Auto: c.auto, Args: c.args, MMIO: slots(c.mmio)}
			got, err := img.cmdline(o)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
			checkUnikraftReads(t, o, got)
		})
	}
}

// checkUnikraftReads parses the line as the guest does: library parameters are
// those of the user and of gvmm, arguments come out as they went in.
func checkUnikraftReads(t *testing.T, o Options, line string) {
	t.Helper()
	words, open := splitUnikraft(line)
	if open != "" {
		t.Fatalf("%s is open at the end", open)
	}
	var got []string
	for _, w := range words[len(words)-len(o.Args):] {
		got = append(got, w.text)
	}
	if !slices.Equal(got, o.Args) {
		t.Errorf("arguments read back %q, want %q", got, o.Args)
	}
	_, rest, _ := strings.Cut(line, " ")
	scan := scanUnikraft(rest)
	if len(o.MMIO) > 0 && (!scan.keys["virtio_mmio.device"] || scan.stop < 0) {
		t.Errorf("the guest finds no device in %q", line)
	}
}

// TestUnikraftUnnamed: Firecracker's boot_args begin with word 0 themselves.
func TestUnikraftUnnamed(t *testing.T) {
	for _, c := range []struct {
		params string
		mmio   int
		want   string
	}{
		{"nginx a.b=1 -- placeholder", 1, "nginx a.b=1 " + dev0 + " -- placeholder"},
		{"app --", 2, "app " + dev0 + " " + dev1 + " --"},
		{"app --", 0, "app --"},
		{"app foo", 1, "app foo " + dev0 + " --"},
		{"app foo", 0, "app foo"},
		{`my\ app a.b=[ "x -- y" ] -- z`, 1, `my\ app a.b=[ "x -- y" ] ` + dev0 + " -- z"},
	} {
		img := &Image{Unikraft: true, LibParams: true}
		if got, err := img.cmdline(Options{Name: "kernel", Unnamed: true, Params: c.params, MMIO: slots(c.mmio)}); err != nil || got != c.want {
			t.Errorf("%s: %v\n got %s\nwant %s", c.params, err, got, c.want)
		}
	}
}

func TestUnikraftCmdlineRefusals(t *testing.T) {
	odd := slots(1)
	odd[0].IRQ = 16
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"too many devices", Options{MMIO: slots(5)}, "at most 4"},
		{"interrupt beyond the PIC", Options{MMIO: odd}, "interrupt 16"},
		{"open quote", Options{Params: `a.b="x`, MMIO: slots(1)}, `a " quote`},
		{"open list", Options{Params: `a.b=[ x`, MMIO: slots(1)}, "without its ]"},
		{"backslash at the end", Options{Params: `a.b=1\`, Args: []string{"x"}}, "backslash"},
		{"open quote behind the --", Options{Params: `a.b=1 -- 'x`, Args: []string{"x"}}, "a ' quote"},
		{"empty argument", Options{Args: []string{"x", ""}}, "argument 2"},
		{"NUL", Options{Args: []string{"x\x00y"}}, "NUL"},
		{"too long", Options{Params: strings.Repeat("x", 5000)}, "at most 4094"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Name = "app"
			line, err := (&Image{Unikraft: true, LibParams: true}).cmdline(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v: want an error with %q", line, err, c.want)
			}
		})
	}
}

func TestSplitUnikraft(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{" \t a\nb\vc\rd ", []string{"a", "b", "c", "d"}},
		{"a\fb", []string{"a\fb"}}, // a form feed is no white space there
		{`"a b"c 'd e'`, []string{"a bc", "d e"}},
		{`"" a`, []string{"a"}}, // an empty word is none
		{`a\ b`, []string{"a b"}},
		{`\"a\'`, []string{`"a'`}},
		{`"a\"b\\c\d"`, []string{`a"b\c\d`}},
		{`'a\b"'`, []string{`a\b"`}},
		{`a"b 'c"d`, []string{`ab 'cd`}},
		{`"\"`, []string{`"`}},
	} {
		words, _ := splitUnikraft(c.in)
		var got []string
		for _, w := range words {
			got = append(got, w.text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestLinuxCmdline(t *testing.T) {
	const all = "console=ttyS0 reboot=k panic=-1"
	for _, c := range []struct {
		name, params string
		args         []string
		want         string
	}{
		{"nothing", "", nil, all},
		{"user's, byte for byte", `root=/dev/vda  x="a b"`, nil, all + ` root=/dev/vda  x="a b"`},
		{"another console", "console=hvc0", nil, "reboot=k panic=-1 console=hvc0"},
		{"panic and reboot", "panic=5 reboot=t", nil, "console=ttyS0 panic=5 reboot=t"},
		{"a longer name is another", "consoleblank=0", nil, all + " consoleblank=0"},
		{"in quotes it is none", `x="a console=hvc0"`, nil, all + ` x="a console=hvc0"`},
		{"init's arguments", "quiet", []string{"a", "b c", ""}, all + ` quiet -- a "b c" ""`},
		{"init's arguments after the user's", "quiet -- a", []string{"b"}, all + ` quiet -- a b`},
		{"behind the -- it is none", "quiet -- panic=1", nil, all + ` quiet -- panic=1`},
	} {
		got, err := (&Image{Linux: true}).cmdline(Options{Name: "vmlinux", Params: c.params, Args: c.args, MMIO: slots(1)})
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Args: []string{`a"b`}}, "double quote"},
		{Options{Params: `x="y`, Args: []string{"a"}}, "not closed"},
		{Options{Params: strings.Repeat("x", 2048)}, "at most 2047"},
	} {
		if line, err := (&Image{Linux: true}).cmdline(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %v: want an error with %q", line, err, c.want)
		}
	}
}

func TestOtherCmdline(t *testing.T) {
	o := Options{Name: "apic.flat", Params: "smp  2", Args: []string{"a", "b c"}, MMIO: slots(1)}
	if got, err := (&Image{Protocol: ProtocolMultiboot}).cmdline(o); err != nil || got != "apic.flat smp  2 a b c" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := (&Image{Protocol: ProtocolPVH}).cmdline(o); err != nil || got != "smp  2 a b c" {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzUnikraftCmdline holds that arguments come out as they went in and that
// devices are found, whatever the user wrote before.
func FuzzUnikraftCmdline(f *testing.F) {
	f.Add(`vfs.fstab=[ "a:b" ] -- x`, "a b", `c\"`)
	f.Add(`a.b="x -- y" 'q`, "--", "'")
	f.Add("\\", " ", "\t")
	f.Fuzz(func(t *testing.T, params, arg1, arg2 string) {
		o := Options{Name: "app", Params: params, Args: []string{arg1, arg2}, MMIO: slots(2)}
		line, err := (&Image{Unikraft: true, LibParams: true}).cmdline(o)
		if err != nil {
			return
		}
		checkUnikraftReads(t, o, line)
		if scanUnikraft(params).stop < 0 && !strings.Contains(line, params) {
			t.Errorf("%q lost its bytes in %q", params, line)
		}
	})
}

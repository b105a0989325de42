package integration

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestCET runs everything that wants a KVM with CET in one run of the CET lab.
func TestCET(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	kernel, err := lab.CETKernel(ctx)
	if err != nil {
		t.Fatal(err) // not a skip: the lab fetches what it needs
	}
	initrd := filepath.Join(t.TempDir(), "linux.cpio")
	if err := kernel.Initramfs(ctx, initrd, map[string]string{"/bin/shstk": filepath.Join(images, "shstk")}); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "cetstate.test")
	if err := lab.BuildTest(ctx, "./integration/cetstate", state); err != nil {
		t.Fatal(err)
	}
	files := []string{binary, kernel.Image, initrd, state}
	for _, guest := range []string{"victim", "clean"} {
		for _, kind := range kinds {
			files = append(files, filepath.Join(images, guest+"."+kind))
		}
	}
	start := time.Now()
	host, err := lab.StartCET(ctx, files...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the lab's own kernel:\n%s", host.Console())
		}
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("the lab was up after %v", time.Since(start).Round(time.Millisecond))
	// Without gvmm-net, which nothing here needs and the lab's serial line would
	// take half an hour for: what StartCET was not given goes that way.
	b := &bench{Host: host, slow: 10 * time.Minute}
	b.gvmm = b.file(t, binary)

	t.Run("guests", func(t *testing.T) {
		testAttacks(t, b)
	})
	t.Run("state", func(t *testing.T) {
		vm := lab.Start(t, b, []string{b.file(t, state), "-test.v"})
		b.ends(t, vm, 0, "")
		if got := vm.Console().String(); strings.Contains(got, "SKIP") || strings.Count(got, "--- PASS") != 14 {
			t.Errorf("not every test passed:\n%s", got)
		}
	})
	l := linux{b.file(t, kernel.Image), b.file(t, initrd), "console=ttyS0 quiet panic=-1"}
	for _, c := range []struct{ policy, says string }{
		{"require", `lab: cet=/bin/shstk ok: flags ["user_shstk" "ibt"], "shadow stack 0\nsignal 11\ncode 10\n"`},
		{"off", `lab: cet=/bin/shstk ok: flags [], "shadow stack -95\ngadget ran 1\n"`},
	} {
		t.Run("linux --cet "+c.policy, func(t *testing.T) {
			// nopku for the same reason as in the lab itself.
			vm := b.run(t, l.args("nopku lab.cet=/bin/shstk", "--cet", c.policy)...)
			b.expect(t, vm, c.says)
			b.ends(t, vm, 0, "")
		})
	}
}

// testAttacks attacks the victim in every way, on a host with CET.
func testAttacks(t *testing.T, b *bench) {
	const (
		ret  = `control-protection fault \(vector 21\): shadow stack: the return at 0x[0-9a-f]+ \(parse\+0x[0-9a-f]+\) found 0x[0-9a-f]+ \(gadget\) on the stack, expected 0x[0-9a-f]+ \(guest\+0x[0-9a-f]+\)`
		jump = `control-protection fault \(vector 21\): IBT: an indirect branch went to 0x[0-9a-f]+ \(gadget\), which has no ENDBR64; it was called from 0x[0-9a-f]+ \(receive\+0x[0-9a-f]+\)`
	)
	for _, c := range []struct {
		flag, params string
		prints       []string
		code         int
		says         string
	}{
		{"--cet=off", "cet=self attack=ret", []string{"cet: off", "gadget ran"}, 0, ""},
		{"--cet=off", "cet=self attack=jump", []string{"cet: off", "gadget ran"}, 0, ""},
		{"--cet=require", "attack=ret", []string{"cet: off", "gadget ran"}, 0, ""}, // nobody enables it
		{"--cet=require", "cet=self attack=none", []string{"cet: shadow stack ibt", "unharmed"}, 0, ""},
		{"--cet=require", "cet=self-shstk attack=ret", []string{"cet: shadow stack\n", "attack"}, 139, ret},
		{"--cet=require", "cet=self-ibt attack=jump", []string{"cet: ibt\n", "attack"}, 139, jump},
		{"--cet=require", "cet=self attack=ret idt", []string{"cet: shadow stack ibt", "attack", "exception 21 error 0x1"}, 139, ret},
		{"--cet=require", "cet=self attack=jump idt", []string{"cet: shadow stack ibt", "attack", "exception 21 error 0x3"}, 139, jump},
		{"--cet-preset=shstk", "attack=none", []string{"cet: shadow stack\n", "unharmed"}, 0, ""},
		{"--cet-preset=shstk", "attack=ret", []string{"cet: shadow stack\n", "attack"}, 139, ret},
		{"--cet-preset=shstk", "attack=ret idt", []string{"cet: shadow stack\n", "exception 21 error 0x1"}, 139, ret},
		{"--cet-preset=ibt", "attack=jump", []string{"cet: ibt\n", "attack"}, 139, jump},
		{"--cet-preset=ibt", "attack=jump idt", []string{"cet: ibt\n", "exception 21 error 0x3"}, 139, jump},
	} {
		for _, kind := range kindsFor(c.flag) {
			t.Run(strings.Join([]string{c.flag, c.params, kind}, " "), func(t *testing.T) {
				vm := b.run(t, c.flag, "-a", c.params, b.guest(t, "victim."+kind))
				b.expect(t, vm, c.prints...)
				b.ends(t, vm, c.code, "")
				if !regexp.MustCompile(c.says).MatchString(vm.Stderr().String()) {
					t.Errorf("standard error does not say %s", c.says)
				}
				if c.code == 139 && strings.Contains(vm.Console().String(), "gadget ran") {
					t.Error("the gadget ran")
				}
			})
		}
	}
	for _, c := range []struct{ flag, params, on string }{
		{"--cet=require", "cet=self", "cet: shadow stack ibt\n"},
		{"--cet-preset=shstk", "", "cet: shadow stack\n"},
		{"--cet-preset=ibt", "", "cet: ibt\n"},
	} {
		for _, kind := range kindsFor(c.flag) {
			t.Run(strings.Join([]string{"clean", c.flag, kind}, " "), func(t *testing.T) {
				vm := b.run(t, c.flag, "-a", c.params, b.guest(t, "clean."+kind))
				b.expect(t, vm, c.on, "clean: ok", c.on)
				b.ends(t, vm, 0, "")
			})
		}
	}
	vm := b.run(t, "--cet-preset=ibt", b.guest(t, "clean.multiboot"))
	b.ends(t, vm, 125, "64-bit entry")
}

// kindsFor are the guests a flag is for: presets want the 64-bit entry.
func kindsFor(flag string) []string {
	if strings.HasPrefix(flag, "--cet-preset") {
		return []string{"linux"}
	}
	return kinds
}

// TestAudit finds both attacks in software, on this machine's KVM.
func TestAudit(t *testing.T) { testAudit(t, here(t), kinds...) }

// testAudit attacks the audited victim on a host that needs no CET.
func testAudit(t *testing.T, b *bench, kinds ...string) {
	for _, c := range []struct {
		flag, guest, attack string
		code                int
		prints, says        string
	}{
		{"--cet-audit", "victim", "ret", 139, "attack", "(gadget), but its call expects it at 0x"},
		{"--cet-audit", "victim", "jump", 139, "attack", "(gadget), which has no ENDBR64"},
		{"--cet-audit=ibt", "victim", "ret", 0, "gadget ran", ""},
		{"--cet-audit=shstk", "victim", "jump", 0, "gadget ran", ""},
		{"--cet-audit", "victim", "none", 0, "unharmed", ""},
		{"--cet-audit", "clean", "none", 0, "clean: ok", ""},
	} {
		for _, kind := range kinds {
			t.Run(strings.Join([]string{c.flag, c.guest, c.attack, kind}, " "), func(t *testing.T) {
				vm := b.run(t, c.flag, "--cet", "off", "-a", "attack="+c.attack, b.guest(t, c.guest+"."+kind))
				b.expect(t, vm, c.prints)
				b.ends(t, vm, c.code, c.says)
				if c.code == 139 && strings.Contains(vm.Console().String(), "gadget ran") {
					t.Error("the gadget ran")
				}
			})
		}
	}
}

package integration

import (
	"context"
	"errors"
	"path/filepath"
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
	if errors.Is(err, lab.ErrUnavailable) {
		t.Skip("NOT TESTED: CET in a processor: ", err)
	} else if err != nil {
		t.Fatal(err)
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
	b := newBench(t, host, 10*time.Minute)

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
	l := linux{b.file(t, kernel.Image), b.file(t, initrd)}
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
	for _, c := range []struct {
		name   string
		params string
		flags  []string
		code   int
		prints []string
		says   string
	}{
		{name: "ret off", flags: []string{"--cet", "off"}, params: "cet=self attack=ret", prints: []string{"cet: off", "gadget ran"}},
		{name: "jump off", flags: []string{"--cet", "off"}, params: "cet=self attack=jump", prints: []string{"cet: off", "gadget ran"}},
		{name: "ret self", params: "cet=self-shstk attack=ret", prints: []string{"cet: shadow stack\n", "attack"}, code: 139},
		{name: "jump self", params: "cet=self-ibt attack=jump", prints: []string{"cet: ibt\n", "attack"}, code: 139},
		{name: "ret handled", params: "idt cet=self attack=ret", prints: []string{"cet: shadow stack ibt\n", "exception 21 error 0x1"}, code: 139},
		{name: "jump handled", params: "idt cet=self attack=jump", prints: []string{"cet: shadow stack ibt\n", "exception 21 error 0x3"}, code: 139},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind := "linux"
			flags := c.flags
			if flags == nil {
				flags = []string{"--cet", "require"}
			}
			vm := b.run(t, append(append([]string{}, flags...), "-a", c.params, b.guest(t, "victim."+kind))...)
			b.expect(t, vm, c.prints...)
			b.ends(t, vm, c.code, c.says)
			t.Logf("%s", vm.Stderr())
		})
	}
	for _, kind := range kinds {
		t.Run("clean/"+kind, func(t *testing.T) {
			vm := b.run(t, "--cet", "require", "-a", "cet=self", b.guest(t, "clean."+kind))
			b.expect(t, vm, "cet: shadow stack ibt\n", "clean: ok", "cet: shadow stack ibt\n")
			b.ends(t, vm, 0, "")
		})
	}
}

// TestAudit finds both attacks in software, on this machine's KVM.
func TestAudit(t *testing.T) { testAudit(t, here(t)) }

// testAudit attacks the audited victim on a host that needs no CET.
func testAudit(t *testing.T, b *bench) {
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

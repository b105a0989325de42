package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gvmm/gvmm/integration/lab"
)

// TestX86 starts the lab and looks at what makes it one: programs, files, KVM.
func TestX86(t *testing.T) {
	if err := lab.HaveKVM(); err != nil {
		t.Log(err) // the lab needs no KVM of this machine
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l, err := lab.StartX86(ctx, 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Copy("/tmp/x/hello", strings.NewReader("hello, lab\n")); err != nil {
		t.Fatal(err)
	}
	if out, err := lab.Run(ctx, l, "/init", "cat", "/tmp/x/hello"); err != nil || out != "hello, lab\n" {
		t.Fatalf("cat: %q, %v", out, err)
	}
	if _, err := lab.Run(ctx, l, "/init", "cat", "/tmp/none"); err == nil {
		t.Fatal("cat of a missing file: no error")
	}
	if out, err := lab.Run(ctx, l, "/init", "cat", "/proc/misc"); err != nil || !strings.Contains(out, " kvm\n") {
		t.Fatalf("no KVM in the lab: %q, %v", out, err)
	}
	web := lab.Start(t, l, []string{"/init", "http", "127.0.0.1:0", "served"})
	if err := web.Console().Expect("listening on 127.0.0.1:", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := web.Signal(15); err != nil {
		t.Fatal(err)
	}
	if s, err := web.Wait(10 * time.Second); err != nil || s.Signal != 15 {
		t.Fatalf("terminated server: %v, %v", s, err)
	}
}

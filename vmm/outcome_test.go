package vmm

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/gvmm/gvmm/boot"
	"github.com/gvmm/gvmm/devices"
)

func TestEndOutcome(t *testing.T) {
	for _, c := range []struct {
		end  devices.End
		said string
		want int
	}{
		{devices.End{Kind: devices.EndPowerOff}, "", StatusOK},
		{devices.End{Kind: devices.EndReset}, "", StatusOK},
		{devices.End{Kind: devices.EndReset}, "Kernel panic - not syncing: x", StatusCrashed},
		{devices.End{Kind: devices.EndPowerOff}, "Assertion failure: x", StatusCrashed},
		{devices.End{Kind: devices.EndCrash}, "", StatusCrashed},
		{devices.End{Kind: devices.EndCode, Code: 7}, "", 7},
		{devices.End{Kind: devices.EndCode, Code: 0}, "Kernel panic - not syncing: x", 0},
	} {
		if o := endOutcome(c.end, c.said); o.Status != c.want || o.Why == "" {
			t.Errorf("%+v, console %q: %v, want status %d", c.end, c.said, o, c.want)
		}
	}
}

func TestStopOutcome(t *testing.T) {
	asked := Stopped{Status: StatusTerminated, Why: "because"}
	for cause, want := range map[error]int{
		asked: StatusTerminated, context.DeadlineExceeded: StatusTimeout, errors.New("other"): StatusInterrupted,
	} {
		if o := stopOutcome(cause); o.Status != want {
			t.Errorf("%v: status %d, want %d", cause, o.Status, want)
		}
	}
}

func TestCrashWatch(t *testing.T) {
	linux := &boot.Plan{Protocol: boot.ProtocolLinux64}
	unikraft := &boot.Plan{Protocol: boot.ProtocolMultiboot, Unikraft: true}
	for _, c := range []struct {
		plan   *boot.Plan
		chunks []string
		want   string
	}{
		{linux, []string{"[ 1.0] Kernel pa", "nic - not syncing: VFS\r\nmore\n"}, "Kernel panic - not syncing: VFS"},
		{linux, []string{"all is well\n"}, ""},
		{linux, []string{"Kernel panic - not syncing: no end of line"}, "Kernel panic - not syncing: no end of line"},
		{linux, []string{"Assertion failure: not Linux's words\n"}, ""},
		{unikraft, []string{"CRIT: Assertion failure: p != NULL\nKernel panic - not syncing\n"}, "Assertion failure: p != NULL"},
		{unikraft, []string{"[0.0] CRIT: [libkvmplat] <traps.c @ 113> Crashing\n"}, "Crashing"},
		{unikraft, []string{"Crashing is what this program talks about\n"}, ""},
		{&boot.Plan{Protocol: boot.ProtocolMultiboot}, []string{"Kernel panic - not syncing: a test guest\n"}, ""},
	} {
		var out bytes.Buffer
		w := newCrashWatch(&out, c.plan)
		all := ""
		for _, s := range c.chunks {
			if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatal(n, err)
			}
			all += s
		}
		if got := w.crashed(); got != c.want {
			t.Errorf("%q: %q, want %q", c.chunks, got, c.want)
		}
		if out.String() != all {
			t.Errorf("console %q, want %q", out.String(), all)
		}
	}
}

// A guest cannot make the watch keep more than one line.
func TestCrashWatchIsBounded(t *testing.T) {
	w := newCrashWatch(&bytes.Buffer{}, &boot.Plan{Protocol: boot.ProtocolLinux64})
	for range 100 {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1000))
	}
	if cap(w.line) > maxConsoleLine {
		t.Errorf("%d bytes kept", cap(w.line))
	}
}

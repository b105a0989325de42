package vmm

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// counterGuest is a flat multiboot image that counts at counterAt for ever:
// inc dword [counterAt]; jmp back.
const counterAt = 0x200000

func counterGuest(t *testing.T) string {
	t.Helper()
	const magic, flags, base = 0x1badb002, 1 << 16, 0x100000
	var b []byte
	var sum uint32 = magic + flags
	for _, v := range []uint32{magic, flags, -sum, base, base, 0, 0, base + 32} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = append(b, 0xff, 0x05, 0, 0, 0x20, 0, 0xeb, 0xf8)
	path := filepath.Join(t.TempDir(), "counter")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A paused guest does not take a step, however it spins; a resumed one goes on;
// a stop ends it in either state.
func TestPauseAndStop(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("NOT TESTED: pause and stop: %v", err)
	}
	for _, stopPaused := range []bool{false, true} {
		m, err := New(Config{Image: counterGuest(t), Memory: 4 << 20, CPUs: 2})
		if err != nil {
			t.Fatal(err)
		}
		count := func() uint32 {
			b, err := m.mem.Slice(counterAt, 4)
			if err != nil {
				t.Fatal(err)
			}
			return binary.LittleEndian.Uint32(b)
		}
		grows := func() {
			t.Helper()
			deadline := time.Now().Add(10 * time.Second)
			for from := count(); count() == from; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatal("the guest does not run")
				}
			}
		}
		m.Start()
		for range 5 {
			grows()
			m.Pause()
			at := count()
			time.Sleep(5 * time.Millisecond) // a running guest would count thousands
			if now := count(); now != at {
				t.Fatalf("a paused guest went from %d to %d", at, now)
			}
			m.Resume()
		}
		grows()
		if stopPaused {
			m.Pause()
		}
		want := Outcome{Status: StatusTerminated, Why: "enough"}
		m.Stop(want)
		if got, err := m.Wait(context.Background()); err != nil || got != want {
			t.Errorf("outcome %v, %v", got, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

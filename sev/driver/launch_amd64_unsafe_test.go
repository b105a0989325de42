//go:build amd64

package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gvmm/gvmm/sev"
	"github.com/gvmm/gvmm/sev/psp"
	"github.com/gvmm/gvmm/vmm/kvm"
)

// stubborn is a host whose LAUNCH_UPDATE ends as update says, without doing anything.
type stubborn struct {
	*psp.Kernel
	update func(kind uint8, page []byte) (firmware uint32, err error)
	calls  int
}

func (s *stubborn) Ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	const encryptOp, update = 0xc008aeba, 101
	if request != encryptOp || binary.LittleEndian.Uint32((*[4]byte)(arg)[:]) != update {
		return s.Kernel.Ioctl(fd, request, arg)
	}
	s.calls++
	data := *(*unsafe.Pointer)(unsafe.Add(arg, 8))
	page := unsafe.Slice(*(**byte)(unsafe.Add(data, 8)), sev.PageSize)
	firmware, err := s.update(*(*uint8)(unsafe.Add(data, 24)), page)
	binary.LittleEndian.PutUint32((*[20]byte)(arg)[16:], firmware)
	return 0, err
}

func begin(t *testing.T, s *stubborn, log *bytes.Buffer) *Launch {
	t.Helper()
	s.Kernel = psp.New(psp.Options{})
	sys, err := kvm.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := sys.CreateVM(kvm.VMTypeSNP)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Begin(sys, vm, Config{Policy: sev.DefaultPolicy, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = l.Close(), vm.Close(), sys.Close() })
	return l
}

// TestGivesUp has a host that never gets anywhere: the launch ends with the reason.
func TestGivesUp(t *testing.T) {
	page := []sev.Range{{Type: sev.PageNormal, GPA: 0x1000, Size: sev.PageSize, Name: "a page"}}
	for name, c := range map[string]struct {
		firmware uint32
		err      error
		calls    int
		says     string
	}{
		"no progress": {0, nil, maxRetries + 1, "no progress"},
		"EAGAIN":      {0, unix.EAGAIN, maxRetries + 1, "from KVM"},
		"EIO":         {0, unix.EIO, maxRetries + 1, "from KVM"},
		"EINVAL":      {0, unix.EINVAL, 1, "from KVM"},
		"page state":  {0x1a, unix.EIO, 1, "INVALID_PAGE_STATE"},
		"unknown":     {0x4242, unix.EIO, 1, "firmware error 0x4242"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stubborn{update: func(uint8, []byte) (uint32, error) { return c.firmware, c.err }}
			err := begin(t, s, new(bytes.Buffer)).Finish(page, nil)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "a page") || s.calls != c.calls {
				t.Errorf("%d calls: %v", s.calls, err)
			}
			if c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v does not wrap %v", err, c.err)
			}
		})
	}
}

// TestCPUIDRefused has the firmware correct a table and refuse it all the same, and
// refuse one without a correction.
func TestCPUIDRefused(t *testing.T) {
	given, err := sev.CPUIDPage([]sev.CPUIDEntry{{Function: 0, EAX: 0x10}, {Function: 1, EAX: 0xa00f11, ECX: 0xff}}, 51)
	if err != nil {
		t.Fatal(err)
	}
	ranges := []sev.Range{{Type: sev.PageCPUID, GPA: 0x2000, Size: sev.PageSize, Name: "CPUID"}}
	for name, c := range map[string]struct {
		change func(page []byte)
		calls  int
		log    string
		says   []string
	}{
		"twice":   {func(p []byte) { p[16+48+32], p[16+48+36] = 0x0f, 0x80 }, 2, "WIDENS", []string{"leaf 0x1.0", "ECX loses 0xf0", "EDX WIDENS by 0x80", "INVALID_PARAM"}},
		"count":   {func(p []byte) { p[0] = 9 }, 2, "entries", []string{"entries: 9, was 2"}},
		"nowhere": {func([]byte) {}, 1, "", []string{"says not where"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stubborn{update: func(_ uint8, page []byte) (uint32, error) {
				c.change(page)
				return invalidParam, unix.EIO
			}}
			var log bytes.Buffer
			err := begin(t, s, &log).Finish(ranges, given)
			if err == nil || s.calls != c.calls || !strings.Contains(log.String(), c.log) {
				t.Fatalf("%d calls, log %q: %v", s.calls, &log, err)
			}
			for _, say := range c.says {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("no %q in: %v", say, err)
				}
			}
		})
	}
}

func TestTerminationReason(t *testing.T) {
	for msr, want := range map[uint64]string{
		0x100:    "general",
		0x41100:  "CPUID",
		0x10100:  "GHCB protocol",
		0xff1100: "set 1, code 255",
		0xf100:   "set 15, code 0",
		0x12:     "no termination request",
	} {
		if got := TerminationReason(msr); !strings.Contains(got, want) {
			t.Errorf("%#x: %s, want %q", msr, got, want)
		}
	}
}

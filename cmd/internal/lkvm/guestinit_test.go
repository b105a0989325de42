package lkvm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/arch/arm64/arm64asm"
	"golang.org/x/arch/x86/x86asm"
)

// TestMain: this program is also the shell that the guest's init runs.
func TestMain(m *testing.M) {
	if os.Args[0] == "/bin/sh" {
		_ = os.WriteFile("/ran", fmt.Appendf(nil, "%q %q", os.Args, os.Environ()), 0o600)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestGuestInitIsCode: nothing but instructions and the data they name.
func TestGuestInitIsCode(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b := guestInit(arch)
		if len(b) > 2048 {
			t.Errorf("%s: %d bytes", arch, len(b))
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil || f.Machine != machine || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(b)) {
			t.Fatal(arch, err, f)
		}
		calls := 0
		at := int(f.Entry - f.Progs[0].Vaddr)
		for code := b[at:bytes.Index(b, []byte("Mounting"))]; len(bytes.Trim(code, "\x00")) > 0; {
			n, is := 4, false
			if arch == "amd64" {
				i, err := x86asm.Decode(code, 64)
				if err != nil {
					t.Fatalf("%s: %x: %v", arch, code[:4], err)
				}
				n, is = i.Len, i.Op == x86asm.SYSCALL
			} else if i, err := arm64asm.Decode(code); err != nil {
				t.Fatalf("%s: %x: %v", arch, code[:4], err)
			} else {
				is = i.Op == arm64asm.SVC
			}
			if is {
				calls++
			}
			code = code[n:]
		}
		if calls != 18 {
			t.Errorf("%s: %d system calls", arch, calls)
		}
	}
}

// TestGuestInit runs the init as the first process of namespaces of its own,
// where a restart of the machine is the end of that process by SIGHUP.
func TestGuestInit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root makes namespaces")
	}
	tl := newTool(t)
	if err := tl.makeRoot("r"); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(tl.dir, "r")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin")
	for _, err := range []error{os.Remove(bin), os.Mkdir(bin, 0o755), os.WriteFile(filepath.Join(bin, "sh"), self, 0o755), os.WriteFile(filepath.Join(root, "virt/sandbox.sh"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{`["/bin/sh" "/virt/sandbox.sh"] ["TERM=linux" "HOME=/virt/home"]`, `["/bin/sh" "-i"] ["TERM=linux" "HOME=/virt/home" "DISPLAY=192.168.33.1:0"]`} {
		cmd := exec.Command("/virt/init")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		cmd.Dir = "/"
		out, err := cmd.Output()
		if cmd.ProcessState == nil {
			t.Skip("NOT TESTED: no namespaces here: ", err)
		}
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGHUP {
			t.Errorf("%s: ended with %v", runtime.GOARCH, cmd.ProcessState)
		}
		if string(out) != "Mounting...\n" {
			t.Errorf("it said %q", out)
		}
		b, err := os.ReadFile(filepath.Join(root, "ran"))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("shell: %s, %v; want %s", b, err, want)
		}
		if err := os.Remove(filepath.Join(root, "virt/sandbox.sh")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// guest does the steps in order and ends the machine as "end=" says. A step
// that fails is reported on the console and the rest goes on.
func guest(steps []string) error {
	how := "poweroff"
	for _, s := range steps {
		name, arg, _ := strings.Cut(s, "=")
		var what string
		var err error
		switch name {
		case "disk":
			what, err = disk(arg)
		case "raw":
			what, err = raw(arg)
		case "share":
			what, err = share(arg)
		case "root":
			err = root(arg)
		case "dhcp":
			what, err = dhcp(arg)
		case "get":
			what, err = get(arg)
		case "cet":
			what, err = cet(arg)
		case "print":
			what, err = "", tool([]string{"cat", arg})
		case "http":
			what, err = serveOnce(arg)
		case "end":
			how = arg
			continue
		default:
			err = errors.New("no such step")
		}
		if err != nil {
			fmt.Printf("lab: %s FAILED: %v\n", s, err)
		} else {
			fmt.Printf("lab: %s ok: %s\n", s, what)
		}
	}
	fmt.Println("lab: end", how)
	end(how)
	return nil
}

// disk mounts an ext4 file system, reads its file "hello" and writes "written".
func disk(dev string) (string, error) {
	if err := unix.Mount(dev, mkdir("/disk"), "ext4", 0, ""); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	return readWrite("/disk")
}

// share mounts a 9p share and does the same there.
func share(tag string) (string, error) {
	if err := unix.Mount(tag, mkdir("/share"), "9p", 0, "trans=virtio,version=9p2000.L,msize=131072"); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	return readWrite("/share")
}

// root makes a 9p share the root file system, and kvmtool's init the first process.
func root(tag string) error {
	const dir, program = "/root", "/virt/init"
	if err := unix.Mount(tag, mkdir(dir), "9p", 0, "trans=virtio,version=9p2000.L,cache=loose"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	return errors.Join(unix.Chroot("."), unix.Exec(program, []string{program}, os.Environ()))
}

// cet tells what of CET this processor has, and what becomes of a program that
// overwrites its return address.
func cet(program string) (string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	var has []string
	for _, f := range strings.Fields(string(info)) {
		if f == "user_shstk" || f == "ibt" {
			has = append(has, f)
		}
	}
	out, err := exec.Command(program).Output()
	return fmt.Sprintf("flags %q, %q", has, out), err
}

func mkdir(dir string) string {
	_ = os.MkdirAll(dir, 0o755) // the mount tells
	return dir
}

func readWrite(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "written"), []byte("by the guest\n"), 0o644); err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), unix.Unmount(dir, 0)
}

// raw reads the first line of a disk and writes 1 MiB behind the first MiB.
func raw(dev string) (string, error) {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	head := make([]byte, 512)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", err
	}
	mib := make([]byte, 1<<20)
	for i := range mib {
		mib[i] = byte(i>>12) ^ byte(i)
	}
	if _, err := f.WriteAt(mib, 1<<20); err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(head), "\n")
	return line, errors.Join(f.Sync(), f.Close())
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if len(b) > 200 {
		return fmt.Sprintf("%d bytes", len(b)), err
	}
	return strings.TrimSpace(string(b)), err
}

// serveOnce answers one HTTP request on addr.
func serveOnce(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	fmt.Println("lab: listening on", l.Addr())
	from := make(chan string, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, "hello from the guest")
		select {
		case from <- r.RemoteAddr:
		default:
		}
	})}
	s.SetKeepAlivesEnabled(false)
	go func() { _ = s.Serve(l) }()
	select {
	case a := <-from:
		return "asked by " + a, shutdown(s)
	case <-time.After(30 * time.Second):
		return "", errors.Join(errors.New("nobody asked"), s.Close())
	}
}

// tool is what init does when it is not process 1.
func tool(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: init get URL | cat FILE | http ADDR TEXT")
	}
	switch args[0] {
	case "get":
		s, err := get(args[1])
		fmt.Println(s)
		return err
	case "cat":
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		return errors.Join(err, f.Close())
	case "http":
		l, err := net.Listen("tcp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listening on", l.Addr())
		text := strings.Join(args[2:], " ")
		return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, text) }))
	}
	return fmt.Errorf("no tool named %q", args[0])
}

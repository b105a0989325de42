package ninep

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// both runs a test with openat2 and as on a kernel that lacks it.
func both(t *testing.T, test func(t *testing.T, c *client, outside, share string)) {
	for _, openat2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("openat2=%v", openat2), func(t *testing.T) {
			outside := t.TempDir()
			share := filepath.Join(outside, "share")
			mkdir(t, share)
			write(t, "secret", outside, "secret")
			c := newServer(t, share, false)
			if !c.s.openat2 {
				t.Log("the kernel has no openat2")
			}
			c.s.openat2 = c.s.openat2 && openat2
			test(t, c, outside, share)
		})
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	both(t, func(t *testing.T, c *client, outside, share string) {
		// A client can make any link; a link must lead nowhere.
		for name, target := range map[string]string{
			"abs": outside, "rel": "..", "self": ".", "file": "../secret", "dangling": "../created", "root": "/",
			"magic": "/proc/self/root", "loop": "loop",
		} {
			c.ok(tSymlink, 0, name, target, 0)
			d := c.ok(tWalk, walkFields(0, 9, []string{name, "secret"})...)
			if n := d.u16(); n != 1 {
				t.Errorf("%s: walked %d names", name, n)
			}
			c.walk(0, 10, name)
			if a := c.getattr(10); a.mode&unix.S_IFMT != unix.S_IFLNK {
				t.Errorf("%s: %+v", name, a)
			}
			for _, flags := range []int{0, 1, 2, 0o1001, oDirectory} {
				c.fails(unix.ELOOP, tLopen, 10, flags)
			}
			c.fails(unix.ELOOP, tOpen, 10, uint8(0))
			c.fails(unix.ENOTDIR, tLcreate, 10, "created", 0o102, 0o644, 0)
			c.fails(unix.ENOTDIR, tMkdir, 10, "created", 0o755, 0)
			c.fails(unix.ENOTDIR, tUnlinkat, 10, "secret", 0)
			c.fails(unix.ENOTDIR, tRenameat, 10, "secret", 0, "stolen")
			c.fails(unix.ENOTDIR, tWalk, walkFields(10, 11, []string{".."})...)
			c.ok(tClunk, 10)
			c.walk(0, 10)
			c.fails(unix.ELOOP, tLcreate, 10, name, 0o102, 0o644, 0)
			c.fails(unix.ELOOP, tLcreate, 10, name, 0o1102, 0o644, 0)
			c.fails(unix.EEXIST, tMknod, 10, name, unix.S_IFREG, 0, 0, 0)
			c.ok(tClunk, 10)
		}
		unchanged(t, outside)
	})
}

// unchanged checks what lies outside the share.
func unchanged(t testing.TB, outside string) {
	t.Helper()
	list, err := os.ReadDir(outside)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || content(t, outside, "secret") != "secret" {
		t.Fatalf("outside the share: %v", list)
	}
}

func TestDotDot(t *testing.T) {
	both(t, func(t *testing.T, c *client, outside, share string) {
		mkdir(t, share, "a", "b", "c")
		c.walk(0, 1, "a", "b", "c")
		root := c.getattr(0).qid
		up := []string{"..", "..", "..", "..", "..", "..", "..", "..", "..", ".."}
		for fid := range 2 {
			c.walk(fid, 2, up...)
			if q := c.getattr(2).qid; q != root {
				t.Errorf("%v leads to %+v, not to the root", up, q)
			}
			c.ok(tClunk, 2)
			c.fails(unix.ENOENT, tWalk, walkFields(fid, 2, []string{"../secret"})...)
			if n := c.ok(tWalk, walkFields(fid, 2, []string{"..", "..", "..", "..", "secret"})...).u16(); n != 4 {
				t.Errorf("walked %d names", n)
			}
		}
		// Somebody on the host moves a directory out: what the guest holds stays
		// usable, the way up from there leads to the root.
		if err := os.Rename(filepath.Join(share, "a"), filepath.Join(outside, "moved")); err != nil {
			t.Fatal(err)
		}
		c.walk(1, 2, "..")
		c.walk(1, 3, "..", "..")
		c.walk(1, 4, "..", "..", "..", "..", "..", "..")
		for fid := 2; fid <= 4; fid++ {
			if q := c.getattr(fid).qid; q != root {
				t.Errorf("above a moved directory is %+v", q)
			}
		}
		if len(c.s.nodes) != 3 {
			t.Errorf("%d nodes for the root, a directory and its parent", len(c.s.nodes))
		}
	})
}

// TestSwapRace has somebody swap a directory for a link to the outside all the
// time, while the client walks through it.
func TestSwapRace(t *testing.T) {
	both(t, func(t *testing.T, c *client, outside, share string) {
		mkdir(t, share, "d")
		write(t, "inside", share, "d", "secret")
		if err := os.Symlink(outside, filepath.Join(share, "l")); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(share, "d"), unix.AT_FDCWD, filepath.Join(share, "l"), unix.RENAME_EXCHANGE)
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		reached := 0
		for i := range 3000 {
			c.t = t
			d, err := c.call(tWalk, walkFields(0, 1, []string{"d", "secret"})...)
			if err != 0 {
				t.Fatal(err)
			}
			if d.u16() == 2 {
				reached++
				c.ok(tLopen, 1, 0)
				if got := c.readAll(1, 0, 100); string(got) != "inside" {
					t.Fatalf("read %q", got)
				}
				c.ok(tClunk, 1)
			}
			c.walk(0, 2, "d")
			name := "new" + strconv.Itoa(i)
			_, _ = c.call(tMkdir, 2, name, 0o755, 0)
			_, _ = c.call(tUnlinkat, 2, "secret2", 0)
			_, _ = c.call(tLcreate, 2, "file", 0o102, 0o644, 0)
			c.ok(tClunk, 2)
			// Names of the root itself that are swapped.
			c.walk(0, 3)
			if _, err := c.call(tLcreate, 3, "d", 0o1002, 0o644, 0); err != unix.ELOOP && err != unix.EISDIR {
				t.Fatalf("lcreate of a directory or link: %v", err)
			}
			c.ok(tClunk, 3)
		}
		close(stop)
		wg.Wait()
		if reached == 0 || reached == 3000 {
			t.Logf("no race happened: %d of 3000 walks reached the file", reached)
		}
		unchanged(t, outside)
	})
}

// TestRenameRace moves directories below the share around while the client
// walks "..": it must never come out above the root.
func TestRenameRace(t *testing.T) {
	both(t, func(t *testing.T, c *client, outside, share string) {
		mkdir(t, share, "x", "a", "b")
		mkdir(t, share, "y", "z", "w")
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for from, to := "x/a", "y/z/w/a"; ; from, to = to, from {
				select {
				case <-stop:
					return
				default:
				}
				if err := os.Rename(filepath.Join(share, from), filepath.Join(share, to)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for range 3000 {
			_, err := c.call(tWalk, walkFields(0, 1, []string{"x", "a", "b"})...)
			if err != 0 {
				t.Fatal(err)
			}
			if _, err := c.call(tClunk, 1); err != 0 { // moved away at that moment
				continue
			}
			c.walk(0, 1, "x")
			if d, err := c.call(tWalk, walkFields(1, 1, []string{"a", "b", "..", "..", "..", "..", "..", "share"})...); err == 0 && d.u16() == 8 {
				t.Fatal("walked above the root")
			}
			c.ok(tClunk, 1)
		}
		close(stop)
		wg.Wait()
		unchanged(t, outside)
	})
}

func TestSpecialFilesAreNotOpened(t *testing.T) {
	both(t, func(t *testing.T, c *client, outside, share string) {
		c.ok(tMknod, 0, "fifo", unix.S_IFIFO|0o666, 0, 0, 0)
		c.ok(tMknod, 0, "socket", unix.S_IFSOCK|0o666, 0, 0, 0)
		names := []string{"fifo", "socket"}
		if _, err := c.call(tMknod, 0, "tty", unix.S_IFCHR|0o666, 5, 0, 0); err == 0 {
			names = append(names, "tty")
		} else if err != unix.EPERM {
			t.Error(err)
		}
		for _, name := range names {
			c.walk(0, 1, name)
			for _, flags := range []int{0, 1, 2, 0o4002} {
				c.fails(unix.ENXIO, tLopen, 1, flags)
			}
			c.fails(unix.ENXIO, tSetattr, 1, setSize, 0, 0, 0, uint64(0), uint64(0), uint64(0), uint64(0), uint64(0))
			c.ok(tClunk, 1)
			c.walk(0, 1)
			c.fails(unix.ENXIO, tLcreate, 1, name, 0o102, 0o644, 0)
			c.ok(tClunk, 1)
		}
	})
}

// TestProcIsNotOpened shares the whole host: a guest must not reach the monitor
// through its own /proc.
func TestProcIsNotOpened(t *testing.T) {
	c := newServer(t, "/", true)
	pid := strconv.Itoa(os.Getpid())
	for _, path := range []string{"proc/" + pid + "/mem", "proc/" + pid + "/status", "proc/" + pid + "/fd", "proc"} {
		c.walk(0, 1, strings.Split(path, "/")...)
		c.fails(unix.EACCES, tLopen, 1, 0)
		c.ok(tClunk, 1)
	}
	// The magic links there are links like any other.
	d := c.ok(tWalk, walkFields(0, 1, []string{"proc", pid, "root", "etc"})...)
	if n := d.u16(); n != 3 {
		t.Errorf("walked %d names", n)
	}
}

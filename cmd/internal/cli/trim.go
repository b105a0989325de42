package cli

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// trimAfter is when start-up is over: most of the program's pages that were
// needed to boot a guest are not needed to run it.
const trimAfter = 200 * time.Millisecond

// trimMemory gives back what start-up left behind: free heap, and the program's
// own file-backed pages, which come back from the page cache when touched. It
// halves what an idle monitor occupies.
func trimMemory() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		line := lines.Bytes()
		var from, to uintptr
		var perm string
		if !bytes.HasSuffix(line, []byte(exe)) {
			continue
		}
		if _, err := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &perm); err != nil || perm[1] == 'w' {
			continue // written pages are not in the file
		}
		// The addresses are of this process's own read-only mapping. A kernel
		// that refuses the advice leaves the pages where they are.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
	}
}

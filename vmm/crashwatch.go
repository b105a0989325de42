package vmm

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/gvmm/gvmm/boot"
)

// crashWatch passes the console through and remembers when a kernel says that
// it crashed. Linux (with panic=) and Unikraft on Firecracker's platform end a
// crash with an ordinary reset, so their words are the only way to tell it from
// an orderly one.
type crashWatch struct {
	out     io.Writer
	mark    string   // what a line must also contain
	phrases []string // any of which tells of a crash

	mu   sync.Mutex
	line []byte // the current line, cut at maxConsoleLine
	said string // the line that told of the crash
}

const maxConsoleLine = 256

func newCrashWatch(out io.Writer, plan *boot.Plan) *crashWatch {
	w := &crashWatch{out: out, line: make([]byte, 0, maxConsoleLine)}
	switch {
	case plan.Unikraft:
		w.mark = "CRIT:"
		w.phrases = []string{"Assertion failure:", "Unhandled Trap", "Crashing"}
	case plan.Protocol != boot.ProtocolMultiboot:
		w.phrases = []string{"Kernel panic - not syncing"}
	}
	return w
}

// Write implements [io.Writer].
func (w *crashWatch) Write(p []byte) (int, error) {
	if len(w.phrases) > 0 {
		w.scan(p)
	}
	return w.out.Write(p)
}

func (w *crashWatch) scan(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n')
		part := p
		if n >= 0 {
			part = p[:n]
		}
		w.line = append(w.line, part[:min(len(part), maxConsoleLine-len(w.line))]...)
		if n < 0 {
			return
		}
		w.endLine()
		p = p[n+1:]
	}
}

func (w *crashWatch) endLine() {
	if w.said == "" {
		for _, phrase := range w.phrases {
			if i := bytes.Index(w.line, []byte(phrase)); i >= 0 && bytes.Contains(w.line, []byte(w.mark)) {
				w.said = strings.TrimSpace(string(w.line[i:]))
			}
		}
	}
	w.line = w.line[:0]
}

// crashed returns the line in which the guest said that it crashed, or "".
func (w *crashWatch) crashed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said == "" {
		w.endLine() // the last line may lack its end
	}
	return w.said
}

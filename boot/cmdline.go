package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Longest command lines, in bytes without the NUL.
const (
	// maxUnikraft: the default buffer (LIBUKBOOT_CMDLINE_MAX_LEN, 4096) takes
	// the NUL and one byte more.
	maxUnikraft = 4094
	maxLinux    = 2047 // COMMAND_LINE_SIZE on x86
)

// cmdline puts the guest's command line together.
func (img *Image) cmdline(o Options) (string, error) {
	for _, s := range append([]string{o.Name, o.Params}, append(o.Args, o.Auto...)...) {
		if strings.IndexByte(s, 0) >= 0 {
			return "", fmt.Errorf("%q: a NUL byte would end it", s)
		}
	}
	if o.Unnamed {
		o.Name = ""
	}
	limit := cmdlineRoom - 1
	var line string
	var err error
	switch {
	case img.Unikraft:
		limit = maxUnikraft
		line, err = img.unikraftCmdline(o)
	case img.Linux:
		limit = maxLinux
		if img.setup != nil {
			limit = int(img.setup.cmdlineMax)
		}
		line, err = linuxCmdline(o)
	case o.setup > 0: // Linux, handed over by firmware
		line, err = linuxCmdline(o)
	default:
		words := []string{o.Params}
		if img.Protocol == ProtocolMultiboot {
			words = []string{o.Name, o.Params}
		}
		if img.Protocol == ProtocolLinux64 { // made for Firecracker: finds its devices here
			for _, d := range o.MMIO {
				words = append(words, d.param())
			}
		}
		words = append(words, o.Args...)
		line = joinWords(words...)
	}
	if err == nil && len(line) > limit {
		err = fmt.Errorf("%d bytes, this guest takes at most %d: shorten -a or the arguments", len(line), limit)
	}
	return line, err
}

// param names the device on a command line (Linux
// drivers/virtio/virtio_mmio.c, virtio_mmio.device).
func (d MMIODevice) param() string {
	return fmt.Sprintf("virtio_mmio.device=%dK@%#x:%d", d.Size/1024, uint64(d.Base), d.IRQ)
}

// joinWords joins the words that are not empty.
func joinWords(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

// unikraftCmdline is `NAME PARAMS [AUTO] [DEVICES] -- ARGS`. Unikraft reads
// library parameters only in front of a ` -- ` (lib/ukboot early_init.c) and,
// when nothing stands before it, takes the `--` for an argument.
func (img *Image) unikraftCmdline(o Options) (string, error) {
	if len(o.MMIO) > MaxUnikraftMMIO {
		return "", fmt.Errorf("%d virtio-mmio devices: a Unikraft guest takes at most %d", len(o.MMIO), MaxUnikraftMMIO)
	}
	user := scanUnikraft(o.Params)
	var added []string
	for _, a := range o.Auto {
		if key, _, _ := strings.Cut(a, "="); !user.keys[key] {
			added = append(added, a)
		}
	}
	for _, d := range o.MMIO {
		if d.IRQ > 15 {
			return "", fmt.Errorf("virtio-mmio device at %#x: interrupt %d: Unikraft takes at most 15", uint64(d.Base), d.IRQ)
		}
		if d.Size%1024 != 0 {
			return "", fmt.Errorf("virtio-mmio device at %#x: %d bytes are not whole KiB", uint64(d.Base), d.Size)
		}
		added = append(added, d.param())
	}
	head, tail := o.Params, ""
	switch {
	case user.stop > 0 && len(added) > 0: // the byte before the `--` is white space
		head, tail = o.Params[:user.stop-1], o.Params[user.stop:]
	case user.stop == 0 && len(added) > 0:
		head, tail = "", o.Params
	case user.stop < 0 && (len(added) > 0 || user.words > 0 && (img.LibParams && o.Name != "" || len(o.Args) > 0)):
		tail = "--"
	}
	if user.open != "" && (user.stop < 0 && tail != "" || len(o.Args) > 0) {
		return "", fmt.Errorf("-a: %s would swallow what gvmm puts behind it", user.open)
	}
	words := append([]string{"", head}, added...)
	if o.Name != "" {
		var err error
		if words[0], err = quoteUnikraft(o.Name); err != nil {
			return "", fmt.Errorf("name: %w", err)
		}
	}
	words = append(words, tail)
	for i, a := range o.Args {
		q, err := quoteUnikraft(a)
		if err != nil {
			return "", fmt.Errorf("argument %d: %w", i+1, err)
		}
		words = append(words, q)
	}
	return joinWords(words...), nil
}

// unikraftScan is what Unikraft will see in a command line.
type unikraftScan struct {
	words int             // how many there are
	stop  int             // offset of the `--` that ends library parameters, or -1
	keys  map[string]bool // library parameters before it
	open  string          // a quote, list or escape that is not closed, for people
}

// scanUnikraft reads s as uk_argnparse (lib/ukargparse) and the scanning pass
// of uk_libparam_parse (lib/uklibparam) do: words, then parameters, where a
// list `key=[ a b ]` may hold a `--`.
func scanUnikraft(s string) unikraftScan {
	r := unikraftScan{stop: -1, keys: map[string]bool{}}
	list := false
	words, open := splitUnikraft(s)
	r.words, r.open = len(words), open
	for _, w := range words {
		value := w.text
		if !list {
			if w.text == "--" {
				r.stop = w.start
				return r
			}
			dot := strings.IndexByte(w.text, '.')
			if dot < 0 {
				continue
			}
			eq := strings.IndexByte(w.text[dot:], '=')
			if eq < 0 {
				r.keys[w.text] = true
				continue
			}
			r.keys[w.text[:dot+eq]] = true
			value = w.text[dot+eq+1:]
			if !strings.HasPrefix(value, "[") {
				continue
			}
			list, value = true, value[1:]
		}
		if strings.HasSuffix(value, "]") {
			list = false
		}
	}
	if list {
		r.open = "a list without its ]"
	}
	return r
}

type unikraftWord struct {
	start int    // offset of its first byte, quotes included
	text  string // with quotes and escapes taken off
}

func isUKSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\v' || c == '\r' }

// splitUnikraft splits s into words as uk_argnparse does. open names a quote
// or escape that reaches beyond the end.
func splitUnikraft(s string) (words []unikraftWord, open string) {
	var text []byte
	var quote byte
	inWord, escape := false, false
	start := -1 // where the current word, or the quotes before it, began
	flush := func() {
		if inWord {
			words = append(words, unikraftWord{start, string(text)})
		}
		inWord, start, text = false, -1, nil
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case isUKSpace(c) && quote == 0 && !escape:
			flush()
			continue
		case (c == '\'' || c == '"') && !escape && (quote == 0 || quote == c):
			if quote ^= c; start < 0 {
				start = i
			}
			continue
		case c == '"' && escape && quote != 0:
			text = text[:len(text)-1] // \" in quotes
			escape = false
		}
		if start < 0 {
			start = i
		}
		if !inWord {
			inWord, escape = true, false
		}
		text = append(text, c)
		switch {
		case c == '\\' && quote != '\'':
			if escape { // \\ is one backslash
				text = text[:len(text)-1]
			}
			escape = !escape
		case escape:
			if quote == 0 {
				text = append(text[:len(text)-2], c)
			}
			escape = false
		}
	}
	flush()
	switch {
	case quote != 0:
		open = fmt.Sprintf("a %c quote that is not closed", quote)
	case escape:
		open = "a backslash at the end"
	}
	return words, open
}

// quoteUnikraft writes an argument so that uk_argnparse reads it back.
func quoteUnikraft(arg string) (string, error) {
	if arg == "" {
		return "", errors.New("it is empty, which Unikraft's command line cannot say")
	}
	if !strings.ContainsAny(arg, " \t\n\v\r'\"\\") {
		return arg, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(arg) + `"`, nil
}

// lkvmParams puts kvmtool's parameters, blanks and all, in front of the user's
// (its builtin-run.c, kvm_run_set_real_cmdline).
func lkvmParams(o Options) string {
	if o.ARM64.Bare {
		return o.Params
	}
	line := " console=ttyS0"
	if o.ARM64.HVC {
		line = " console=hvc0"
	}
	if !strings.Contains(o.Params, "root=") {
		line += " root=/dev/vda rw "
	}
	if o.Params != "" {
		line += " " + o.Params
	}
	return line
}

// linuxCmdline adds what a guest without a screen and keyboard needs, unless
// the user says otherwise: a console on the serial port and a reset after a
// panic that the monitor sees; on lkvm, what kvmtool adds. Arguments behind
// ` -- ` go to init.
func linuxCmdline(o Options) (string, error) {
	params, args := o.Params, o.Args
	defaults := []string{"console=ttyS0", "reboot=k", "panic=-1"}
	switch o.Machine {
	case MachineLKVM:
		params, defaults = lkvmParams(o), nil
	case MachineVirt:
		defaults = []string{"console=ttyAMA0", "panic=-1"}
	}
	if o.Raw {
		params, defaults = o.Params, nil
	}
	keys, stop, open := scanLinux(params)
	var words []string
	for _, p := range defaults {
		if key, _, _ := strings.Cut(p, "="); !keys[key] {
			words = append(words, p)
		}
	}
	words = append(words, params)
	if len(args) > 0 {
		if open {
			return "", errors.New("-a: a quote that is not closed would swallow the arguments")
		}
		if !stop {
			words = append(words, "--")
		}
		for i, a := range args {
			if strings.Contains(a, `"`) {
				return "", fmt.Errorf("argument %d: %q: Linux' command line cannot hold a double quote", i+1, a)
			}
			if a == "" || strings.ContainsAny(a, " \t\n\v\f\r") {
				a = `"` + a + `"`
			}
			words = append(words, a)
		}
	}
	return joinWords(words...), nil
}

// scanLinux finds the parameters that are set before a `--`, as next_arg
// (lib/cmdline.c) splits them: at white space outside double quotes.
func scanLinux(s string) (keys map[string]bool, stop, open bool) {
	keys = map[string]bool{}
	split := func(c rune) bool {
		if c == '"' {
			open = !open
		}
		return !open && (c == ' ' || c >= '\t' && c <= '\r')
	}
	for _, w := range strings.FieldsFunc(s, split) {
		if w == "--" {
			stop = true
		}
		if !stop {
			key, _, _ := strings.Cut(w, "=")
			keys[key] = true
		}
	}
	return keys, stop, open
}

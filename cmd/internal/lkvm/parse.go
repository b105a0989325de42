package lkvm

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// option is a row of a command's table. One without names is the title of those
// that follow.
type option struct {
	short    byte
	long     string
	arg      string // what its argument is called; "": it has none
	help     string
	set      func(arg string) error
	unset    func()  // for --no-LONG; nil: there is none
	fallback *string // its argument if the next word is another option, or none is left; nil: that is an error
}

// misuse is an error that the usage goes with.
type misuse struct{ error }

func misusef(format string, args ...any) error { return misuse{fmt.Errorf(format, args...)} }

func title(s string) option { return option{help: s} }

func flag(short byte, long, help string, v *bool) option {
	return option{short: short, long: long, help: help, set: func(string) error { *v = true; return nil }, unset: func() { *v = false }}
}

func text(short byte, long, arg, help string, v *string) option {
	return option{short: short, long: long, arg: arg, help: help, set: func(s string) error { *v = s; return nil }, unset: func() { *v = "" }}
}

// number takes decimal, 0x and 0 as C does.
func number[T int | uint64](short byte, long, help string, v *T) option {
	return option{short: short, long: long, arg: "n", help: help, unset: func() { *v = 0 }, set: func(s string) error {
		n, err := strconv.ParseUint(s, 0, 64)
		if *v = T(n); err != nil || *v < 0 || uint64(*v) != n {
			return misusef("option `%s': %q is no number", long, s)
		}
		return nil
	}}
}

func call(short byte, long, arg, help string, set func(string) error) option {
	return option{short: short, long: long, arg: arg, help: help, set: set}
}

// word is the name of an option as messages have it.
func (o *option) word(short, negated bool) string {
	switch {
	case short:
		return fmt.Sprintf("switch `%c'", o.short)
	case negated:
		return fmt.Sprintf("option `no-%s'", o.long)
	}
	return fmt.Sprintf("option `%s'", o.long)
}

// parse takes options off args up to the first word that is none, or a "--",
// and returns the rest.
func parse(table []option, args []string) (rest []string, err error) {
	for ; len(args) > 0; args = args[1:] {
		a := args[0]
		switch {
		case len(a) < 2 || a[0] != '-' || a == "--":
			return args, nil
		case a == "--help" || a == "--help-all":
			return nil, misuse{}
		case a[1] == '-':
			var o *option
			var negated bool
			name, val, has := strings.Cut(a[2:], "=")
			if o, negated, err = find(table, name); err == nil {
				err = o.take(&args, val, has, false, negated)
			}
		default:
			for bundle := a[1:]; bundle != "" && err == nil; {
				if bundle[0] == 'h' {
					return nil, misuse{}
				}
				o := short(table, bundle[0])
				if o == nil {
					return nil, misusef("unknown switch `%c'", bundle[0])
				}
				if bundle = bundle[1:]; o.arg == "" {
					err = o.take(&args, "", false, true, false)
				} else {
					err = o.take(&args, bundle, bundle != "", true, false)
					bundle = ""
				}
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// take gives an option its argument, which is val or else the next word.
func (o *option) take(args *[]string, val string, has, short, negated bool) error {
	what := o.word(short, negated)
	switch {
	case (negated || o.arg == "") && has:
		return misusef("%s takes no value", what)
	case negated && o.unset == nil:
		return misusef("%s isn't available", what)
	case negated:
		o.unset()
		return nil
	case o.arg == "" || has:
	case o.fallback != nil && (len(*args) == 1 || strings.HasPrefix((*args)[1], "-")):
		val = *o.fallback
	case len(*args) == 1:
		return misusef("%s requires a value", what)
	default:
		*args = (*args)[1:]
		val = (*args)[0]
	}
	return o.set(val)
}

func short(table []option, c byte) *option {
	for i := range table {
		if table[i].short == c {
			return &table[i]
		}
	}
	return nil
}

// find looks up a long option: by its name, or by a beginning that only it has.
func find(table []option, name string) (found *option, negated bool, err error) {
	var also string
	asked := name
	name = strings.ReplaceAll(name, "_", "-")
	for i := range table {
		o := &table[i]
		if o.long == "" {
			continue
		}
		long := strings.ReplaceAll(o.long, "_", "-")
		for _, no := range []bool{false, true} {
			if no {
				long = "no-" + long
			}
			switch {
			case long == name:
				return o, no, nil
			case name != "" && strings.HasPrefix(long, name):
				if found != nil {
					also = map[bool]string{true: "no-"}[negated] + found.long
				}
				found, negated = o, no
			}
		}
	}
	switch {
	case found == nil:
		return nil, false, misusef("unknown option `%s'", asked)
	case also != "":
		return nil, false, misusef("Ambiguous option: %s (could be --%s or --%s%s)", asked, also, map[bool]string{true: "no-"}[negated], found.long)
	}
	return found, negated, nil
}

// usage prints a table.
func usage(w io.Writer, line string, table []option) {
	const column = 26 // where help begins
	fmt.Fprintf(w, "\n usage: lkvm %s\n", line)
	for _, o := range table {
		if o.long == "" {
			fmt.Fprintf(w, "\n%s\n", o.help)
			continue
		}
		s := "        --" + o.long
		if o.short != 0 {
			s = fmt.Sprintf("    -%c, --%s", o.short, o.long)
		}
		if o.arg != "" {
			s += " <" + o.arg + ">"
		}
		if len(s) > column-2 {
			s += "\n"
		}
		fmt.Fprintf(w, "%s%*s%s\n", s, max(0, column-(len(s)-strings.LastIndex(s, "\n")-1)), "", o.help)
	}
	fmt.Fprintln(w)
}

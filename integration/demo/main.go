// Demo boots the demo unikernel under gvmm with a disk and a network, as a
// newcomer's first run:
//
//	demo [-svg FILE] GVMM IMAGE
//
// With -svg it also draws what the terminal showed.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	svg := flag.String("svg", "", "draw the run to `FILE`")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo [-svg FILE] GVMM IMAGE")
		os.Exit(2)
	}
	if err := demo(flag.Arg(0), flag.Arg(1), *svg); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(gvmm, image, svg string) error {
	dir, err := os.MkdirTemp("", "gvmm-demo")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("a sector of the demo's disk; "), 1<<15), 0o600); err != nil {
		return err
	}
	shown := fmt.Sprintf("$ gvmm run -d disk.img -n user %s -- hello\n", filepath.Base(image))
	fmt.Print(shown)
	var seen bytes.Buffer
	seen.WriteString(shown)
	cmd := exec.Command(gvmm, "run", "-d", disk, "-n", "user", "--timeout", "30s", image, "--", "hello")
	cmd.Stdout = io.MultiWriter(os.Stdout, &seen)
	cmd.Stderr = io.MultiWriter(os.Stderr, &seen)
	if err := cmd.Run(); err != nil {
		return err
	}
	for _, want := range []string{"disk:", "net:", "Good night."} {
		if !strings.Contains(seen.String(), want) {
			return errors.New("the guest did not say " + want)
		}
	}
	if svg == "" {
		return nil
	}
	return os.WriteFile(svg, draw(seen.String()), 0o644)
}

// draw makes a picture of a terminal.
func draw(text string) []byte {
	const (
		charWidth, lineHeight = 8.4, 20
		margin                = 16
	)
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	width := 0
	for _, l := range lines {
		width = max(width, len(l))
	}
	var b bytes.Buffer
	w, h := int(float64(width)*charWidth)+2*margin, len(lines)*lineHeight+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="14">`+"\n", w, h)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="#16202c"/>`+"\n", w, h)
	for i, l := range lines {
		fill := "#d7dee6"
		if strings.HasPrefix(l, "$ ") || strings.HasPrefix(l, "gvmm:") {
			fill = "#7fd1b9"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s" xml:space="preserve">%s</text>`+"\n", margin, margin+14+i*lineHeight, fill, html.EscapeString(l))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

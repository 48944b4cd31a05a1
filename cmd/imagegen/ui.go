package main

// The rules for imagegen's output:
//
//   - Results go to standard output; errors and progress go to standard error, so that output can be
//     piped. Every line of prose on standard error that is not progress begins with "imagegen: ".
//   - Nothing is printed twice. An error is printed once, when the program ends; it says what was being done, to what,
//     and what to do about it.
//   - On a terminal, progress is one block of lines that is redrawn in place and removed at the end. Elsewhere it is
//     plain lines, one per change, without escape codes.
//   - A command says in one line what it did, or that there was nothing to do.
//   - --json prints one JSON value to standard output and nothing else.
//   - Secrets are never printed.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"imagegen/internal/words"
)

// block shows progress: each show replaces the previous lines.
type block struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	height   int // lines on the screen now
}

func newBlock(c *cli.Context) *block {
	return &block{w: c.App.ErrWriter, terminal: isTerminal(c.App.ErrWriter)}
}

// isTerminal reports whether w is a terminal that understands escape codes.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// maxHeight keeps a block within the smallest common terminal, because lines that scrolled away cannot be redrawn.
const maxHeight = 20

// show replaces the block's lines; without a terminal it does nothing.
func (b *block) show(lines []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.terminal {
		return
	}
	if len(lines) > maxHeight {
		lines = append(lines[:maxHeight-1:maxHeight-1], fmt.Sprintf("… and %d more", len(lines)-maxHeight+1))
	}
	shown := make([]string, len(lines))
	for i, line := range lines {
		shown[i] = printable(line)
	}
	b.draw(shown)
}

// printable drops control characters except line ends and tabs, so that text from nodes and programs cannot control the
// terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if steers(r) {
			return -1
		}
		return r
	}, text)
}

// say prints a permanent line; on a terminal, above the block, which must be shown again afterwards.
func (b *block) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draw(nil)
	fmt.Fprintln(b.w, printable(fmt.Sprintf(format, args...)))
}

// clear removes the block from the screen.
func (b *block) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draw(nil)
}

// draw moves up over the old lines, clears to the end of the screen and writes the new lines, all in one write to avoid
// flicker. Line wrapping is off meanwhile, so that long lines are cut.
func (b *block) draw(lines []string) {
	if b.height == 0 && len(lines) == 0 {
		return
	}
	var out bytes.Buffer
	if b.height > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.height)
	}
	out.WriteString("\r\x1b[J")
	if len(lines) > 0 {
		out.WriteString("\x1b[?7l" + strings.Join(lines, "\n") + "\n\x1b[?7h")
	}
	b.height = len(lines)
	b.w.Write(out.Bytes())
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// count returns "1 node", "2 nodes".
func count(n int, noun string) string { return words.Count(n, noun) }

package main

// The rules of what imagegen prints:
//
//   - Results go to standard output, errors to standard error; progress goes to standard error, so that output can be
//     piped. Every line of prose on standard error that is not progress begins with "imagegen: ".
//   - Nothing is printed twice. An error is printed once, where the program ends; it says what was being done, to what,
//     and what to do about it.
//   - On a terminal, progress is one block of lines that is drawn over itself and is gone at the end. Elsewhere it is
//     plain lines, one for each thing that changed, without escape codes.
//   - What was done is said in one line; so is that there was nothing to do.
//   - --json prints one JSON value on standard output and nothing else there.
//   - No secret is ever printed.

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

// block shows progress: lines that replace those shown before.
type block struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	height   int // lines on the screen now
}

func newBlock(c *cli.Context) *block {
	return &block{w: c.App.ErrWriter, terminal: isTerminal(c.App.ErrWriter)}
}

// isTerminal says whether escape codes make sense on w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// maxHeight keeps a block within the smallest usual terminal: drawing over what has scrolled away is impossible.
const maxHeight = 20

// show draws lines in place of the ones before; elsewhere than on a terminal it does nothing.
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

// printable drops control characters but line ends and tabs: text from nodes and programs must not steer the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if steers(r) {
			return -1
		}
		return r
	}, text)
}

// say prints a line that stays; on a terminal, above the block, which is to be shown again.
func (b *block) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draw(nil)
	fmt.Fprintln(b.w, printable(fmt.Sprintf(format, args...)))
}

// clear takes the block off the screen.
func (b *block) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draw(nil)
}

// draw goes up over the lines there are, clears to the end of the screen and writes the new ones in a single write, so
// that nothing flickers. Lines are cut at the terminal's edge by switching its wrapping off meanwhile.
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

// printJSON prints v for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// count returns "1 node", "2 nodes".
func count(n int, noun string) string { return words.Count(n, noun) }

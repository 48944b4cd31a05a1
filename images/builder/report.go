package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// reportMark begins the lines that are for imagegen, of those that a VM writes to its second serial port:
//
//	imagegen-bake: step WHAT
//	imagegen-bake: failed STATUS
//	imagegen-bake: done
//
// All others are what programs print.
const reportMark = "imagegen-bake: "

// maxLine bounds what is kept of a line.
const maxLine = 4096

// report is what a VM says of its bake, read as it comes. What the machine says on its console goes to the log until
// programs of the bake say something there.
type report struct {
	step func(string) // told of each
	log  io.Writer

	mu      sync.Mutex
	begun   bool     // the bake has said something
	console []string // the last lines of it since then
	result  error    // what the VM says of the bake in the end
}

var errNoResult = errors.New("the VM has ended without saying how the bake went")

func newReport(log io.Writer, step func(string)) *report {
	return &report{step: step, log: log, result: errNoResult}
}

// bakeLine takes a line of the second serial port.
func (r *report) bakeLine(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = true
	what, ours := strings.CutPrefix(line, reportMark)
	if !ours {
		if line != "" {
			fmt.Fprintln(r.log, line)
		}
		return
	}
	if r.result != errNoResult {
		return
	}
	switch word, rest, _ := strings.Cut(what, " "); word {
	case "step":
		r.step(strings.ToValidUTF8(rest, "?"))
	case "failed":
		r.result = fmt.Errorf("exit status %s", strings.ToValidUTF8(rest, "?"))
	case "done":
		r.result = nil
	}
}

// colours are what a console is told beside text.
var colours = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// consoleLine takes a line of the first serial port.
func (r *report) consoleLine(line string) {
	line = colours.ReplaceAllString(line, "")
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.begun {
		fmt.Fprintln(r.log, line)
		return
	}
	if r.console = append(r.console, line); len(r.console) > 8 {
		r.console = r.console[1:]
	}
}

// end returns how the bake went, after the VM has ended with an error or none. If the VM has not said it, the log ends in
// the last lines of its console.
func (r *report) end(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result != errNoResult {
		return r.result
	}
	for _, line := range r.console {
		fmt.Fprintln(r.log, line)
	}
	if err == nil {
		err = errNoResult
	}
	return err
}

// lines is a writer that passes on each line that is whole, without its end.
type lines struct {
	pass func(string)
	line []byte
}

// Write never fails.
func (l *lines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte("\n"))
		if room := maxLine - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(room, len(part))]...)
		}
		if whole {
			l.pass(strings.TrimRight(string(l.line), "\r"))
			l.line = l.line[:0]
		}
		rest = after
	}
	return len(p), nil
}

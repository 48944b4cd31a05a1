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

// reportMark is the prefix of the lines on a VM's second serial port that imagegen reads:
//
//	imagegen-bake: step WHAT
//	imagegen-bake: failed STATUS
//	imagegen-bake: done
//
// All other lines are output of programs.
const reportMark = "imagegen-bake: "

// maxLine is the number of bytes of a line that are kept.
const maxLine = 4096

// report follows a bake through the serial ports of its VM. Console output goes to the log until the bake prints its
// first line.
type report struct {
	step func(string) // called for each step
	log  io.Writer

	mu      sync.Mutex
	begun   bool     // the bake has printed a line
	console []string // the last console lines since then
	result  error    // the bake's result; errNoResult until the VM reports one
}

var errNoResult = errors.New("the VM ended without reporting a result")

func newReport(log io.Writer, step func(string)) *report {
	return &report{step: step, log: log, result: errNoResult}
}

// bakeLine handles a line of the second serial port.
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

// colours matches terminal escape sequences.
var colours = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// consoleLine handles a line of the first serial port.
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

// end returns the result of the bake after the VM has ended with err. If the VM has reported no result, it appends the
// last console lines to the log.
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

// lines is a writer that passes on complete lines without their ends.
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

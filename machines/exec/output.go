package exec

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// limited passes on at most limit bytes; 0: no limit.
type limited struct {
	w        io.Writer
	limit    int64
	written  int64
	over     bool
	exceeded func() // stops the program
}

var errTooMuch = errors.New("too much output")

func (l *limited) Write(p []byte) (int, error) {
	if l.written += int64(len(p)); l.limit > 0 && l.written > l.limit {
		if !l.over {
			l.over = true
			l.exceeded()
		}
		return 0, errTooMuch
	}
	return l.w.Write(p)
}

// printable drops control characters, which a terminal would interpret.
func printable(s string) string { return strings.Map(dropControl, s) }

// dropControl drops C0 and C1 controls except tabs, and characters that reorder text.
func dropControl(r rune) rune {
	if r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
		return -1
	}
	return r
}

// printableWriter drops control characters except line ends and tabs.
type printableWriter struct {
	w    io.Writer
	rest []byte // an incomplete character
}

func (p *printableWriter) Write(b []byte) (int, error) {
	data := append(p.rest, b...)
	whole := len(data)
	for i := 1; i < utf8.UTFMax && i <= len(data); i++ { // a character may be cut
		if tail := data[len(data)-i:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				whole -= i
			}
			break
		}
	}
	clean := bytes.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return dropControl(r)
	}, data[:whole])
	p.rest = append([]byte(nil), data[whole:]...)
	if _, err := p.w.Write(clean); err != nil {
		return 0, err
	}
	return len(b), nil
}

// lines logs a program's standard error and keeps the last lines for an error.
type lines struct {
	log    func(string)
	logged int
	line   []byte // the current line, truncated
	last   []string
}

func (l *lines) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == '\n':
			l.end()
		case len(l.line) < 4*maxLine:
			l.line = append(l.line, c)
		}
	}
	return len(p), nil
}

// end ends the current line.
func (l *lines) end() {
	text := strings.TrimSpace(printable(strings.ToValidUTF8(string(l.line), "�")))
	l.line = l.line[:0]
	if text == "" {
		return
	}
	if r := []rune(text); len(r) > maxLine {
		text = string(r[:maxLine]) + "…"
	}
	if l.last = append(l.last, text); len(l.last) > maxReason {
		l.last = l.last[1:]
	}
	if l.logged++; l.log == nil || l.logged > maxLogged {
		return
	}
	l.log(text)
}

// reason returns the program's last lines, as the end of an error.
func (l *lines) reason() string {
	if len(l.last) == 0 {
		return ", and it said nothing on standard error"
	}
	return ": " + strings.Join(l.last, "; ")
}

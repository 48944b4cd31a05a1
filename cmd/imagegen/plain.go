package main

import (
	"io"
	"unicode"
	"unicode/utf8"
)

// plainWriter removes what could control a terminal: control characters except line ends and tabs, escape sequences,
// and marks that change the text direction.
type plainWriter struct {
	w     io.Writer
	rest  []byte // the incomplete last character
	state plainState
}

type plainState int

const (
	plainText plainState = iota
	plainEscape
	plainSequence // ESC [ … letter
	plainString   // ESC ] … BEL or ESC \: for example titles
)

func (p *plainWriter) Write(b []byte) (int, error) {
	text := append(p.rest, b...)
	out := make([]byte, 0, len(text))
	for len(text) > 0 && utf8.FullRune(text) {
		r, n := utf8.DecodeRune(text)
		switch state := p.state; {
		case r == '\x1b':
			p.state = plainEscape
		case state == plainEscape && r == '[':
			p.state = plainSequence
		case state == plainEscape && (r == ']' || r == 'P' || r == '^' || r == '_' || r == 'X'):
			p.state = plainString
		case state == plainEscape:
			p.state = plainText
		case r == '\n':
			p.state = plainText // sequences end with the line: an unterminated one must not hide everything after it
			out = append(out, '\n')
		case state == plainSequence:
			if r >= '@' && r <= '~' {
				p.state = plainText
			}
		case state == plainString:
			if r == '\a' {
				p.state = plainText
			}
		case !steers(r):
			out = utf8.AppendRune(out, r)
		}
		text = text[n:]
	}
	p.rest = append([]byte(nil), text...)
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// steers reports whether a character has an effect on a terminal beyond being shown.
func steers(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
}

package main

import (
	"io"
	"unicode"
	"unicode/utf8"
)

// plainWriter passes on text without what steers a terminal: control characters but line ends and tabs, escape sequences as
// a whole, and marks that turn the direction of writing.
type plainWriter struct {
	w     io.Writer
	rest  []byte // of a character that is not whole yet
	state plainState
}

type plainState int

const (
	plainText plainState = iota
	plainEscape
	plainSequence // ESC [ … letter
	plainString   // ESC ] … BEL or ESC \: titles, say
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
			p.state = plainText // no sequence goes on over lines: a program that died in one would hide all that follows
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

// steers reports whether a character does more to a terminal than being shown.
func steers(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
}

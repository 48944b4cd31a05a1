package main

import (
	"strings"
	"testing"
)

// TestControlCharacters: text from nodes and programs cannot control the operator's terminal.
func TestControlCharacters(t *testing.T) {
	var out strings.Builder
	b := &block{w: &out}
	b.say("%s", "a\x1b]0;title\x07b\rc\u009b2Jd\te")
	if got, want := out.String(), "a]0;titlebc2Jd\te\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	b.terminal = true
	b.show([]string{"x\x1b[2Jy"})
	if strings.Contains(out.String(), "\x1b[2J") {
		t.Errorf("%q", out.String())
	}
}

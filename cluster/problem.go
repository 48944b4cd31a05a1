package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is an error in a file written by the user.
type Problem struct {
	File      string
	Line, Col int    // 1-based
	Path      string // such as roles.web.nodes.web3; empty: the file as a whole
	Msg       string // what is wrong; how to fix it
}

// String returns the problem as FILE:LINE:COL: PATH: MSG, on one line.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Col)
	if p.Path != "" {
		s += p.Path + ": "
	}
	return s + p.Msg
}

// Problems are all errors in a file. As an error they are printed one per line, in the order of the file.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sort sorts ps in the order of the file.
func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
}

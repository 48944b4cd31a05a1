// Package unified compares texts line by line, as diff -u does.
package unified

import (
	"fmt"
	"strings"
)

// context is the number of unchanged lines around a change.
const context = 3

// maxLines limits the memory of a comparison, which grows with the square of the lines that differ.
const maxLines = 10000

// line is a line of the comparison; op is ' ' (in both), '-' (in the old text) or '+' (in the new one).
type line struct {
	op   byte
	text string
}

// Diff returns how now differs from old, as hunks without the two lines that name files. Equal texts give "".
func Diff(old, now string) string {
	if old == now {
		return ""
	}
	lines := compare(split(old), split(now))
	var b strings.Builder
	at, atOld, atNew := 0, 1, 1 // the next line of the comparison, and of the texts
	for at < len(lines) {
		next := at
		for next < len(lines) && lines[next].op == ' ' {
			next++
		}
		if next == len(lines) {
			break
		}
		skip := max(at, next-context)
		atOld, atNew = atOld+skip-at, atNew+skip-at
		end, same := next, 0
		for end < len(lines) && same <= 2*context {
			if same++; lines[end].op != ' ' {
				same = 0
			}
			end++
		}
		if same > context {
			end -= same - context
		}
		hunk(&b, lines[skip:end], &atOld, &atNew)
		at = end
	}
	return b.String()
}

func hunk(b *strings.Builder, lines []line, atOld, atNew *int) {
	olds, news := 0, 0
	for _, l := range lines {
		if l.op != '+' {
			olds++
		}
		if l.op != '-' {
			news++
		}
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n", span(*atOld, olds), span(*atNew, news))
	for _, l := range lines {
		b.WriteByte(l.op)
		b.WriteString(l.text)
		if !strings.HasSuffix(l.text, "\n") {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
	*atOld, *atNew = *atOld+olds, *atNew+news
}

// span is a range of lines as diff writes it: an empty one names the line before it.
func span(at, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", at-1)
	case 1:
		return fmt.Sprint(at)
	}
	return fmt.Sprintf("%d,%d", at, n)
}

func split(text string) []string {
	lines := strings.SplitAfter(text, "\n")
	if last := len(lines) - 1; lines[last] == "" {
		return lines[:last]
	}
	return lines
}

// compare finds a shortest comparison (E. Myers, An O(ND) Difference Algorithm and Its Variations, 1986).
func compare(a, b []string) []line {
	limit := len(a) + len(b)
	if limit > maxLines {
		var all []line
		for _, text := range a {
			all = append(all, line{'-', text})
		}
		for _, text := range b {
			all = append(all, line{'+', text})
		}
		return all
	}
	ends := make([]int, 2*limit+2) // for each diagonal, offset by limit: how far into a a path has come
	var trace [][]int
	for d := 0; d <= limit; d++ {
		trace = append(trace, append([]int(nil), ends[limit-d:limit+d+1]...))
		for k := -d; k <= d; k += 2 {
			x := 0
			if d > 0 {
				if k == -d || k != d && ends[limit+k-1] < ends[limit+k+1] {
					x = ends[limit+k+1]
				} else {
					x = ends[limit+k-1] + 1
				}
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			if ends[limit+k] = x; x >= len(a) && x-k >= len(b) {
				return walk(a, b, trace)
			}
		}
	}
	return nil // not reached: deleting all of a and adding all of b is a path
}

// walk goes back from the end along the paths in trace, whose element d has the diagonals -d to d as they were before step d.
func walk(a, b []string, trace [][]int) []line {
	var reversed []line
	x, y := len(a), len(b)
	for d := len(trace) - 1; d >= 0; d-- {
		k := x - y
		px, py := 0, 0
		if d > 0 {
			ends := trace[d]
			from := k - 1
			if k == -d || k != d && ends[d+k-1] < ends[d+k+1] {
				from = k + 1
			}
			px = ends[d+from]
			py = px - from
		}
		for x > px && y > py {
			x, y = x-1, y-1
			reversed = append(reversed, line{' ', a[x]})
		}
		if d > 0 && x > px {
			x--
			reversed = append(reversed, line{'-', a[x]})
		} else if d > 0 {
			y--
			reversed = append(reversed, line{'+', b[y]})
		}
	}
	for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
		reversed[i], reversed[j] = reversed[j], reversed[i]
	}
	return reversed
}

package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Problem is one fault in a file that a person wrote.
type Problem struct {
	File      string
	Line, Col int    // from 1
	Path      string // such as roles.web.nodes.web3; empty: the file as a whole
	Msg       string // what is wrong; what would be right
}

// String returns the problem as FILE:LINE:COL: PATH: MSG, on one line.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Col)
	if p.Path != "" {
		s += p.Path + ": "
	}
	return s + p.Msg
}

// Problems are all faults of a file. As an error they are printed one a line, in the order of the file.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sort brings ps in the order of the file.
func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
}

// quote shows text from a file inside a message: on one line, not too long, and in quotes where it could be mistaken
// for the message's own words.
func quote(text string) string {
	const limit = 60
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit]) + "…"
	}
	for _, r := range text {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-:/@+%…", r) {
			return strconv.Quote(text)
		}
	}
	if text == "" {
		return `""`
	}
	return text
}

// join makes a list for a sentence: "a, b or c".
func join(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

// hint ends a message about a word that is none of words: with the one that was probably meant, else with all of them
// after lead ("it may be", say).
func hint(word, lead string, words []string) string {
	if near := Nearest(word, words); near != "" {
		return "; did you mean " + near + "?"
	}
	return "; " + lead + " " + join(words, "or")
}

// Nearest returns the one of words that text begins or is a slip of, or "". A slip is one letter, in longer words a third of
// them: with more, short words would be suggested for ones that have nothing to do with them. Another number is no slip:
// web9 is not web1.
func Nearest(text string, words []string) string {
	if len(text) > 40 {
		return ""
	}
	text = strings.ToLower(text)
	best, least := "", 2
	if len(text) > 5 {
		least = (len(text)+1)/3 + 1
	}
	for _, w := range words {
		if len(text) >= 3 && strings.HasPrefix(w, text) {
			return w
		}
		if d := distance(text, w); d < least && d < len(w) && (digits(text) == "" || digits(w) == "" || digits(text) == digits(w)) {
			best, least = w, d
		}
	}
	for _, w := range words {
		if best == "" && len(w) >= 3 && strings.HasPrefix(text, w) {
			best = w
		}
	}
	return best
}

// digits returns the digits in text.
func digits(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return r
		}
		return -1
	}, text)
}

// distance is the number of letters to insert, remove, replace or swap with their neighbour that makes b of a.
func distance(a, b string) int {
	row := make([][]int, len(a)+1)
	for i := range row {
		row[i] = make([]int, len(b)+1)
		row[i][0] = i
	}
	for j := range row[0] {
		row[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[i][j] = min(row[i-1][j]+1, row[i][j-1]+1, row[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[i][j] = min(row[i][j], row[i-2][j-2]+1)
			}
		}
	}
	return row[len(a)][len(b)]
}

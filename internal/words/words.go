// Package words helps to word messages: quoting, lists, and suggestions for typing errors.
package words

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Quote formats text from a file for a message: on one line, shortened, and in quotes if it could be confused with the
// message's own words.
func Quote(text string) string {
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

// List joins words for a sentence: "a, b or c".
func List(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

// Hint ends a message about an unknown word: with the one of words that was probably meant, or else with all of them
// after lead (for example "it may be").
func Hint(word, lead string, words []string) string {
	if near := Nearest(word, words); near != "" {
		return "; did you mean " + near + "?"
	}
	return "; " + lead + " " + List(words, "or")
}

// Count returns "1 node", "2 nodes".
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Nearest returns the one of words that text is a prefix or a misspelling of, or "". A misspelling differs in one
// letter, in longer words in up to a third of the letters; with more, unrelated short words would be suggested. A
// different number is not a misspelling: web9 is not web1.
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

// distance is the number of letters to insert, delete, substitute or transpose to turn a into b.
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

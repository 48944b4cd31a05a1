package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"imagegen/internal/words"
)

// SpecLimit is the maximum size of a spec in bytes. A thousand nodes take 40 KiB.
const SpecLimit = 1 << 20

// reader walks a YAML document and collects errors. Its methods report an error themselves and then return false; a
// value that was reported has no node, so that nothing is reported twice.
type reader struct {
	file     string
	problems Problems
}

// value is a YAML value and its position.
type value struct {
	node      *yaml.Node // nil: missing, or already reported
	line, col int
	path      string
	missing   bool
}

// entry is a key of a mapping and its value; at is the key's position.
type entry struct {
	key string
	at  value
	value
}

func (r *reader) faultf(at value, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.file, max(at.line, 1), max(at.col, 1), at.path, fmt.Sprintf(format, args...)})
}

// document returns the root of the single document in data.
func (r *reader) document(data []byte) (value, bool) {
	top := value{line: 1, col: 1}
	if len(data) > SpecLimit {
		r.faultf(top, "the file is too large; a spec has %s at most", Bytes(SpecLimit))
		return top, false
	}
	if !utf8.Valid(data) {
		line, col := 1, 1
		for len(data) > 0 {
			c, n := utf8.DecodeRune(data)
			if c == utf8.RuneError && n == 1 {
				break
			}
			if col++; c == '\n' {
				line, col = line+1, 1
			}
			data = data[n:]
		}
		r.faultf(value{line: line, col: col}, "this is not UTF-8 text; save the file as UTF-8")
		return top, false
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	err := d.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF):
		r.faultf(top, "the file is empty; imagegen init writes an example")
		return top, false
	case err != nil:
		r.syntax(data, err)
		return top, false
	}
	switch err := d.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.syntax(data, err)
		return top, false
	default:
		r.faultf(r.at(&second, ""), "a second document begins here; a spec is one document, remove the line ---")
	}
	return r.at(doc.Content[0], ""), true
}

var (
	syntaxLine = regexp.MustCompile(`^(?:yaml: )?line ([0-9]+): `)
	tabIndent  = regexp.MustCompile(`(?m)^ *\t`)
)

// syntax reports that data is not YAML.
func (r *reader) syntax(data []byte, err error) {
	// The parser reports a tab as "found character that cannot start any token".
	if at := tabIndent.FindIndex(data); at != nil {
		line := 1 + bytes.Count(data[:at[0]], []byte("\n"))
		r.faultf(value{line: line, col: at[1] - at[0]}, "there is a tab; YAML is indented with spaces")
		return
	}
	msg, line := err.Error(), 1
	if m := syntaxLine.FindStringSubmatch(msg); m != nil {
		msg = msg[len(m[0]):]
		line, _ = strconv.Atoi(m[1])
		if strings.HasPrefix(msg, "did not find expected") {
			line++ // these errors count lines from 0, others from 1
		}
	}
	lines := bytes.Split(data, []byte("\n"))
	line = min(line, len(lines)) // an error at the end of the file is one line too far
	col := 1 + len(lines[line-1]) - len(bytes.TrimLeft(lines[line-1], " "))
	r.faultf(value{line: line, col: col}, "this is not YAML: %s; look for a missing quote, colon, bracket or space here or above",
		strings.TrimPrefix(msg, "yaml: "))
}

// at returns n as a value.
func (r *reader) at(n *yaml.Node, path string) value {
	v := value{node: n, line: n.Line, col: n.Column, path: path}
	switch {
	case n.Kind == yaml.AliasNode:
		r.faultf(v, "YAML aliases are not understood here; write the value out")
		v.node = nil
	case n.Style&yaml.TaggedStyle != 0:
		r.faultf(v, "YAML tags are not understood here; leave out %s", words.Quote(n.Tag))
		v.node = nil
	}
	return v
}

// describe says what kind of value v is.
func (v value) describe() string {
	switch {
	case v.node.Kind == yaml.MappingNode:
		return "a mapping"
	case v.node.Kind == yaml.SequenceNode:
		return "a list"
	case v.node.Tag == "!!null":
		return "nothing"
	}
	return words.Quote(v.node.Value)
}

// mapping returns the entries of v in the file's order; example is a valid value.
func (r *reader) mapping(v value, example string) ([]entry, bool) {
	if v.node == nil {
		return nil, false
	}
	if v.node.Kind != yaml.MappingNode {
		r.faultf(v, "must be a mapping, such as %s; here is %s", example, v.describe())
		return nil, false
	}
	first := map[string]int{}
	var entries []entry
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k := v.node.Content[i]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!null" {
			r.faultf(value{line: k.Line, col: k.Column, path: v.path}, "a key must be a plain word")
			continue
		}
		path := strings.TrimPrefix(v.path+"."+words.Quote(k.Value), ".")
		at := value{node: k, line: k.Line, col: k.Column, path: path}
		if line, twice := first[k.Value]; twice {
			r.faultf(at, "is given twice, first in line %d; remove one", line)
			continue
		}
		first[k.Value] = k.Line
		entries = append(entries, entry{k.Value, at, r.at(v.node.Content[i+1], path)})
	}
	return entries, true
}

// object returns the entries of a mapping with known keys, by key. A missing key gives a value without a node, at the
// mapping's position.
func (r *reader) object(v value, example string, keys ...string) (func(key string) value, bool) {
	entries, ok := r.mapping(v, example)
	found := map[string]value{}
	for _, e := range entries {
		switch near := words.Nearest(e.key, keys); {
		case slices.Contains(keys, e.key):
			found[e.key] = e.value
		case e.key == "<<":
			r.faultf(e.at, "YAML merge keys are not understood here; write the values out")
			for _, k := range keys {
				found[k] = cmp.Or(found[k], value{path: e.path}) // it would have been merged
			}
		case e.node != nil && e.node.Tag == "!!null" && strings.Contains(e.key, ":"):
			r.faultf(e.at, "a space is missing after the colon")
		default:
			r.faultf(e.at, "there is no such key%s", words.Hint(e.key, "it may be", keys))
			if _, there := found[near]; near != "" && !there {
				found[near] = value{path: e.path} // misspelt, so not missing
			}
		}
	}
	return func(key string) value {
		if f, ok := found[key]; ok {
			return f
		}
		return value{line: v.line, col: v.col, path: strings.TrimPrefix(v.path+"."+key, "."), missing: true}
	}, ok
}

// given reports whether v has a value that was not reported yet.
func (v value) given() bool { return v.node != nil }

// text returns a scalar literally, whatever YAML would make of it: 010 and yes stay as they are. what describes the
// expected value.
func (r *reader) text(v value, what string) (string, bool) {
	switch {
	case v.node == nil:
		return "", false
	case v.node.Kind != yaml.ScalarNode, v.node.Tag == "!!null":
		r.faultf(v, "must be %s; here is %s", what, v.describe())
		return "", false
	}
	s := strings.TrimSuffix(v.node.Value, "\n") // a block scalar (|) ends with a newline
	if len(s) > 16<<10 {
		r.faultf(v, "is %d KiB long; must be %s", len(s)>>10, what)
		return "", false
	}
	if i := strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }); i >= 0 || strings.TrimSpace(s) == "" {
		reason := "is empty"
		if i >= 0 {
			reason = "has a line break or a character that cannot be printed"
		}
		r.faultf(v, "%s; must be %s", reason, what)
		return "", false
	}
	return s, true
}

// number returns a whole number from low to high.
func (r *reader) number(v value, low, high int) (int, bool) {
	what := fmt.Sprintf("a whole number from %d to %d", low, high)
	s, ok := r.text(v, what)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high || strconv.Itoa(n) != s {
		r.faultf(v, "%s is not %s", words.Quote(s), what)
		return 0, false
	}
	return n, true
}

// list returns the elements of v.
func (r *reader) list(v value, example string) []value {
	if v.node == nil {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		r.faultf(v, "must be a list, such as %s; here is %s", example, v.describe())
		return nil
	}
	vs := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		vs[i] = r.at(n, fmt.Sprintf("%s[%d]", v.path, i))
	}
	return vs
}

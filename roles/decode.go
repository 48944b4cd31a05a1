package roles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// decode fills role from a role.yaml and reports whether it is usable YAML. Decoding is strict: misspelt keys,
// duplicate keys and values of the wrong kind are errors, and all of them are reported. Valid parts are decoded anyway,
// so that their errors are found in the same pass.
func (s *source) decode(data []byte, role *Role) bool {
	s.at = map[string]position{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			s.fault("", "is empty")
		} else {
			s.syntaxFault(err)
		}
		return false
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		s.fault("", "holds more than one YAML document")
		return false
	}
	root := doc.Content[0]
	s.shape(root, reflect.TypeFor[Role](), "", "yaml")
	s.paramShapes(root)
	if root.Kind != yaml.MappingNode {
		return false
	}
	for _, p := range s.problems {
		if p.Path != "" {
			s.broken = append(s.broken, p.Path)
		}
	}
	dropRepeated(root)
	if err := root.Decode(role); err != nil && len(s.problems) == 0 {
		s.syntaxFault(err)
		return false
	}
	return true
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+): (.*)$`)

// syntaxFault reports an error of yaml.v3.
func (s *source) syntaxFault(err error) {
	p := cluster.Problem{File: s.role.file, Line: 1, Col: 1, Msg: strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Msg = m[2]
	}
	s.problems = append(s.problems, p)
}

// shape checks a YAML value against the Go type that it decodes into; tag is the struct tag with a struct's keys. In
// parameters (tag json), a number or boolean may be a template; the field's type says what it must render to.
func (s *source) shape(n *yaml.Node, t reflect.Type, path, tag string) {
	s.at[path] = position{n.Line, n.Column}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		s.fault(path, "YAML aliases are not understood here; write the value out")
		return
	}
	wrong := func(want string) { s.fault(path, "must be %s, not %s", want, describe(n)) }
	switch t.Kind() {
	case reflect.Interface: // parameters; checked when their kind is known
	case reflect.Struct, reflect.Map:
		if n.Kind != yaml.MappingNode {
			wrong("a mapping (key: value)")
			return
		}
		fields := fieldsOf(t, tag)
		seen := map[string]bool{}
		for i := 0; i < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			at := strings.TrimPrefix(path+"."+k.Value, ".")
			s.at[at] = position{k.Line, k.Column}
			switch ft, known := fields[k.Value]; {
			case k.Kind != yaml.ScalarNode:
				s.fault(path, "a key must be a plain word")
			case seen[k.Value]:
				s.fault(at, "is given twice")
			case t.Kind() == reflect.Map:
				s.shape(v, t.Elem(), at, tag)
			case !known:
				s.unknownKey(at, path, k.Value, keysOf(t, tag))
			default:
				s.shape(v, ft, at, tag)
			}
			seen[k.Value] = true
		}
		for _, key := range required(t, tag) {
			if !seen[key] && !slices.Contains(s.broken, strings.TrimPrefix(path+"."+key, ".")) {
				s.fault(path, "%s is missing", key)
			}
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			wrong("a list")
			return
		}
		for i, e := range n.Content {
			s.shape(e, t.Elem(), index(path, i), tag)
		}
	case reflect.String:
		switch {
		case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
			wrong("text")
		case tag == "json" && n.Tag != "!!str":
			s.fault(path, "must be text; write %q, in quotes", n.Value)
		}
	case reflect.Int:
		if n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || tag == "json" && strings.Contains(n.Value, "{{")) {
			break
		}
		wrong("a whole number")
	case reflect.Bool:
		if n.Kind == yaml.ScalarNode && (n.Tag == "!!bool" || tag == "json" && strings.Contains(n.Value, "{{")) {
			break
		}
		wrong("true or false")
	default:
		panic("role.yaml: no rule for a " + t.String())
	}
}

// dropRepeated removes duplicate keys, which would make yaml.v3 reject the whole mapping.
func dropRepeated(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		kept := n.Content[:0]
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key := n.Content[i].Value; !seen[key] {
				seen[key] = true
				kept = append(kept, n.Content[i], n.Content[i+1])
			}
		}
		n.Content = kept
	}
	for _, c := range n.Content {
		dropRepeated(c)
	}
}

// unknownKey reports a key that is not among keys. The key that was probably meant then does not count as missing.
func (s *source) unknownKey(at, path, key string, keys []string) {
	near := words.Nearest(key, keys)
	if near == "" {
		s.fault(at, "there is no such key; here may be %s", strings.Join(keys, ", "))
		return
	}
	s.fault(at, "there is no such key; did you mean %s?", near)
	s.broken = append(s.broken, strings.TrimPrefix(path+"."+near, "."))
}

// paramShapes checks the parameters of components with a known kind.
func (s *source) paramShapes(root *yaml.Node) {
	components := child(root, "components")
	if components == nil || components.Kind != yaml.SequenceNode {
		return
	}
	for i, c := range components.Content {
		kind, params := child(c, "kind"), child(c, "params")
		if kind == nil || facts.ParamsFor[kind.Value] == nil {
			continue // checkComponents reports it
		}
		at := index("components", i) + ".params"
		if params == nil {
			s.at[at] = position{c.Line, c.Column}
			s.fault(at, "missing; a %s has %s", kind.Value, strings.Join(keysOf(reflect.TypeOf(facts.ParamsFor[kind.Value]()).Elem(), "json"), ", "))
			continue
		}
		s.shape(params, reflect.TypeOf(facts.ParamsFor[kind.Value]()), at, "json")
	}
}

// child returns the value of a mapping's key, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// fieldsOf returns the types of a struct's fields by key; nil for a map.
func fieldsOf(t reflect.Type, tag string) map[string]reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	m := map[string]reflect.Type{}
	for i := range t.NumField() {
		if key, _, _ := strings.Cut(t.Field(i).Tag.Get(tag), ","); key != "" && key != "-" {
			m[key] = t.Field(i).Type
		}
	}
	return m
}

// keysOf lists the keys of a struct in field order.
func keysOf(t reflect.Type, tag string) []string {
	var keys []string
	for i := range t.NumField() {
		if key, _, _ := strings.Cut(t.Field(i).Tag.Get(tag), ","); key != "" && key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

// required lists the keys that a struct of parameters must have: those without omitempty.
func required(t reflect.Type, tag string) []string {
	if t.Kind() != reflect.Struct || tag != "json" {
		return nil
	}
	var keys []string
	for i := range t.NumField() {
		if key, options, _ := strings.Cut(t.Field(i).Tag.Get(tag), ","); options != "omitempty" {
			keys = append(keys, key)
		}
	}
	return keys
}

// describe says in words what kind of value n is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return fmt.Sprintf("%q", n.Value)
}

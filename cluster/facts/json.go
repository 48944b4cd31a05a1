package facts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"imagegen/internal/words"
)

// Encode returns the facts as JSON that Decode accepts: the same bytes for the same facts, whatever the order of keys
// in the parameters, with a newline at the end. Facts that an agent would refuse are an error.
func (f Facts) Encode() ([]byte, error) {
	if f.Peers == nil {
		f.Peers = []Peer{}
	}
	f.Components = slices.Clone(f.Components)
	for i, c := range f.Components {
		params, err := DecodeParams(c.Kind, c.Params)
		if err != nil {
			return nil, fmt.Errorf("component %s: %w", words.Quote(c.Name), err)
		}
		if f.Components[i].Params, err = marshal(params, ""); err != nil {
			return nil, fmt.Errorf("component %s: %w", words.Quote(c.Name), err)
		}
	}
	if f.Version != FactsVersion {
		return nil, fmt.Errorf("version: %d is not %d", f.Version, FactsVersion)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return marshal(f, "  ")
}

// marshal is json.Marshal without HTML escapes and with a newline at the end.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}

// Decode reads the output of Encode. It is strict: unknown keys, and components that could not run, are errors, because
// an agent that ignores part of its instructions can do harm.
func Decode(data []byte) (Facts, error) {
	// Check the version first: unknown keys in newer facts are not the error to report.
	var head struct {
		Version *int `json:"version"`
	}
	if err := DecodeJSON(data, &head, false); err != nil {
		return Facts{}, fmt.Errorf("not a facts file: %w", err)
	}
	switch {
	case head.Version == nil:
		return Facts{}, errors.New("not a facts file: it has no version")
	case *head.Version != FactsVersion && *head.Version != factsVersion1:
		return Facts{}, fmt.Errorf("the facts have version %d, this agent reads versions %d and %d: "+
			"image and seed are from different releases of imagegen; build both with the same one", *head.Version, factsVersion1, FactsVersion)
	}
	var f Facts
	if err := DecodeJSON(data, &f, true); err != nil {
		return Facts{}, fmt.Errorf("broken facts: %w", err)
	}
	for _, c := range f.Components {
		if _, err := DecodeParams(c.Kind, c.Params); err != nil {
			return Facts{}, fmt.Errorf("broken facts: component %s: %w", words.Quote(c.Name), err)
		}
	}
	if err := f.check(); err != nil {
		return Facts{}, fmt.Errorf("broken facts: %w", err)
	}
	return f, nil
}

// DecodeParams reads the parameters of a component of a kind. The result is a pointer to one of the types in ParamsFor.
// Unknown keys are an error.
func DecodeParams(kind string, raw []byte) (any, error) {
	empty, ok := ParamsFor[kind]
	if !ok {
		return nil, fmt.Errorf("there is no kind of component %s; it may be %s",
			words.Quote(kind), words.List(slices.Sorted(maps.Keys(ParamsFor)), "or"))
	}
	params := empty()
	if err := DecodeJSON(raw, params, true); err != nil {
		return nil, fmt.Errorf("params: %w", err)
	}
	if s, ok := params.(*ServiceParams); ok {
		for _, c := range []struct {
			key   string
			check *Check
		}{{"check", s.Check}, {"alive", s.Alive}} {
			if c.check != nil && c.check.ways() != 1 {
				return nil, fmt.Errorf("params: %s: give exactly one of tcp, http, fastcgi and exec", c.key)
			}
		}
		if s.Alive != nil && s.Check == nil {
			return nil, errors.New("params: alive: is only for a unit with check")
		}
	}
	return params, nil
}

// ways counts how a check says that it is to be made.
func (c *Check) ways() (n int) {
	for _, set := range []bool{c.TCP != "", c.HTTP != "", c.FastCGI != "", len(c.Exec) > 0} {
		if set {
			n++
		}
	}
	return n
}

// DecodeJSON decodes the single JSON object in data into the struct that v points to. strict refuses unknown keys.
func DecodeJSON(data []byte, v any, strict bool) error {
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) {
		return errors.New("must be a JSON object, {…}")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if strict {
		d.DisallowUnknownFields()
	}
	err := d.Decode(v)
	if err == nil {
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return errors.New("something comes after the JSON object")
		}
		return nil
	}
	// The library's errors name Go types, which mean nothing to readers of a node's console.
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("%s: a %s does not belong here", words.Quote(wrong.Field), strings.Fields(wrong.Value)[0])
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON is cut off")
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fmt.Errorf("the key %s is not known", name)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

// componentName must be usable in the path of a URL and as a folder's name.
var componentName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

var UUIDForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// check returns an error for facts that an agent could not work with.
func (f Facts) check() error {
	if f.Version == factsVersion1 && len(f.Files)+len(f.Sysctl) > 0 {
		return fmt.Errorf("facts of version %d have neither files nor sysctl", factsVersion1)
	}
	if f.Cluster == "" {
		return errors.New("cluster: the name is missing")
	}
	if !UUIDForm.MatchString(f.ClusterID) {
		return fmt.Errorf("cluster_id: %s is not a UUID", words.Quote(f.ClusterID))
	}
	seen := map[string]bool{}
	for _, p := range append([]Peer{f.Node}, f.Peers...) {
		if p.Name == "" || p.Role == "" || p.Index < 0 {
			return fmt.Errorf("node %s: it must have a name, a role, and an index from 0", words.Quote(p.Name))
		}
		if ip, err := netip.ParseAddr(p.IP); err != nil || !ip.Is4() {
			return fmt.Errorf("node %s: ip: %s is not an IPv4 address", words.Quote(p.Name), words.Quote(p.IP))
		}
		for _, unique := range []string{p.Name, p.IP} {
			if seen[unique] {
				return fmt.Errorf("node %s: %s is given to two nodes", words.Quote(p.Name), words.Quote(unique))
			}
			seen[unique] = true
		}
	}
	before := map[string]bool{}
	for _, c := range f.Components {
		if !componentName.MatchString(c.Name) {
			return fmt.Errorf("component %s: a name has lower-case letters, digits, - and _", words.Quote(c.Name))
		}
		if before[c.Name] {
			return fmt.Errorf("component %s: there are two", c.Name)
		}
		for _, name := range c.After {
			// This also rules out cycles.
			if !before[name] {
				return fmt.Errorf("component %s: after: %s must be a component that stands before it in the list", c.Name, words.Quote(name))
			}
		}
		before[c.Name] = true
	}
	return f.checkFiles()
}

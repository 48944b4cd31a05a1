// Package packages resolves, pins, downloads and stores the packages that images are made from, out of a Debian archive (with APT) or RPM
// repositories. It reads and writes the lock file and generates SBOMs. It installs nothing, and does not know which packages an image
// needs.
package packages

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"imagegen/internal/atomicfile"
)

const lockHead = `# The pinned packages of every image, written by imagegen. Keep this file with the spec.
# "imagegen lock" pins the current versions in the archive.
`

// Lock pins every package of every image. Packages of roles are in addition to those of the base.
type Lock struct {
	Schema  int              `yaml:"schema"` // 1
	Distro  string           `yaml:"distro"`
	LeftOut []string         `yaml:"left_out,omitempty"` // suites that the mirror lacks
	Base    *Pins            `yaml:"base,omitempty"`
	Roles   map[string]*Pins `yaml:"roles,omitempty"`
}

// Pins are the packages that a list of names was resolved to.
type Pins struct {
	Requested []string `yaml:"requested"` // names; for package files, with the file's hash
	Packages  []Pin    `yaml:"packages"`  // sorted by name
}

// Pin is a package with exact version and content.
type Pin struct {
	Name, Version, Architecture string
	SHA256                      string // of the package file
}

// MarshalText writes a package as one line, so that locks are readable and diffs are line by line.
func (p Pin) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s %s %s %s", p.Name, p.Version, p.Architecture, p.SHA256), nil
}

// UnmarshalText parses the output of MarshalText.
func (p *Pin) UnmarshalText(text []byte) error {
	f := strings.Split(string(text), " ")
	if len(f) != 4 || !isSHA256(f[3]) || slices.ContainsFunc(f[:3], func(s string) bool { return !Word.MatchString(s) }) {
		return fmt.Errorf("%q is not a package's name, version, architecture and SHA-256", text)
	}
	*p = Pin{f[0], f[1], f[2], f[3]}
	return nil
}

// Word matches names, versions and architectures of packages, which become arguments and file names.
var Word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~^:_-]*$`)

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func (p Pin) String() string { return p.Name + " " + p.Version }

// Named returns the sources that go into an image: without those that the archive lacks.
func (l *Lock) Named(sources []string) []string {
	return slices.DeleteFunc(slices.Clone(sources), func(line string) bool {
		all := parseList(line)
		return len(all) == 1 && slices.Contains(l.LeftOut, all[0].suite)
	})
}

// Clone copies a lock. Pins are shared: they are replaced, never modified.
func (l *Lock) Clone() *Lock {
	n := *l
	n.Roles = map[string]*Pins{}
	for name, p := range l.Roles {
		n.Roles[name] = p
	}
	return &n
}

// Fit returns p if it was resolved from this list of names, or nil.
func (p *Pins) Fit(requested []string) *Pins {
	if p == nil || !slices.Equal(p.Requested, requested) {
		return nil
	}
	return p
}

// Misfits returns the roles whose pins are missing or stale.
func (l *Lock) Misfits(requests map[string][]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		if l.Roles[name].Fit(requests[name]) == nil {
			names = append(names, name)
		}
	}
	return names
}

// TooOld describes the first pinned package that is older than the role's minimum, or returns "".
func TooOld(minimum map[string]string, packages []Pin) string {
	for _, p := range packages {
		least := minimum[p.Name]
		version := p.Version[strings.Index(p.Version, ":")+1:]
		version, _, _ = strings.Cut(version, "-")
		if least != "" && compareNumbers(version, least) < 0 {
			return fmt.Sprintf("%s, which is too old: the role needs %s or later", p, least)
		}
	}
	return ""
}

// compareNumbers compares versions such as 5.7.26 number by number. It ignores other characters after the digits of a
// number.
func compareNumbers(a, b string) int {
	split := func(v string) (numbers []int) {
		for _, part := range strings.Split(v, ".") {
			digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
			n, _ := strconv.Atoi(part[:digits])
			numbers = append(numbers, n)
		}
		return numbers
	}
	return slices.Compare(split(a), split(b))
}

// Moved describes how the lock differs from old, for the base and the named roles: one line for each that differs.
func (l *Lock) Moved(old *Lock, names []string) []string {
	var lines []string
	add := func(name string, old, now *Pins) {
		var before, after []Pin
		if old != nil {
			before = old.Packages
		}
		if now != nil {
			after = now.Packages
		}
		if change := Change(before, after); change != "" {
			lines = append(lines, name+": "+change)
		}
	}
	add("base", old.Base, l.Base)
	for _, name := range names {
		add(name, old.Roles[name], l.Roles[name])
	}
	return lines
}

// Change describes which packages were added (+), removed (-) or have another version (→).
func Change(old, now []Pin) string {
	var change []string
	// A name may occur once per architecture.
	names := map[string]int{}
	for _, list := range [][]Pin{old, now} {
		count := map[string]int{}
		for _, p := range list {
			count[p.Name]++
			names[p.Name] = max(names[p.Name], count[p.Name])
		}
	}
	same := func(p Pin) func(Pin) bool {
		return func(o Pin) bool {
			return o.Name == p.Name && (names[p.Name] == 1 || o.Architecture == p.Architecture)
		}
	}
	for _, p := range now {
		i := slices.IndexFunc(old, same(p))
		switch {
		case i < 0:
			change = append(change, "+ "+p.String())
		case old[i].Version != p.Version:
			change = append(change, fmt.Sprintf("%s %s → %s", p.Name, old[i].Version, p.Version))
		case old[i] != p:
			change = append(change, p.String()+" with different content")
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, same(o)) {
			change = append(change, "- "+o.String())
		}
	}
	return strings.Join(change, ", ")
}

// DropBase removes the pins of the base and of all roles: those of the roles depend on the base.
func (l *Lock) DropBase() {
	l.Base, l.Roles = nil, map[string]*Pins{}
}

// Listed names packages for a message, at most five of them.
func Listed(all []Pin) string {
	var names []string
	for _, p := range all[:min(len(all), 5)] {
		names = append(names, p.String())
	}
	switch n := len(all) - len(names); {
	case n > 0:
		return fmt.Sprintf("%s and %d more packages are", strings.Join(names, ", "), n)
	case len(all) == 1:
		return "package " + names[0] + " is"
	}
	return "packages " + strings.Join(names, ", ") + " are"
}

func Names(packages []Pin) (all []string) {
	for _, p := range packages {
		all = append(all, p.Name)
	}
	return all
}

// ListChange describes what was added to (+) and removed from (-) a list, or returns "".
func ListChange(old, now []string) string {
	var change []string
	for _, s := range now {
		if !slices.Contains(old, s) {
			change = append(change, "+ "+s)
		}
	}
	for _, s := range old {
		if !slices.Contains(now, s) {
			change = append(change, "- "+s)
		}
	}
	if change == nil && !slices.Equal(old, now) {
		return "different order"
	}
	return strings.Join(change, ", ")
}

// LockName is the name of the lock, beside the spec.
const LockName = "imagegen.lock"

// ReadLock returns the lock at a path, or an empty lock if there is none or it is for another distro.
func ReadLock(path, distro string) (*Lock, error) {
	l := &Lock{Schema: 1, Distro: distro, Roles: map[string]*Pins{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	var read Lock
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&read); err != nil {
		return nil, fmt.Errorf("%s: %w; remove the file, and imagegen lock writes it again", path, err)
	}
	if read.Schema != 1 {
		return nil, fmt.Errorf("%s: this imagegen reads schema 1, not %d; use the imagegen that wrote it, or remove the file", path, read.Schema)
	}
	if read.Distro != l.Distro {
		return l, nil // the spec has changed its distro: nothing is pinned yet
	}
	if read.Roles == nil {
		read.Roles = l.Roles
	}
	return &read, nil
}

// Write writes the lock.
func (l *Lock) Write(path string) error {
	var b bytes.Buffer
	b.WriteString(lockHead)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(l), enc.Close()); err != nil {
		return err
	}
	return atomicfile.Write(path, b.Bytes(), 0o644)
}

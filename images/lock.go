package images

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"imagegen/internal/atomicfile"
)

// LockName is the file beside the spec that pins the packages of all images.
const LockName = "imagegen.lock"

const lockHead = `# The packages of every image, as they were when they were pinned. Keep this file with the spec; imagegen writes it.
# "imagegen lock" pins anew what the archive has today.
`

// lock pins every package of every image. What its roles list comes on top of the base, which all images have.
type lock struct {
	Schema  int              `yaml:"schema"` // 1
	Distro  string           `yaml:"distro"`
	LeftOut []string         `yaml:"left_out,omitempty"` // suites that the archive at a plain address lacks
	Base    *pins            `yaml:"base,omitempty"`
	Roles   map[string]*pins `yaml:"roles,omitempty"`
}

// pins are the packages that a list of names stands for.
type pins struct {
	Requested []string `yaml:"requested"` // the names; of package files, with the file's hash
	Packages  []Pin    `yaml:"packages"`  // sorted by name
}

// Pin is a package of which neither version nor content is left open.
type Pin struct {
	Name, Version, Architecture string
	SHA256                      string // of the package file
}

// MarshalText writes a package as a line, so that a lock reads, and differs, line by line.
func (p Pin) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s %s %s %s", p.Name, p.Version, p.Architecture, p.SHA256), nil
}

// UnmarshalText reads what MarshalText has written.
func (p *Pin) UnmarshalText(text []byte) error {
	f := strings.Split(string(text), " ")
	if len(f) != 4 || !isSHA256(f[3]) || slices.ContainsFunc(f[:3], func(s string) bool { return !pinWord.MatchString(s) }) {
		return fmt.Errorf("%q is not a package's name, version, architecture and SHA-256", text)
	}
	*p = Pin{f[0], f[1], f[2], f[3]}
	return nil
}

// pinWord is what names, versions and architectures of packages are made of. They become arguments and file names.
var pinWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~^:_-]*$`)

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func (p Pin) String() string { return p.Name + " " + p.Version }

// LockPath is where the lock of the spec is.
func (c *Config) LockPath() string { return filepath.Join(filepath.Dir(c.Spec.File), LockName) }

// readLock returns the lock beside the spec, an empty one when there is none.
func (c *Config) readLock() (*lock, error) {
	l := &lock{Schema: 1, Distro: c.Spec.Distro, Roles: map[string]*pins{}}
	path := c.LockPath()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	var read lock
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&read); err != nil {
		return nil, fmt.Errorf("%s: %w; imagegen lock writes it anew once the file is removed", path, err)
	}
	if read.Schema != 1 {
		return nil, fmt.Errorf("%s: this imagegen reads schema 1, not %d; use the imagegen that wrote it, or remove the file", path, read.Schema)
	}
	if read.Distro != l.Distro {
		return l, nil // the spec has moved to another distro: nothing is pinned yet
	}
	if read.Roles == nil {
		read.Roles = l.Roles
	}
	return &read, nil
}

func (c *Config) writeLock(l *lock) error {
	var b bytes.Buffer
	b.WriteString(lockHead)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(l), enc.Close()); err != nil {
		return err
	}
	return atomicfile.Write(c.LockPath(), b.Bytes(), 0o644)
}

// named returns the sources that an image is to name: not those that the archive lacks.
func (l *lock) named(sources []string) []string {
	return slices.DeleteFunc(slices.Clone(sources), func(line string) bool {
		all := parseList(line)
		return len(all) == 1 && slices.Contains(l.LeftOut, all[0].suite)
	})
}

// clone copies a lock as far as it is changed: sections are replaced, never written to.
func (l *lock) clone() *lock {
	n := *l
	n.Roles = map[string]*pins{}
	for name, p := range l.Roles {
		n.Roles[name] = p
	}
	return &n
}

// fit returns what is pinned for a list of names; nil: nothing is, or something else.
func (p *pins) fit(requested []string) *pins {
	if p == nil || !slices.Equal(p.Requested, requested) {
		return nil
	}
	return p
}

// requested is what a role's packages are pinned for.
func (in inputs) requested() []string {
	all := slices.Clone(in.Packages)
	for _, l := range in.Local {
		all = append(all, l.Name+" "+l.SHA256)
	}
	return all
}

// requested is what the base's packages are pinned for. What yum adds to a disk depends on what is on it.
func (in baseInputs) requested() []string {
	if in.SHA256 == "" {
		return in.Packages
	}
	return append(slices.Clone(in.Packages), "disk "+in.SHA256)
}

// misfits returns the roles that nothing, or something else, is pinned for than what they ask for.
func (l *lock) misfits(requests map[string]inputs) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		if l.Roles[name].fit(requests[name].requested()) == nil {
			names = append(names, name)
		}
	}
	return names
}

// tooOld says which pinned package is older than a role can use; empty: none is.
func tooOld(minimum map[string]string, packages []Pin) string {
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

// compareNumbers compares versions such as 5.7.26 number by number. What follows the digits of a number does not count.
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

// moved lists in words how the lock now differs from old, for the base and the named roles: a line for each of them that
// differs.
func (l *lock) moved(old *lock, names []string) []string {
	var lines []string
	add := func(name string, old, now *pins) {
		var before, after []Pin
		if old != nil {
			before = old.Packages
		}
		if now != nil {
			after = now.Packages
		}
		if change := pinChange(before, after); change != "" {
			lines = append(lines, name+": "+change)
		}
	}
	add("base", old.Base, l.Base)
	for _, name := range names {
		add(name, old.Roles[name], l.Roles[name])
	}
	return lines
}

// pinChange says which packages are in a list that were not (+), are no longer (-), or are others (→).
func pinChange(old, now []Pin) string {
	var change []string
	// Of some names there is a package for each of several architectures.
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
			change = append(change, p.String()+" with another content")
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, same(o)) {
			change = append(change, "- "+o.String())
		}
	}
	return strings.Join(change, ", ")
}

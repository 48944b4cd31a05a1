package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"imagegen/cluster"
	"imagegen/internal/sparse"
	"imagegen/roles"
)

// inputs is everything that an image depends on. Its hash is the image's identity, so a field that is added here
// rebakes every image, and one that is missing lets a stale image pass for a new one.
type inputs struct {
	Base      baseInputs       `json:"base"`
	Install   string           `json:"install"` // hash of the script
	Agent     string           `json:"agent"`   // hash of the binary
	Units     []unit           `json:"units"`   // the agent's
	DiskBytes int64            `json:"disk_bytes"`
	Packages  []string         `json:"packages"`
	Pinned    []Pin            `json:"pinned,omitempty"` // what of the lock is installed, beside the base's
	Local     []localPackage   `json:"local_packages,omitempty"`
	Users     []roles.User     `json:"users,omitempty"`
	Downloads []roles.Download `json:"downloads,omitempty"`
	Disable   []string         `json:"disable,omitempty"`
	Remove    []string         `json:"remove,omitempty"`
	SELinux   *selinux         `json:"selinux,omitempty"` // centos7
	// Where packages are looked for: what they are is pinned.
	repos []roles.Repo
}

// baseInputs is what the base of a distro depends on.
type baseInputs struct {
	Distro   string   `json:"distro"`
	Sources  []string `json:"sources"` // one-line APT sources
	Packages []string `json:"packages"`
	Pinned   []Pin    `json:"pinned,omitempty"` // what of the lock is installed
	Script   string   `json:"script"`           // hash
	SHA256   string   `json:"sha256,omitempty"` // of a disk that is not made here but taken as it is
	// Where it is taken from; the same disk from elsewhere is the same.
	url, file string
}

// unit is a file for systemd.
type unit struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// localPackage is a package file that the spec names.
type localPackage struct {
	path   string
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

func (in inputs) identity() string { return hashJSON(in)[:32] }

func (in baseInputs) identity() string {
	if in.SHA256 != "" { // is kept as it is; packages are put into the copy that becomes an image
		in.Packages, in.Pinned = nil, nil
	}
	return hashJSON(in)[:32]
}

// hashJSON hashes the JSON of a struct, whose fields have one order.
func hashJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// inputs collects what the image of a role depends on. The lock counts as far as it fits; nil: there is none.
func (c *Config) inputs(ctx context.Context, name string, base baseInputs, agent string, l *lock) (inputs, error) {
	role, spec := c.Catalogue.Role(name), c.Spec.Role(name)
	if role == nil || spec == nil {
		return inputs{}, fmt.Errorf("there is no role %s", name)
	}
	d := role.Distros[c.Spec.Distro]
	in := inputs{
		Base: base, Install: hashJSON([]any{installScript, debianScript, diskVersion}), Agent: agent, Units: agentUnits, DiskBytes: int64(spec.Disk),
		Packages: append([]string{}, d.Packages...), Users: d.Users,
		Downloads: downloads(c.Spec, d), Disable: d.Disable, Remove: d.Remove,
	}
	if c.Spec.Distro == "centos7" {
		in.Install = hashJSON(centosChrootScript + vmScript + centosScript)
		in.repos = centosRepos(c.Spec, d)
		in.SELinux = &selinux{c.Spec.SELinux, d.SELinux}
	}
	for _, p := range spec.Packages {
		if !strings.HasSuffix(p, ".deb") && !strings.HasSuffix(p, ".rpm") {
			in.Packages = append(in.Packages, p)
			continue
		}
		path := p
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(c.Spec.File), path)
		}
		path, err := filepath.Abs(path) // APT takes a bare name for a package of the archive
		if err != nil {
			return inputs{}, err
		}
		sum, err := sparse.SHA256(ctx, path)
		if err != nil {
			return inputs{}, err
		}
		in.Local = append(in.Local, localPackage{path, filepath.Base(p), sum})
	}
	if base.Pinned != nil {
		if p := l.Roles[name].fit(in.requested()); p != nil {
			if old := tooOld(d.Minimum, p.Packages); old != "" {
				return inputs{}, fmt.Errorf("%s pins %s; imagegen lock pins what the repositories have today", c.LockPath(), old)
			}
			in.Pinned = p.Packages
		}
	}
	return in, nil
}

// Manifest is written beside every image.
type Manifest struct {
	Schema   int       `json:"schema"` // 1
	Role     string    `json:"role"`
	Identity string    `json:"identity"` // hash of Inputs
	Inputs   inputs    `json:"inputs"`
	Packages []Package `json:"packages"` // sorted by name
	Disk     Output    `json:"disk"`
	Outputs  []Output  `json:"outputs,omitempty"` // the same in other formats, sorted by format
}

// Package is an installed package.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	Source       string `json:"source,omitempty"`   // NAME@VERSION of Debian's source package, or the name of a source RPM
	Supplier     string `json:"supplier,omitempty"` // the maintainer, or the vendor of an RPM
}

// Output is a file that a bake made.
type Output struct {
	Format string        `json:"format"`                  // one of Formats
	Bytes  cluster.Bytes `json:"bytes"`                   // of a raw one, as the machine sees the disk: the file has holes
	SHA256 string        `json:"sha256,omitempty"`        // of a raw one in manifests of older versions alone
	Data   string        `json:"sparse_sha256,omitempty"` // of a raw one: what hashData returns
}

func (m Manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(m)
	return b.Bytes(), err
}

// parsePackages reads what the scripts have dpkg-query or rpm print: name, version, architecture, source package and
// supplier a line.
func parsePackages(out string) ([]Package, error) {
	var all []Package
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("the list of packages has a line %q", line)
		}
		for i := range f {
			if f[i] == "(none)" { // as rpm prints what is not there
				f[i] = ""
			}
		}
		all = append(all, Package{f[0], f[1], f[2], f[3], f[4]})
	}
	return all, nil
}

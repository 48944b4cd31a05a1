package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/builder"
	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
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
	Pinned    []packages.Pin   `json:"pinned,omitempty"` // what of the lock is installed, beside the base's
	Local     []localPackage   `json:"local_packages,omitempty"`
	Users     []roles.User     `json:"users,omitempty"`
	Downloads []roles.Download `json:"downloads,omitempty"`
	Disable   []string         `json:"disable,omitempty"`
	Remove    []string         `json:"remove,omitempty"`
	SELinux   *selinux         `json:"selinux,omitempty"` // centos7
	// Where packages are looked for: what they are is pinned.
	repos []packages.Repo
}

// baseInputs is what the base of a distro depends on.
type baseInputs struct {
	Distro   string         `json:"distro"`
	Sources  []string       `json:"sources"` // one-line APT sources
	Packages []string       `json:"packages"`
	Pinned   []packages.Pin `json:"pinned,omitempty"` // what of the lock is installed
	Script   string         `json:"script"`           // hash
	SHA256   string         `json:"sha256,omitempty"` // of a disk that is not made here but taken as it is
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

func (in inputs) identity() string { return jsonhash.Of(in)[:32] }

func (in baseInputs) identity() string {
	if in.SHA256 != "" { // is kept as it is; packages are put into the copy that becomes an image
		in.Packages, in.Pinned = nil, nil
	}
	return jsonhash.Of(in)[:32]
}

// inputs collects what the image of a role depends on. The lock counts as far as it fits; nil: there is none.
func (c *Config) inputs(ctx context.Context, name string, base baseInputs, agent string, l *packages.Lock) (inputs, error) {
	role, spec := c.Catalogue.Role(name), c.Spec.Role(name)
	if role == nil || spec == nil {
		return inputs{}, fmt.Errorf("there is no role %s", name)
	}
	d := role.Distros[c.Spec.Distro]
	in := inputs{
		Base: base, Install: jsonhash.Of([]any{installScript, debianScript, diskVersion}), Agent: agent, Units: agentUnits, DiskBytes: int64(spec.Disk),
		Packages: append([]string{}, d.Packages...), Users: d.Users,
		Downloads: downloads(c.Spec, d), Disable: d.Disable, Remove: d.Remove,
	}
	if c.Spec.Distro == "centos7" {
		in.Install = jsonhash.Of(centosChrootScript + builder.VMScript + centosScript)
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
		if p := l.Roles[name].Fit(in.requested()); p != nil {
			if old := packages.TooOld(d.Minimum, p.Packages); old != "" {
				return inputs{}, fmt.Errorf("%s pins %s; imagegen lock pins what the repositories have today", c.LockPath(), old)
			}
			in.Pinned = p.Packages
		}
	}
	return in, nil
}

// Manifest is written beside every image.
type Manifest struct {
	Schema   int                `json:"schema"` // 1
	Role     string             `json:"role"`
	Identity string             `json:"identity"` // hash of Inputs
	Inputs   inputs             `json:"inputs"`
	Packages []packages.Package `json:"packages"` // sorted by name
	Disk     Output             `json:"disk"`
	Outputs  []Output           `json:"outputs,omitempty"` // the same in other formats, sorted by format
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

// requested is what a role's packages are pinned for.
func (in inputs) requested() []string {
	all := slices.Clone(in.Packages)
	for _, l := range in.Local {
		all = append(all, l.Name+" "+l.SHA256)
	}
	return all
}

// askedFor is what the packages of each role are pinned for.
func askedFor(requests map[string]inputs) map[string][]string {
	all := map[string][]string{}
	for role, in := range requests {
		all[role] = in.requested()
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

// sbom returns the bill of materials of the manifest's image.
func (m Manifest) sbom() ([]byte, error) {
	return packages.SBOM(packages.Image{
		Name: m.Role, Identity: m.Identity, Distro: m.Inputs.Base.Distro, Digest: m.Disk.Data, SHA256: m.Disk.SHA256,
		Pinned: slices.Concat(m.Inputs.Base.Pinned, m.Inputs.Pinned), Packages: m.Packages,
	})
}

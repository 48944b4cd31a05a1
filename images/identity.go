package images

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/sparse"
	"imagegen/roles"
)

// inputs returns the inputs of a role's image. Entries of the lock count if they match; l may be nil.
func (c *Config) inputs(ctx context.Context, name string, base distro.Base, agent string, l *packages.Lock) (distro.Inputs, error) {
	role, spec := c.Catalogue.Role(name), c.Spec.Role(name)
	if role == nil || spec == nil {
		return distro.Inputs{}, fmt.Errorf("unknown role %s", name)
	}
	d := role.Distros[c.Spec.Distro]
	in := distro.Inputs{
		Base: base, Agent: agent, Units: agentUnits, DiskBytes: int64(spec.Disk),
		Packages: append([]string{}, d.Packages...), Users: d.Users,
		Downloads: downloads(c.Spec, d), Disable: d.Disable, Remove: d.Remove,
	}
	c.distro().Complete(&in, d)
	for _, p := range spec.Packages {
		if !strings.HasSuffix(p, ".deb") && !strings.HasSuffix(p, ".rpm") {
			in.Packages = append(in.Packages, p)
			continue
		}
		path := p
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(c.Spec.File), path)
		}
		path, err := filepath.Abs(path) // APT takes a name without a slash for a package name
		if err != nil {
			return distro.Inputs{}, err
		}
		sum, err := sparse.SHA256(ctx, path)
		if err != nil {
			return distro.Inputs{}, err
		}
		in.Local = append(in.Local, distro.LocalPackage{Path: path, Name: filepath.Base(p), SHA256: sum})
	}
	if base.Pinned != nil {
		if p := l.Roles[name].Fit(in.Requested()); p != nil {
			if old := packages.TooOld(d.Minimum, p.Packages); old != "" {
				return distro.Inputs{}, fmt.Errorf("%s pins %s; imagegen lock pins the current versions", c.LockPath(), old)
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
	Inputs   distro.Inputs      `json:"inputs"`
	Packages []packages.Package `json:"packages"` // sorted by name
	Disk     Output             `json:"disk"`
	Outputs  []Output           `json:"outputs,omitempty"` // the same in other formats, sorted by format
}

// Output is a file that a bake made.
type Output struct {
	Format string        `json:"format"`                  // one of format.Names
	Bytes  cluster.Bytes `json:"bytes"`                   // of a raw one: the size of the disk, not of the sparse file
	SHA256 string        `json:"sha256,omitempty"`        // of a raw one only in manifests of older versions
	Data   string        `json:"sparse_sha256,omitempty"` // of a raw one: see sparse.Digest
}

func (m Manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(m)
	return b.Bytes(), err
}

// sbom returns the SBOM of the image.
func (m Manifest) sbom() ([]byte, error) {
	return packages.SBOM(packages.Image{
		Name: m.Role, Identity: m.Identity, Distro: m.Inputs.Base.Distro, Digest: m.Disk.Data, SHA256: m.Disk.SHA256,
		Pinned: slices.Concat(m.Inputs.Base.Pinned, m.Inputs.Pinned), Packages: m.Packages,
	})
}

// downloads returns a role's downloads, with the spec's URLs.
func downloads(spec *cluster.Spec, d roles.Distro) []roles.Download {
	all := slices.Clone(d.Downloads)
	for i, dl := range all {
		for _, s := range spec.Downloads {
			if s.Name == dl.Name {
				all[i].URL, all[i].SHA256 = s.URL, cmp.Or(s.SHA256, dl.SHA256)
			}
		}
	}
	return all
}

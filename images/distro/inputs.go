package distro

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
	"imagegen/internal/sparse"
	"imagegen/internal/uuid"
	"imagegen/roles"
)

// Inputs is everything that an image depends on. Its hash is the image's identity, so a field that is added here
// rebakes every image, and one that is missing lets a stale image pass for a new one.
type Inputs struct {
	Base      Base             `json:"base"`
	Install   string           `json:"install"` // hash of the script
	Agent     string           `json:"agent"`   // hash of the binary
	Units     []Unit           `json:"units"`   // the agent's
	DiskBytes int64            `json:"disk_bytes"`
	Packages  []string         `json:"packages"`
	Pinned    []packages.Pin   `json:"pinned,omitempty"` // what of the lock is installed, beside the base's
	Local     []LocalPackage   `json:"local_packages,omitempty"`
	Users     []roles.User     `json:"users,omitempty"`
	Downloads []roles.Download `json:"downloads,omitempty"`
	Disable   []string         `json:"disable,omitempty"`
	Remove    []string         `json:"remove,omitempty"`
	SELinux   *SELinux         `json:"selinux,omitempty"` // of distros that have it
	// Where packages are looked for: what they are is pinned.
	Repos []packages.Repo `json:"-"`
}

// Base is what the base of a distro depends on.
type Base struct {
	Distro   string         `json:"distro"`
	Sources  []string       `json:"sources"` // one-line APT sources
	Packages []string       `json:"packages"`
	Pinned   []packages.Pin `json:"pinned,omitempty"` // what of the lock is installed
	Script   string         `json:"script"`           // hash
	SHA256   string         `json:"sha256,omitempty"` // of a disk that is not made here but taken as it is
	// Where it is taken from; the same disk from elsewhere is the same.
	URL  string `json:"-"`
	File string `json:"-"`
}

// Unit is a file for systemd.
type Unit struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// LocalPackage is a package file that the spec names.
type LocalPackage struct {
	Path   string `json:"-"`
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Identity names the image.
func (in Inputs) Identity() string { return jsonhash.Of(in)[:32] }

// Identity names the base.
func (in Base) Identity() string {
	if in.IsDisk() { // is kept as it is; packages are put into the copy that becomes an image
		in.Packages, in.Pinned = nil, nil
	}
	return jsonhash.Of(in)[:32]
}

// Requested is what a role's packages are pinned for.
func (in Inputs) Requested() []string {
	all := slices.Clone(in.Packages)
	for _, l := range in.Local {
		all = append(all, l.Name+" "+l.SHA256)
	}
	return all
}

// Requested is what the packages of each role are pinned for.
func Requested(requests map[string]Inputs) map[string][]string {
	all := map[string][]string{}
	for role, in := range requests {
		all[role] = in.Requested()
	}
	return all
}

// Requested is what the base's packages are pinned for. What yum adds to a disk depends on what is on it.
func (in Base) Requested() []string {
	if !in.IsDisk() {
		return in.Packages
	}
	return append(slices.Clone(in.Packages), "disk "+in.SHA256)
}

// IsDisk says whether the base is a disk that was made elsewhere, and not a tree that is made here.
func (in Base) IsDisk() bool { return in.SHA256 != "" }

// UUID is that of the file systems of all images of a base.
func (in Base) UUID() string { return uuid.Of("base " + in.Identity()) }

// LayLocal copies package files of the spec to a new folder.
func LayLocal(ctx context.Context, dir string, all []LocalPackage) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, l := range all {
		if !packages.Word.MatchString(l.Name) { // scripts take the names for words
			return fmt.Errorf("%s: give the package file a name of letters, digits and .+~_- alone", l.Path)
		}
		if err := sparse.CopyAs(ctx, l.Path, filepath.Join(dir, l.Name), l.SHA256); err != nil {
			return err
		}
	}
	return nil
}

// SELinux is what an image is told about SELinux.
type SELinux struct {
	Mode string `json:"mode"`
	roles.SELinux
}

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

// Inputs is everything that an image depends on. Its hash is the image's identity: adding a field changes the identity of every
// image, and a missing field lets a stale image pass for a current one.
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
	// Repos are where packages are searched. They are not part of the identity, since the packages are pinned.
	Repos []packages.Repo `json:"-"`
}

// Base is everything that the base of a distro depends on.
type Base struct {
	Distro   string         `json:"distro"`
	Sources  []string       `json:"sources"` // one-line APT sources
	Packages []string       `json:"packages"`
	Pinned   []packages.Pin `json:"pinned,omitempty"` // what of the lock is installed
	Script   string         `json:"script"`           // hash
	SHA256   string         `json:"sha256,omitempty"` // of the downloaded disk, if the base is one
	// URL or File is where that disk is. Neither is part of the identity.
	URL  string `json:"-"`
	File string `json:"-"`
}

// Unit is a systemd unit file.
type Unit struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// LocalPackage is a package file named in the spec.
type LocalPackage struct {
	Path   string `json:"-"`
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Identity returns the identity of the image.
func (in Inputs) Identity() string { return jsonhash.Of(in)[:32] }

// Identity returns the identity of the base.
func (in Base) Identity() string {
	if in.IsDisk() { // the disk is kept as downloaded; packages go into the copy that becomes an image
		in.Packages, in.Pinned = nil, nil
	}
	return jsonhash.Of(in)[:32]
}

// Requested returns the package names and files that the lock's entry for the role must match.
func (in Inputs) Requested() []string {
	all := slices.Clone(in.Packages)
	for _, l := range in.Local {
		all = append(all, l.Name+" "+l.SHA256)
	}
	return all
}

// Requested returns the Requested lists of several roles.
func Requested(requests map[string]Inputs) map[string][]string {
	all := map[string][]string{}
	for role, in := range requests {
		all[role] = in.Requested()
	}
	return all
}

// Requested returns what the lock's entry for the base must match. What yum adds to a disk depends on the disk.
func (in Base) Requested() []string {
	if !in.IsDisk() {
		return in.Packages
	}
	return append(slices.Clone(in.Packages), "disk "+in.SHA256)
}

// IsDisk reports whether the base is a downloaded disk. Otherwise it is a file tree that is made here.
func (in Base) IsDisk() bool { return in.SHA256 != "" }

// UUID returns the UUID of the file systems of all images of the base.
func (in Base) UUID() string { return uuid.Of("base " + in.Identity()) }

// StageLocal copies the spec's package files to a new folder.
func StageLocal(ctx context.Context, dir string, all []LocalPackage) error {
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

// SELinux is an image's SELinux configuration.
type SELinux struct {
	Mode string `json:"mode"`
	roles.SELinux
}

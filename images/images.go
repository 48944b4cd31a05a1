// Package images bakes disk images: one per role and distro, with all packages installed and nothing specific to a node.
//
// A bake is base → install → agent → seal → check → export. The base is made once per distro and copied. An image is named by the hash of
// its inputs, so an image in the cache is never baked again. Templates and whatever else differs between nodes are not inputs: they are in
// the seeds (package cloudinit).
//
// This package plans, caches and exports images. The subpackages do the work of a bake: distro knows how images of a distribution are made,
// packages gets their packages, builder runs the scripts, disk writes the disk, and format converts it.
package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/sparse"
	"imagegen/roles"
)

// Config says what to bake and where to put the result.
type Config struct {
	Spec      *cluster.Spec
	Catalogue *roles.Catalogue
	Roles     []string      // of the spec; empty: all
	CacheDir  string        // for images, bases and packages
	OutDir    string        // receives images/ROLE.raw and images/ROLE.json
	Agent     string        // the imagegen-node binary, static and for Linux
	Jobs      int           // parallel bakes, at least 1
	Builder   string        // one of builder.Names; empty: the first that works on this machine
	Limit     time.Duration // for a bake in a VM; 0: builder.Limit
	Formats   []string      // of format.Names, in addition to raw
	Underway  bool          // a change of the cluster is under way: a node may run any image that OutDir has had
	Locked    bool          // the lock must not change: a mismatch is an error
	Offline   bool          // use only what is in the cache
	UI        Progress
}

// Progress receives the progress of bakes. Its methods may be called concurrently.
type Progress interface {
	// Step reports the current step of an image: "base", or the names of the roles that share the image.
	Step(image, what string)
	// Done reports that the image is finished, or was in the cache.
	Done(image string, cached bool)
	// Note reports information for the end of the build.
	Note(text string)
}

// Result is one role's image.
type Result struct {
	Role     string `json:"role"`
	Identity string `json:"identity"`
	Cached   bool   `json:"cached"` // nothing was baked for it
	Path     string `json:"path"`
	Manifest string `json:"manifest"`
}

// bakeMemory is the memory that a bake needs, for APT, dpkg and the page cache of the files they write.
const bakeMemory = 512 << 20

// DefaultJobs returns the number of parallel bakes that this machine has cores and free memory for.
func DefaultJobs() int {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return runtime.NumCPU() // not Linux: nothing is baked here
	}
	return jobs(runtime.NumCPU(), string(meminfo))
}

func jobs(cores int, meminfo string) int {
	_, rest, _ := strings.Cut(meminfo, "MemAvailable:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return cores
	}
	return max(1, min(cores, int(kib<<10/bakeMemory)))
}

// Build bakes the images that are not in the cache and puts the images of all roles into the output folder. On an
// error, or when ctx ends, unfinished bakes are removed; finished images stay in the cache.
func Build(ctx context.Context, c Config) ([]Result, error) {
	if err := format.Check(c.Formats); err != nil {
		return nil, err
	}
	names, err := c.prepare()
	if err != nil {
		return nil, err
	}
	release, err := c.cache().hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	plans, err := c.supply().stock(ctx, names, false)
	if err != nil {
		return nil, err
	}
	var missing []*plan
	for _, p := range plans {
		used(c.cache().imageDir(p.identity))
		used(c.cache().baseDir(p.inputs.Base))
		if p.cached = complete(c.cache().imageDir(p.identity)); !p.cached {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		if err := c.bakeAll(ctx, missing); err != nil {
			return nil, err
		}
	}
	var results []Result
	for _, name := range names {
		i := slices.IndexFunc(plans, func(p *plan) bool { return slices.Contains(p.roles, name) })
		r, err := c.output().export(ctx, name, plans[i])
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", name, err)
		}
		results = append(results, r)
	}
	for _, p := range plans {
		if p.cached {
			c.UI.Done(p.name(), true)
		}
	}
	return results, nil
}

// Fetch downloads everything that the roles' images are made from into the cache, including the base.
func Fetch(ctx context.Context, c Config) error {
	names, err := c.prepare()
	if err != nil {
		return err
	}
	c.Agent = "" // not an input that is fetched
	_, err = c.supply().stock(ctx, names, true)
	return err
}

// Renew pins the packages of all images to the current versions in the archive, and reports whether the lock has changed.
func Renew(ctx context.Context, c Config) (changed bool, err error) {
	c.Roles = nil
	names, err := c.prepare()
	if err != nil {
		return false, err
	}
	before, err := os.ReadFile(c.LockPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := c.supply().pin(ctx, names, true); err != nil {
		return false, err
	}
	after, err := os.ReadFile(c.LockPath())
	return string(before) != string(after), err
}

// Identities returns the identity of every role's image, baked or not.
func Identities(ctx context.Context, c Config) (map[string]string, error) {
	c.Roles = nil
	names, err := c.prepare()
	if err != nil {
		return nil, err
	}
	plans, err := c.plan(ctx, names)
	if err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for _, p := range plans {
		for _, role := range p.roles {
			ids[role] = p.identity
		}
	}
	return ids, nil
}

// plan is an image to be made.
type plan struct {
	roles    []string // that share it
	inputs   distro.Inputs
	identity string
	cached   bool
}

func (p *plan) name() string { return strings.Join(p.roles, ", ") }

// plan returns the images of the roles. Roles with the same inputs share one.
func (c *Config) plan(ctx context.Context, names []string) ([]*plan, error) {
	base, err := c.distro().Base()
	if err != nil {
		return nil, err
	}
	agent := ""
	if c.Agent != "" {
		if agent, err = sparse.SHA256(ctx, c.Agent); err != nil {
			return nil, fmt.Errorf("read the agent: %w", err)
		}
	}
	l, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
	if err != nil {
		return nil, err
	}
	base.Sources = l.Named(base.Sources)
	if p := l.Base.Fit(base.Requested()); p != nil {
		base.Pinned = p.Packages
	}
	var plans []*plan
	for _, name := range names {
		in, err := c.inputs(ctx, name, base, agent, l)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", name, err)
		}
		id := in.Identity()
		if i := slices.IndexFunc(plans, func(p *plan) bool { return p.identity == id }); i >= 0 {
			plans[i].roles = append(plans[i].roles, name)
			continue
		}
		plans = append(plans, &plan{roles: []string{name}, inputs: in, identity: id})
	}
	return plans, nil
}

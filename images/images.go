// Package images bakes disk images: one per role and distro, every package preinstalled, nothing of any node inside.
//
// A bake is base → install → agent → seal → check → export. The base is made once per distro and copied. An image is
// named by the hash of all that goes into it, so what is in the cache is never baked again. Templates and whatever else
// differs between nodes are no inputs: they are in the seeds (package cloudinit).
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

// Config says what to bake and where to put it.
type Config struct {
	Spec      *cluster.Spec
	Catalogue *roles.Catalogue
	Roles     []string      // of the spec; empty: all
	CacheDir  string        // images, base and packages are kept here
	OutDir    string        // images/ROLE.raw and images/ROLE.json are put here
	Agent     string        // the imagegen-node binary, static and for Linux
	Jobs      int           // bakes at once, at least 1
	Builder   string        // one of Builders; empty: the first of them that can be used here
	Limit     time.Duration // for a bake in a VM; 0: BakeLimit
	Formats   []string      // to write the images in, beside raw
	Locked    bool          // the lock is not to change: what does not fit it is an error
	Offline   bool          // bake from what is in the cache alone
	UI        Progress
}

// Progress is told how the bakes go. Its methods may be called at once by several goroutines.
type Progress interface {
	// Step says what the image (the base, or the names of the roles that share it) is at now.
	Step(image, what string)
	// Done says that the image is there; cached: it was before.
	Done(image string, cached bool)
	// Note tells something that is worth knowing afterwards.
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

// bakeMemory is what a bake needs: APT and dpkg, and what the kernel keeps of the files they write.
const bakeMemory = 512 << 20

// DefaultJobs is how many bakes at once this machine has cores and free memory for.
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

// Build bakes the images of the roles that are not in the cache and puts all of them into the output folder. On an
// error, or when ctx ends, what was being baked is removed; images that were finished stay in the cache.
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

// Fetch brings everything that the images of the roles are baked from into the cache, their base included.
func Fetch(ctx context.Context, c Config) error {
	names, err := c.prepare()
	if err != nil {
		return err
	}
	c.Agent = "" // no part of it
	_, err = c.supply().stock(ctx, names, true)
	return err
}

// Renew pins the packages of all images to what the archive has today, and says whether that has changed the lock.
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

// plan is an image that the spec needs.
type plan struct {
	roles    []string // that share it
	inputs   distro.Inputs
	identity string
	cached   bool
}

func (p *plan) name() string { return strings.Join(p.roles, ", ") }

// plan returns the images of the roles, each once.
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

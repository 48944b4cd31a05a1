// Package images bakes disk images: one per role and distro, every package preinstalled, nothing of any node inside.
//
// A bake is base → install → agent → seal → check → export. The base is made once per distro and copied. An image is
// named by the hash of all that goes into it, so what is in the cache is never baked again. Templates and whatever else
// differs between nodes are no inputs: they are in the seeds (package cloudinit).
package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/atomicfile"
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

// files of an image in the cache.
const (
	diskName     = "disk.raw"
	manifestName = "manifest.json"
	treeName     = "root" // of a base
)

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
	release, err := c.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	plans, err := c.stock(ctx, names, false)
	if err != nil {
		return nil, err
	}
	var missing []*plan
	for _, p := range plans {
		used(c.imageDir(p.identity))
		used(c.baseDir(p.inputs.Base))
		if p.cached = complete(c.imageDir(p.identity)); !p.cached {
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
		r, err := c.export(ctx, name, plans[i])
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
	_, err = c.stock(ctx, names, true)
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
	if err := c.pin(ctx, names, true); err != nil {
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

func (c *Config) imageDir(identity string) string {
	return filepath.Join(c.CacheDir, "images", identity)
}

func (c *Config) baseDir(in distro.Base) string {
	return filepath.Join(c.CacheDir, "base", in.Identity())
}

// used notes that a build uses a folder of the cache, if it is there, so that it is not trimmed.
func used(dir string) {
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // who may not write to a cache cannot trim it either
}

// complete tells whether a folder of the cache holds an image. Such folders are renamed into place when all of it is
// on the disk, so one that exists is whole.
func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, manifestName))
	return err == nil
}

// export puts an image into the output folder. The file is the cache's own where both are on one file system, and
// therefore read-only: machines get copies of it, or layers over it.
func (c *Config) export(ctx context.Context, role string, p *plan) (Result, error) {
	if err := atomicfile.MakeDirs(filepath.Join(c.OutDir, "images")); err != nil {
		return Result{}, err
	}
	r := Result{Role: role, Identity: p.identity, Cached: p.cached, Path: c.file(role, "raw"), Manifest: c.file(role, "json")}
	from := filepath.Join(c.imageDir(p.identity), diskName)
	if err := place(ctx, from, r.Path); err != nil {
		return r, err
	}
	data, err := os.ReadFile(filepath.Join(c.imageDir(p.identity), manifestName))
	if err != nil {
		return r, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return r, fmt.Errorf("%s: %w; remove that folder and build again", c.imageDir(p.identity), err)
	}
	m.Role = role
	before, err := os.ReadFile(r.Manifest)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	var old Manifest
	json.Unmarshal(before, &old) // none, or not one of ours: nothing is known of what is there
	if m.Outputs, err = c.dropStale(role, old, m); err != nil {
		return r, err
	}
	for _, kind := range c.Formats {
		if kind == "raw" {
			continue
		}
		out, err := c.convert(ctx, role, p, kind)
		if err != nil {
			return r, fmt.Errorf("write as %s: %w", kind, err)
		}
		m.Outputs = slices.DeleteFunc(m.Outputs, func(o Output) bool { return o.Format == kind })
		m.Outputs = append(m.Outputs, out)
	}
	slices.SortFunc(m.Outputs, func(a, b Output) int { return strings.Compare(a.Format, b.Format) })
	if data, err = m.encode(); err != nil {
		return r, err
	}
	materials, err := m.sbom()
	if err != nil {
		return r, err
	}
	return r, errors.Join(writeChanged(c.file(role, "spdx.json"), materials), writeChanged(r.Manifest, data))
}

// writeChanged writes a file, unless it has that content already.
func writeChanged(path string, data []byte) error {
	before, err := os.ReadFile(path)
	if err == nil && bytes.Equal(before, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Write(path, data, 0o644)
}

// place makes path a hard link of from, or a copy where no link can be.
func place(ctx context.Context, from, path string) error {
	src, err := os.Stat(from)
	if err != nil {
		return err
	}
	// A copy has the time of what it was copied from.
	if dst, err := os.Stat(path); err == nil && (os.SameFile(src, dst) || dst.Size() == src.Size() && dst.ModTime().Equal(src.ModTime())) {
		return nil
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(from, tmp); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w; is another build writing there?", err)
		}
		err = sparse.Copy(ctx, from, tmp)
		err = errors.Join(err, os.Chmod(tmp, 0o444), os.Chtimes(tmp, src.ModTime(), src.ModTime()))
		if err != nil {
			os.Remove(tmp)
			return err
		}
	}
	// A link belongs to whom the cache's file belongs to, and that is given away with it: it is the output that counts.
	if err := atomicfile.Own(tmp); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, path)
}

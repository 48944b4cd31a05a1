package images

import (
	"path/filepath"

	known "imagegen/distro"

	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/packages"
)

// openArchive makes the archive of the spec's sources ready.
func (c *Config) openArchive(ctx context.Context) (*packages.Archive, error) {
	sources, err := c.sources()
	if err != nil {
		return nil, err
	}
	return c.openSources(ctx, sources)
}

// openSources is openArchive for these sources.
func (c *Config) openSources(ctx context.Context, sources []string) (*packages.Archive, error) {
	a := packages.ArchiveConfig{Dir: filepath.Join(c.CacheDir, "archive"), Sources: sources, Offline: c.Offline, Step: c.packagesStep}
	if c.Spec.Mirror != "" && !strings.HasPrefix(c.Spec.Mirror, "deb ") {
		a.Optional = known.Named(c.Spec.Distro).Suites[1:]
	}
	opened, err := packages.OpenArchive(ctx, a)
	if err == nil && !c.Offline {
		c.warnOfSuites(sources, opened.LeftOut)
	}
	return opened, err
}

// packagesStep tells of the work on packages of all images.
func (c *Config) packagesStep(what string) { c.UI.Step(packagesName, what) }

// warnOfSuites says loudly that images are made without security updates, or without what was left out. The build host's own
// archive does not stand in: with it, images of one spec would differ between build hosts, and come from where the spec
// does not say.
func (c *Config) warnOfSuites(sources, leftOut []string) {
	d := known.Named(c.Spec.Distro)
	missing := slices.Clone(leftOut)
	if security := d.Suites[2]; !slices.Contains(missing, security) && packages.Address(sources, security) == "" {
		missing = append(missing, security)
	}
	for _, suite := range missing {
		own, _ := packages.HostSources("/", d) // a proposal; none is no fault
		address := cmp.Or(packages.Address(own, suite), "…")
		where := c.Spec.File + ": the mirror"
		if c.Spec.Mirror == "" {
			where = "this machine's APT configuration"
		}
		c.UI.Note(fmt.Sprintf("WARNING: the images are made WITHOUT %s, which %s does not have; name it in the spec, in a list: mirror: [deb … %s main, deb %s %[1]s main]",
			suite, where, d.Suites[0], address))
	}
}

// packagesName is what the progress calls the work on packages of all images.
const packagesName = "packages"

// stock brings all that the named roles' images are baked from into the cache, and returns the images. Of those that are
// baked already nothing is needed, unless everything is asked for.
func (c *Config) stock(ctx context.Context, names []string, everything bool) ([]*plan, error) {
	if err := os.MkdirAll(string(c.store()), 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	if !everything {
		// Better refused now than after all has been fetched.
		plans, err := c.plan(ctx, names)
		if err != nil {
			return nil, err
		}
		plans = slices.DeleteFunc(plans, func(p *plan) bool { return complete(c.imageDir(p.identity)) })
		if len(plans) > 0 {
			by, _, err := c.chooseBuilder()
			if err := errors.Join(err, c.checkSpace(plans, by)); err != nil {
				return nil, err
			}
		}
	}
	defer c.UI.Done(packagesName, true)
	for renew := false; ; renew = true {
		if err := c.pin(ctx, names, renew); err != nil {
			return nil, err
		}
		plans, err := c.plan(ctx, names)
		if err != nil {
			return nil, err
		}
		gone, err := c.gather(ctx, plans, everything)
		if err != nil || gone == nil {
			return plans, err
		}
		if c.Locked || renew {
			return nil, c.goneError(ctx, gone, names)
		}
	}
}

// pin makes sure that there is a lock that fits the named roles: it is written when it had to be changed, and what has
// changed is told.
func (c *Config) pin(ctx context.Context, names []string, renew bool) error {
	old, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
	if err != nil {
		return err
	}
	now, err := c.repin(ctx, old, names, renew)
	if err != nil || now == old {
		return err
	}
	if err := now.Write(c.LockPath()); err != nil {
		return err
	}
	if old.Base == nil {
		c.UI.Note(fmt.Sprintf("%s: the packages are pinned", c.LockPath()))
	}
	for _, line := range now.Moved(old, names) {
		if old.Base != nil {
			c.UI.Note(fmt.Sprintf("%s: %s", c.LockPath(), line))
		}
	}
	return nil
}

// repin returns a lock that fits the named roles: old, when it does; else one in which what does not fit, or with renew
// everything, is pinned to what the archive has today.
func (c *Config) repin(ctx context.Context, old *packages.Lock, names []string, renew bool) (*packages.Lock, error) {
	requests := map[string]inputs{}
	for _, name := range names {
		in, err := c.inputs(ctx, name, baseInputs{}, "", nil)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", name, err)
		}
		requests[name] = in
	}
	now := old.Clone()
	for name := range now.Roles {
		if c.Spec.Role(name) == nil {
			delete(now.Roles, name)
		}
	}
	base, err := c.baseInputs()
	if err != nil {
		return nil, err
	}
	if renew || now.Base.Fit(base.requested()) == nil {
		now.DropBase()
	}
	if now.Base != nil && now.Misfits(askedFor(requests)) == nil {
		return old, nil
	}
	if c.Locked && !renew {
		return nil, c.unfit(old, base, requests, names)
	}
	resolve := c.resolveAPT
	if c.Spec.Distro == "centos7" {
		resolve = c.resolveYum
	}
	if err := resolve(ctx, now, requests); err != nil {
		return nil, err
	}
	for _, name := range names {
		least := c.Catalogue.Role(name).Distros[c.Spec.Distro].Minimum
		if old := packages.TooOld(least, now.Roles[name].Packages); old != "" {
			return nil, fmt.Errorf("packages of %s: the repositories have %s. Name others in the spec, repos", name, old)
		}
	}
	return now, nil
}

// resolveAPT pins what a lock lacks for these requests, of roles.
func (c *Config) resolveAPT(ctx context.Context, now *packages.Lock, requests map[string]inputs) error {
	a, err := c.openArchive(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	if !c.Offline {
		now.LeftOut = a.LeftOut
	}
	c.UI.Step(packagesName, "find out which are needed")
	var installed string
	if now.Base != nil {
		if installed, err = a.Status(ctx, c.store(), now.Base.Packages); err != nil {
			return err
		}
		if installed == "" {
			now.DropBase() // nobody knows any more what it was made of
		}
	}
	if now.Base == nil {
		now.Base = &packages.Pins{Requested: debianBase}
		all := append([]string{"?essential", "?priority(required)", "apt"}, debianBase...)
		if now.Base.Packages, err = a.Resolve(ctx, "", all); err != nil {
			return fmt.Errorf("packages of the base: %w", err)
		}
		if installed, err = a.Status(ctx, c.store(), now.Base.Packages); err != nil {
			return err
		}
	}
	var faults cluster.Problems // in what people wrote, of all roles
	for _, name := range now.Misfits(askedFor(requests)) {
		in := requests[name]
		all := slices.Clone(in.Packages)
		for _, l := range in.Local {
			all = append(all, l.path)
		}
		p := &packages.Pins{Requested: in.requested()}
		if len(all) > 0 {
			if p.Packages, err = a.Resolve(ctx, installed, all); err != nil {
				if found := c.packageFaults(name, err); found != nil {
					faults = append(faults, found...)
					continue
				}
				return fmt.Errorf("packages of %s: %w", name, err)
			}
		}
		now.Roles[name] = p
	}
	if faults != nil {
		return faults
	}
	return nil
}

// unfit says what the spec asks for that the lock does not have.
func (c *Config) unfit(l *packages.Lock, base baseInputs, requests map[string]inputs, names []string) error {
	var lines []string
	add := func(name string, p *packages.Pins, now []string) {
		if p == nil {
			lines = append(lines, "  "+name+": nothing is pinned")
		} else if change := packages.ListChange(p.Requested, now); change != "" {
			lines = append(lines, "  "+name+": package list: "+change)
		}
	}
	add("base", l.Base, base.requested())
	for _, name := range names {
		add(name, l.Roles[name], requests[name].requested())
	}
	return fmt.Errorf("%s does not fit %s, and may not change:\n%s\nwithout --locked, build pins what is missing", c.LockPath(), c.Spec.File, strings.Join(lines, "\n"))
}

// gather brings the packages and downloads of images into the store. Packages that the archive no longer has are
// returned, and then nothing is fetched.
func (c *Config) gather(ctx context.Context, plans []*plan, everything bool) (gone []packages.Pin, err error) {
	var missing []packages.Pin
	var repos []packages.Repo // that have them
	got := false              // a base that is a disk
	for _, p := range plans {
		if !everything && complete(c.imageDir(p.identity)) {
			continue
		}
		all := p.inputs.Pinned
		base := p.inputs.Base
		_, err := os.Stat(c.baseDir(base))
		if noBase := err != nil || everything; noBase || base.SHA256 != "" {
			all = append(slices.Clone(all), base.Pinned...)
			if noBase && !got {
				if err := c.fetchBase(ctx, base); err != nil {
					return nil, err
				}
				got = true
			}
		}
		for _, r := range p.inputs.repos {
			if !slices.ContainsFunc(repos, func(o packages.Repo) bool { return reflect.DeepEqual(o, r) }) {
				repos = append(repos, r)
			}
		}
		for _, pin := range all {
			if !c.store().Has(pin.SHA256) && !slices.Contains(missing, pin) {
				missing = append(missing, pin)
			}
		}
		for _, d := range p.inputs.Downloads {
			if err := c.fetch(ctx, d.URL, d.SHA256); err != nil {
				return nil, fmt.Errorf("download %w\nif it is no longer there, name another place in the spec, downloads: {%s: {url: …}}", err, cmp.Or(d.Name, "NAME"))
			}
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if c.Offline {
		return nil, fmt.Errorf("%s not in the cache, and imagegen is to work offline: run imagegen fetch where there is a network", packages.Listed(missing))
	}
	if c.Spec.Distro == "centos7" {
		return c.store().FetchRPMs(ctx, repos, missing, c.packagesStep)
	}
	a, err := c.openArchive(ctx)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if gone, err := a.Gone(ctx, missing); err != nil || gone != nil {
		return gone, err
	}
	c.UI.Step(packagesName, fmt.Sprintf("fetch %d", len(missing)))
	return nil, a.Download(ctx, c.store(), missing)
}

// fetchBase brings the disk that images start from into the store, if it comes from elsewhere.
func (c *Config) fetchBase(ctx context.Context, base baseInputs) error {
	if base.url == "" {
		return nil
	}
	if err := c.fetch(ctx, base.url, base.SHA256); err != nil {
		return fmt.Errorf("download the base of %s: %w\nif it is no longer there, name another place in the spec, base: {url: …, sha256: …}, or a file of this machine, base: {file: …, sha256: …}", base.Distro, err)
	}
	return nil
}

// goneError says that packages cannot be had, and what the archive has today.
func (c *Config) goneError(ctx context.Context, gone []packages.Pin, names []string) error {
	old, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
	if err != nil {
		return err
	}
	today, err := c.repin(ctx, old, names, true)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s pinned in %s, and neither in the cache nor in the archive any more, which has:\n  %s\nimagegen lock pins what the archive has today",
		packages.Listed(gone), c.LockPath(), strings.Join(today.Moved(old, names), "\n  "))
}

// fetch brings a file from outside any package into the store.
func (c *Config) fetch(ctx context.Context, url, sum string) error {
	if !c.Offline {
		return c.store().Fetch(ctx, url, sum, c.packagesStep)
	}
	if c.store().Has(sum) {
		return nil
	}
	return fmt.Errorf("%s is not in the cache, and imagegen is to work offline: run imagegen fetch where there is a network", url)
}

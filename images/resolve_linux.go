package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"imagegen/images/builder"
	"imagegen/images/distro"
	"imagegen/images/packages"
)

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
	requests := map[string]distro.Inputs{}
	for _, name := range names {
		in, err := c.inputs(ctx, name, distro.Base{}, "", nil)
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
	base, err := c.distro().Base()
	if err != nil {
		return nil, err
	}
	if renew || now.Base.Fit(base.Requested()) == nil {
		now.DropBase()
	}
	if now.Base != nil && now.Misfits(distro.Requested(requests)) == nil {
		return old, nil
	}
	if c.Locked && !renew {
		return nil, c.unfit(old, base, requests, names)
	}
	if err := c.maker().Resolve(ctx, now, requests, c.try); err != nil {
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

// unfit says what the spec asks for that the lock does not have.
func (c *Config) unfit(l *packages.Lock, base distro.Base, requests map[string]distro.Inputs, names []string) error {
	var lines []string
	add := func(name string, p *packages.Pins, now []string) {
		if p == nil {
			lines = append(lines, "  "+name+": nothing is pinned")
		} else if change := packages.ListChange(p.Requested, now); change != "" {
			lines = append(lines, "  "+name+": package list: "+change)
		}
	}
	add("base", l.Base, base.Requested())
	for _, name := range names {
		add(name, l.Roles[name], requests[name].Requested())
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
		if noBase := err != nil || everything; noBase || base.IsDisk() {
			all = append(slices.Clone(all), base.Pinned...)
			if noBase && !got {
				if err := c.fetchBase(ctx, base); err != nil {
					return nil, err
				}
				got = true
			}
		}
		for _, r := range p.inputs.Repos {
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
	return c.maker().Fetch(ctx, repos, missing)
}

// fetchBase brings the disk that images start from into the store, if it comes from elsewhere.
func (c *Config) fetchBase(ctx context.Context, base distro.Base) error {
	if base.URL == "" {
		return nil
	}
	if err := c.fetch(ctx, base.URL, base.SHA256); err != nil {
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

// try runs do with a job on a copy of a base that is a disk; see distro.Trial.
func (c *Config) try(ctx context.Context, base distro.Base, bytes int64, do func(context.Context, *builder.Job, func(context.Context) error) error) (log string, err error) {
	by, _, err := c.chooseBuilder()
	if err != nil {
		return "", err
	}
	if err := c.openCache(ctx); err != nil {
		return "", err
	}
	tried := &plan{inputs: distro.Inputs{Base: base, DiskBytes: bytes}, identity: base.Identity()} // no image, but its builder needs as much
	if err := c.checkSpace([]*plan{tried}, by); err != nil {
		return "", err
	}
	if _, err := os.Stat(c.baseDir(base)); err != nil {
		if err := c.fetchBase(ctx, base); err != nil {
			return "", err
		}
	}
	if err := c.bakeBase(ctx, base); err != nil {
		return "", fmt.Errorf("bake the base of %s: %w", c.Spec.Distro, err)
	}
	b := &bake{config: c, name: packagesName, plan: tried, base: base, builder: by}
	b.Network = true
	err = b.run(ctx,
		step{"copy the base", (*bake).copyBase},
		step{"find out which are needed", func(b *bake, ctx context.Context) error { return do(ctx, &b.Job, b.runBuilder) }})
	if err == nil {
		return "", nil
	}
	said, _ := os.ReadFile(b.Log.Name()) // without it, err says enough
	return string(said), fmt.Errorf("packages of %s: %w", c.Spec.Distro, err)
}

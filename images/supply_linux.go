package images

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"imagegen/images/distro"
	"imagegen/images/packages"
)

// stock downloads everything that the roles' images are made from into the cache, and returns the images. It skips images that are
// in the cache, unless everything is set.
func (s supply) stock(ctx context.Context, names []string, everything bool) ([]*plan, error) {
	if err := os.MkdirAll(string(s.cache().store()), 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	if !everything {
		// Fail before anything is downloaded.
		plans, err := s.plan(ctx, names)
		if err != nil {
			return nil, err
		}
		plans = slices.DeleteFunc(plans, func(p *plan) bool { return complete(s.cache().imageDir(p.identity)) })
		if len(plans) > 0 {
			by, _, err := s.chooseBuilder()
			if err != nil {
				return nil, err
			}
			if err := s.checkSpace(plans, by); err != nil {
				return nil, err
			}
		}
	}
	defer s.UI.Done(packagesName, true)
	for renew := false; ; renew = true {
		if err := s.pin(ctx, names, renew); err != nil {
			return nil, err
		}
		plans, err := s.plan(ctx, names)
		if err != nil {
			return nil, err
		}
		gone, err := s.gather(ctx, plans, everything)
		if err != nil || gone == nil {
			return plans, err
		}
		if s.Locked || renew {
			return nil, s.goneError(ctx, gone, names)
		}
	}
}

// pin updates the lock for the roles if needed, and reports the changes.
func (s supply) pin(ctx context.Context, names []string, renew bool) error {
	old, err := packages.ReadLock(s.LockPath(), s.Spec.Distro)
	if err != nil {
		return err
	}
	now, err := s.repin(ctx, old, names, renew)
	if err != nil || now == old {
		return err
	}
	if err := now.Write(s.LockPath()); err != nil {
		return err
	}
	if old.Base == nil {
		s.UI.Note(fmt.Sprintf("%s: the packages are pinned", s.LockPath()))
	}
	for _, line := range now.Moved(old, names) {
		if old.Base != nil {
			s.UI.Note(fmt.Sprintf("%s: %s", s.LockPath(), line))
		}
	}
	return nil
}

// repin returns a lock that matches the roles: old if it does, otherwise one in which the entries that do not match (with renew: all
// entries) are pinned to the current packages of the archive.
func (s supply) repin(ctx context.Context, old *packages.Lock, names []string, renew bool) (*packages.Lock, error) {
	requests := map[string]distro.Inputs{}
	for _, name := range names {
		in, err := s.inputs(ctx, name, distro.Base{}, "", nil)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", name, err)
		}
		requests[name] = in
	}
	now := old.Clone()
	for name := range now.Roles {
		if s.Spec.Role(name) == nil {
			delete(now.Roles, name)
		}
	}
	base, err := s.distro().Base()
	if err != nil {
		return nil, err
	}
	if renew || now.Base.Fit(base.Requested()) == nil {
		now.DropBase()
	}
	if now.Base != nil && now.Misfits(distro.Requested(requests)) == nil {
		return old, nil
	}
	if s.Locked && !renew {
		return nil, s.unfit(old, base, requests, names)
	}
	if err := s.maker().Resolve(ctx, now, requests, s.try); err != nil {
		return nil, err
	}
	for _, name := range names {
		least := s.Catalogue.Role(name).Distros[s.Spec.Distro].Minimum
		if old := packages.TooOld(least, now.Roles[name].Packages); old != "" {
			return nil, fmt.Errorf("packages of %s: the repositories have %s. Set others in the spec, under repos", name, old)
		}
	}
	return now, nil
}

// unfit returns an error that lists what the spec requests and the lock does not have.
func (s supply) unfit(l *packages.Lock, base distro.Base, requests map[string]distro.Inputs, names []string) error {
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
	return fmt.Errorf("%s does not match %s, and --locked forbids updating it:\n%s\nwithout --locked, build pins what is missing", s.LockPath(), s.Spec.File, strings.Join(lines, "\n"))
}

// gather downloads the packages and files of images into the store. If the archive no longer has some packages, it downloads none and
// returns those.
func (s supply) gather(ctx context.Context, plans []*plan, everything bool) (gone []packages.Pin, err error) {
	var missing []packages.Pin
	var repos []packages.Repo // to search for missing packages
	got := false              // the base's disk has been downloaded
	for _, p := range plans {
		if !everything && complete(s.cache().imageDir(p.identity)) {
			continue
		}
		all := p.inputs.Pinned
		base := p.inputs.Base
		_, err := os.Stat(s.cache().baseDir(base))
		if noBase := err != nil || everything; noBase || base.IsDisk() {
			all = append(slices.Clone(all), base.Pinned...)
			if noBase && !got {
				if err := s.fetchBase(ctx, base); err != nil {
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
			if !s.cache().store().Has(pin.SHA256) && !slices.Contains(missing, pin) {
				missing = append(missing, pin)
			}
		}
		for _, d := range p.inputs.Downloads {
			if err := s.fetch(ctx, d.URL, d.SHA256); err != nil {
				return nil, fmt.Errorf("download %w\nif it is no longer there, set another URL in the spec, downloads: {%s: {url: …}}", err, cmp.Or(d.Name, "NAME"))
			}
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if s.Offline {
		return nil, fmt.Errorf("%s not in the cache, and --offline is set: run imagegen fetch with a network", packages.Listed(missing))
	}
	return s.maker().Fetch(ctx, repos, missing)
}

// fetchBase downloads the base, if it is a disk with a URL.
func (s supply) fetchBase(ctx context.Context, base distro.Base) error {
	if base.URL == "" {
		return nil
	}
	if err := s.fetch(ctx, base.URL, base.SHA256); err != nil {
		return fmt.Errorf("download the base of %s: %w\nif it is no longer there, set another URL in the spec, base: {url: …, sha256: …}, or a file of this machine, base: {file: …, sha256: …}", base.Distro, err)
	}
	return nil
}

// goneError returns an error that lists packages that are no longer available, and what the archive has instead.
func (s supply) goneError(ctx context.Context, gone []packages.Pin, names []string) error {
	old, err := packages.ReadLock(s.LockPath(), s.Spec.Distro)
	if err != nil {
		return err
	}
	today, err := s.repin(ctx, old, names, true)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s pinned in %s, but neither in the cache nor in the archive, which has:\n  %s\nimagegen lock pins the current versions",
		packages.Listed(gone), s.LockPath(), strings.Join(today.Moved(old, names), "\n  "))
}

// fetch downloads a file into the store.
func (s supply) fetch(ctx context.Context, url, sum string) error {
	if !s.Offline {
		return s.cache().store().Fetch(ctx, url, sum, s.packagesStep)
	}
	if s.cache().store().Has(sum) {
		return nil
	}
	return fmt.Errorf("%s is not in the cache, and --offline is set: run imagegen fetch with a network", url)
}

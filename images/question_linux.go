package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
	"imagegen/roles"
)

// resolveYum pins what a lock lacks for these requests, of roles.
func (c *Config) resolveYum(ctx context.Context, now *packages.Lock, requests map[string]inputs) error {
	base := c.centosInputs()
	if c.Offline {
		return fmt.Errorf("%s does not pin all that %s asks for. Only yum can find it, in the repositories, and imagegen is to work offline: run imagegen fetch where there is a network", c.LockPath(), c.Spec.File)
	}
	by, _, err := c.chooseBuilder()
	if err != nil {
		return err
	}
	if err := c.openCache(ctx); err != nil {
		return err
	}
	asked := &plan{inputs: inputs{Base: base}, identity: base.identity()} // no image, but its builder needs as much
	if err := c.checkSpace([]*plan{asked}, by); err != nil {
		return err
	}
	if _, err := os.Stat(c.baseDir(base)); err != nil {
		if err := c.fetchBase(ctx, base); err != nil {
			return err
		}
	}
	if err := c.bakeBase(ctx, base); err != nil {
		return fmt.Errorf("bake the base of %s: %w", c.Spec.Distro, err)
	}
	if now.Base != nil {
		gone, err := c.store().FetchRPMs(ctx, centosRepos(c.Spec, roles.Distro{}), c.store().Lacking(now.Base.Packages), c.packagesStep)
		if err != nil {
			return err
		}
		if gone != nil {
			now.DropBase()
		}
	}
	q := question{lock: now, requests: map[string]inputs{}, same: map[string]string{}}
	for _, name := range now.Misfits(askedFor(requests)) {
		in := requests[name]
		asked.inputs.DiskBytes = max(asked.inputs.DiskBytes, in.DiskBytes)
		key := jsonhash.Of([]any{in.requested(), in.repos})
		if q.same[key] == "" {
			q.same[key] = name
			q.requests[name] = in
		}
	}
	b := &bake{config: c, name: packagesName, plan: asked, base: base, builder: by}
	b.Network = true
	err = b.run(ctx,
		step{"copy the base", (*bake).copyBase},
		step{"find out which are needed", q.ask})
	if err != nil {
		if ctx.Err() == nil {
			log, _ := os.ReadFile(b.Log.Name()) // without it, err says enough
			if found := c.absentFaults(string(log)); found != nil {
				return found
			}
		}
		return fmt.Errorf("packages of %s: %w", c.Spec.Distro, err)
	}
	for _, name := range now.Misfits(askedFor(requests)) {
		in := requests[name]
		now.Roles[name] = now.Roles[q.same[jsonhash.Of([]any{in.requested(), in.repos})]]
	}
	return nil
}

// question is what yum is asked, and the lock that the answers go to.
type question struct {
	lock     *packages.Lock
	requests map[string]inputs // by role
	same     map[string]string // hash of a request → the role that asks for all that have it
}

// ask runs the script that has yum answer.
func (q question) ask(b *bake, ctx context.Context) error {
	if q.lock.Base != nil {
		if err := b.config.store().TakeRPMs(ctx, b.Input("base/rpms"), q.lock.Base.Packages); err != nil {
			return err
		}
	} else if err := request(b.Input("base"), b.base.Packages, centosRepos(b.config.Spec, roles.Distro{})); err != nil {
		return err
	}
	if err := os.MkdirAll(b.Input("roles"), 0o755); err != nil {
		return err
	}
	for name, in := range q.requests {
		dir := b.Input("roles/" + name)
		if err := request(dir, in.Packages, in.repos); err != nil {
			return err
		}
		if err := layLocal(ctx, filepath.Join(dir, "local"), in.Local); err != nil {
			return err
		}
	}
	if err := os.WriteFile(b.Input("script"), []byte(centosResolveScript), 0o644); err != nil {
		return err
	}
	if err := b.runBuilder(ctx); err != nil {
		return err
	}
	answer, err := os.ReadFile(b.Input("packages"))
	if err != nil {
		return err
	}
	found, err := parseFound(string(answer))
	if err != nil {
		return err
	}
	for _, list := range found {
		for _, p := range b.config.store().Lacking(list) {
			// What is not here is found in the repositories later, by its hash.
			path := b.Input("found/" + p.SHA256)
			if info, err := os.Stat(path); err == nil && info.Size() > 0 {
				if err := b.config.store().Add(ctx, path, p.SHA256, "package "+p.String()); err != nil {
					return err
				}
			}
		}
	}
	if q.lock.Base == nil {
		q.lock.Base = &packages.Pins{Requested: b.base.requested(), Packages: found["base"]}
	}
	delete(found, "base")
	for name, in := range q.requests {
		q.lock.Roles[name] = &packages.Pins{Requested: in.requested(), Packages: found[name]}
	}
	return nil
}

// request writes what yum is asked for to a new folder.
func request(dir string, names []string, repos []packages.Repo) error {
	return errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "packages"), []byte(strings.Join(append(names, ""), "\n")), 0o644),
		os.WriteFile(filepath.Join(dir, "repos"), []byte(packages.RepoFile(repos)), 0o644))
}

// layRPMs lays the packages of an image of centos7.
func (b *bake) layRPMs(ctx context.Context) error {
	return errors.Join(
		b.config.store().TakeRPMs(ctx, b.Input("base"), b.base.Pinned),
		b.config.store().TakeRPMs(ctx, b.Input("role"), b.plan.inputs.Pinned))
}

// parseFound reads the script's list of packages: for whom, name, version, architecture and SHA-256 a line.
func parseFound(text string) (map[string][]packages.Pin, error) {
	found := map[string][]packages.Pin{}
	for line := range strings.Lines(text) {
		whom, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		var p packages.Pin
		if err := p.UnmarshalText([]byte(strings.ReplaceAll(rest, "\t", " "))); err != nil {
			return nil, err
		}
		if !slices.Contains(found[whom], p) { // two repositories may have the same
			found[whom] = append(found[whom], p)
		}
	}
	for _, list := range found {
		slices.SortFunc(list, func(a, b packages.Pin) int {
			return strings.Compare(a.Name+" "+a.Architecture+" "+a.Version, b.Name+" "+b.Architecture+" "+b.Version)
		})
	}
	return found, nil
}

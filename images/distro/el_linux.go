package distro

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/images/builder"
	"imagegen/images/format"
	"imagegen/images/packages"
	"imagegen/internal/jsonhash"
	"imagegen/internal/sparse"
	"imagegen/roles"
)

// The disk's own yum resolves packages, since only it knows what is installed. It runs on a copy of the disk, with network access. Pinned
// packages are looked up by hash in the repositories' package lists, which are read here: yum would resolve dependencies again.

// Resolve asks yum which packages are needed.
func (e el) Resolve(ctx context.Context, now *packages.Lock, requests map[string]Inputs, try Trial) error {
	if e.Offline {
		return fmt.Errorf("%s does not pin all packages that %s needs. yum resolves them in the repositories, and --offline is set: run imagegen fetch with a network", e.Lock, e.Spec.File)
	}
	if err := os.MkdirAll(string(e.Store), 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	if now.Base != nil {
		gone, err := e.Store.FetchRPMs(ctx, elRepos(e.Spec, roles.Distro{}), e.Store.Lacking(now.Base.Packages), e.Step)
		if err != nil {
			return err
		}
		if gone != nil {
			now.DropBase()
		}
	}
	q := question{el: e, lock: now, base: e.base(), requests: map[string]Inputs{}, same: map[string]string{}}
	bytes := int64(0)
	for _, name := range now.Misfits(Requested(requests)) {
		in := requests[name]
		bytes = max(bytes, in.DiskBytes)
		key := jsonhash.Of([]any{in.Requested(), in.Repos})
		if q.same[key] == "" {
			q.same[key] = name
			q.requests[name] = in
		}
	}
	log, err := try(ctx, q.base, bytes, q.ask)
	if err != nil {
		if ctx.Err() == nil {
			if found := e.absentFaults(log); found != nil {
				return found
			}
		}
		return err
	}
	for _, name := range now.Misfits(Requested(requests)) {
		in := requests[name]
		now.Roles[name] = now.Roles[q.same[jsonhash.Of([]any{in.Requested(), in.Repos})]]
	}
	return nil
}

// Fetch downloads packages from repositories.
func (e el) Fetch(ctx context.Context, repos []packages.Repo, missing []packages.Pin) (gone []packages.Pin, err error) {
	return e.Store.FetchRPMs(ctx, repos, missing, e.Step)
}

// MakeBase unpacks the disk.
func (e el) MakeBase(ctx context.Context, j *builder.Job, b Base) error {
	j.Begin("check the disk")
	from, wrong := b.File, "name another file in the spec, or correct base.sha256 there"
	if from == "" {
		from, wrong = e.Store.Path(b.SHA256), "remove that file, and imagegen downloads it again"
	}
	if err := sparse.HasSum(ctx, from, b.SHA256); err != nil {
		return fmt.Errorf("%s: %w; %s", from, err, wrong)
	}
	j.Begin("unpack the disk")
	return format.Unpack(ctx, from, j.Disk())
}

// Stage copies the image's packages.
func (e el) Stage(ctx context.Context, j *builder.Job, in Inputs) error {
	return errors.Join(
		e.Store.TakeRPMs(ctx, j.Input("base"), in.Base.Pinned),
		e.Store.TakeRPMs(ctx, j.Input("role"), in.Pinned))
}

// question is what yum is asked, and the lock that receives the answers.
type question struct {
	el
	lock     *packages.Lock
	base     Base
	requests map[string]Inputs // by role
	same     map[string]string // hash of a request → the role that is asked for all roles with that request
}

// ask runs the script that asks yum.
func (q question) ask(ctx context.Context, j *builder.Job, run func(context.Context) error) error {
	if q.lock.Base != nil {
		if err := q.Store.TakeRPMs(ctx, j.Input("base/rpms"), q.lock.Base.Packages); err != nil {
			return err
		}
	} else if err := request(j.Input("base"), q.base.Packages, elRepos(q.Spec, roles.Distro{})); err != nil {
		return err
	}
	if err := os.MkdirAll(j.Input("roles"), 0o755); err != nil {
		return err
	}
	for name, in := range q.requests {
		dir := j.Input("roles/" + name)
		if err := request(dir, in.Packages, in.Repos); err != nil {
			return err
		}
		if err := StageLocal(ctx, filepath.Join(dir, "local"), in.Local); err != nil {
			return err
		}
	}
	if err := os.WriteFile(j.Input("script"), []byte(elResolveScript), 0o644); err != nil {
		return err
	}
	if err := run(ctx); err != nil {
		return err
	}
	answer, err := os.ReadFile(j.Input("packages"))
	if err != nil {
		return err
	}
	found, err := parseFound(string(answer))
	if err != nil {
		return err
	}
	for _, list := range found {
		for _, p := range q.Store.Lacking(list) {
			// Packages that are not here are downloaded later, by hash.
			path := j.Input("found/" + p.SHA256)
			if info, err := os.Stat(path); err == nil && info.Size() > 0 {
				if err := q.Store.Add(ctx, path, p.SHA256, "package "+p.String()); err != nil {
					return err
				}
			}
		}
	}
	if q.lock.Base == nil {
		q.lock.Base = &packages.Pins{Requested: q.base.Requested(), Packages: found["base"]}
	}
	delete(found, "base")
	for name, in := range q.requests {
		q.lock.Roles[name] = &packages.Pins{Requested: in.Requested(), Packages: found[name]}
	}
	return nil
}

// request writes the package names and repositories for yum to a new folder.
func request(dir string, names []string, repos []packages.Repo) error {
	return errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "packages"), []byte(strings.Join(append(names, ""), "\n")), 0o644),
		os.WriteFile(filepath.Join(dir, "repos"), []byte(packages.RepoFile(repos)), 0o644))
}

// parseFound parses the script's package list: role or base, name, version, architecture and SHA-256 per line.
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

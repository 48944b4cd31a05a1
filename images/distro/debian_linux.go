package distro

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imagegen/cluster"
	"imagegen/images/builder"
	"imagegen/images/packages"
)

// openArchive opens the archive of the spec's sources.
func (d debian) openArchive(ctx context.Context) (*packages.Archive, error) {
	sources, err := d.sources()
	if err != nil {
		return nil, err
	}
	return d.openSources(ctx, sources)
}

// openSources is openArchive for given sources.
func (d debian) openSources(ctx context.Context, sources []string) (*packages.Archive, error) {
	a := packages.ArchiveConfig{Dir: d.Archives, Sources: sources, Offline: d.Offline, Step: d.Step}
	if d.Spec.Mirror != "" && !strings.HasPrefix(d.Spec.Mirror, "deb ") {
		a.Optional = d.known().Suites[1:]
	}
	opened, err := packages.OpenArchive(ctx, a)
	if err == nil && !d.Offline {
		d.warnOfSuites(sources, opened.LeftOut)
	}
	return opened, err
}

// warnOfSuites warns that images are made without security updates, or without suites that were left out. The build host's own
// archive is not used instead: images of one spec would then differ between build hosts, and contain packages from a source that the
// spec does not name.
func (d debian) warnOfSuites(sources, leftOut []string) {
	suites := d.known().Suites
	missing := slices.Clone(leftOut)
	if security := suites[2]; !slices.Contains(missing, security) && packages.Address(sources, security) == "" {
		missing = append(missing, security)
	}
	for _, suite := range missing {
		own, _ := packages.HostSources("/", d.known()) // a proposal; none is no fault
		address := cmp.Or(packages.Address(own, suite), "…")
		where := d.Spec.File + ": the mirror"
		if d.Spec.Mirror == "" {
			where = "this machine's APT configuration"
		}
		d.Note(fmt.Sprintf("WARNING: the images are made WITHOUT %s, which %s does not have; name it in the spec, in a list: mirror: [deb … %s main, deb %s %[1]s main]",
			suite, where, suites[0], address))
	}
}

// Resolve asks APT which packages are needed.
func (d debian) Resolve(ctx context.Context, now *packages.Lock, requests map[string]Inputs, _ Trial) error {
	a, err := d.openArchive(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	if !d.Offline {
		now.LeftOut = a.LeftOut
	}
	d.Step("resolve dependencies")
	var installed string
	if now.Base != nil {
		if installed, err = a.Status(ctx, d.Store, now.Base.Packages); err != nil {
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
		if installed, err = a.Status(ctx, d.Store, now.Base.Packages); err != nil {
			return err
		}
	}
	var faults cluster.Problems // in what people wrote, of all roles
	for _, name := range now.Misfits(Requested(requests)) {
		in := requests[name]
		all := slices.Clone(in.Packages)
		for _, l := range in.Local {
			all = append(all, l.Path)
		}
		p := &packages.Pins{Requested: in.Requested()}
		if len(all) > 0 {
			if p.Packages, err = a.Resolve(ctx, installed, all); err != nil {
				if found := d.packageFaults(name, err); found != nil {
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

// Fetch downloads packages with APT.
func (d debian) Fetch(ctx context.Context, _ []packages.Repo, missing []packages.Pin) (gone []packages.Pin, err error) {
	a, err := d.openArchive(ctx)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if gone, err := a.Gone(ctx, missing); err != nil || gone != nil {
		return gone, err
	}
	d.Step(fmt.Sprintf("fetch %d", len(missing)))
	return nil, a.Download(ctx, d.Store, missing)
}

// MakeBase makes a file tree from the pinned packages.
func (d debian) MakeBase(ctx context.Context, j *builder.Job, b Base) error {
	vars := map[string]string{
		"RESULT":   filepath.Join(j.Work, "result"),
		"FS_UUID":  b.UUID(),
		"PACKAGES": strings.Join(packages.Names(b.Pinned), ","),
		"WORK":     j.Work,
		"ARCHIVE":  filepath.Join(j.Work, "archive"),
		"APT_CONF": filepath.Join(j.Work, "apt.conf"),
	}
	err := errors.Join(
		d.repository(ctx, vars["ARCHIVE"], b.Pinned),
		os.WriteFile(vars["APT_CONF"], []byte(packages.APTDefaults), 0o644))
	if err != nil {
		return err
	}
	return j.Script(ctx, baseScript, vars)
}

// repository makes an APT repository of pinned packages in a new folder.
func (d debian) repository(ctx context.Context, dir string, pinned []packages.Pin) error {
	return d.Store.Repository(ctx, dir, d.known().Suites[0], pinned, d.Jobs)
}

// Stage makes a repository of the image's packages, and the configuration of APT in the image.
func (d debian) Stage(ctx context.Context, j *builder.Job, in Inputs) error {
	if err := stageKeys(j.Input("keys"), packages.Keyrings(in.Base.Sources)); err != nil {
		return fmt.Errorf("copy the archive's keys: %w", err)
	}
	return errors.Join(
		d.repository(ctx, j.Input("archive"), in.Pinned),
		os.WriteFile(j.Input("sources"), []byte(strings.Join(in.Base.Sources, "\n")+"\n"), 0o644),
		os.WriteFile(j.Input("apt.conf"), []byte(packages.APTDefaults), 0o644))
}

// maxKeyring is the maximum size of a keyring.
const maxKeyring = 16 << 20

// stageKeys copies keyrings of this machine to a new folder, under their paths. The paths come from the spec and cannot leave the
// folder. A keyring that does not exist here may exist in the base.
func stageKeys(dir string, keys []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, k := range keys {
		info, err := os.Stat(k)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() > maxKeyring {
			return fmt.Errorf("%s is not a keyring", k)
		}
		data, err := os.ReadFile(k)
		if err != nil {
			return err
		}
		path := strings.TrimPrefix(k, "/")
		if err := errors.Join(root.MkdirAll(filepath.Dir(path), 0o755), root.WriteFile(path, data, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

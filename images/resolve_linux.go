package images

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"imagegen/cluster"
	"imagegen/internal/filelock"
	"imagegen/internal/program"
	"imagegen/roles"
)

// archive asks APT on this machine about the sources that images are baked from. It has a folder of its own in the
// cache, with the archive's lists; what this machine has installed, and where else it gets packages, is nothing to it.
type archive struct {
	dir     string
	lock    *os.File
	leftOut []string // suites that were asked for, and are not there
}

// openArchive makes an archive ready. Its lists are fetched unless the bake is offline. Others who want it wait until it
// is closed.
func (c *Config) openArchive(ctx context.Context) (*archive, error) {
	sources, err := c.sources()
	if err != nil {
		return nil, err
	}
	return c.openSources(ctx, sources)
}

// openSources is openArchive for these sources.
func (c *Config) openSources(ctx context.Context, sources []string) (_ *archive, err error) {
	a := &archive{dir: filepath.Join(c.CacheDir, "archive", hashJSON(sources)[:32])}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "trusted"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make the cache: %w", err)
		}
	}
	if a.lock, err = filelock.Lock(ctx, filepath.Join(a.dir, "lock"), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	dump, err := program.Command(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil, fmt.Errorf("ask apt-config, of the package apt, for this machine's settings: %w", err)
	}
	err = errors.Join(a.trust(),
		os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(strings.Join(sources, "\n")+"\n"), 0o644),
		os.WriteFile(filepath.Join(a.dir, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(a.dir, "apt.conf"), []byte(aptDefaults+aptSettings(string(dump))+fmt.Sprintf(`Dir %[1]q;
Dir::State "state/";
Dir::Cache "cache/";
Dir::Etc %[1]q;
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "trusted/";
Acquire::GzipIndexes "false";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
`, a.dir+"/")), 0o644))
	if err != nil {
		return nil, err
	}
	if c.Offline {
		if lists, _ := filepath.Glob(filepath.Join(a.dir, "state/lists/*_Packages")); len(lists) == 0 {
			return nil, errors.New("what the archive holds is not in the cache, and imagegen is to work offline: run imagegen fetch where there is a network")
		}
		return a, nil
	}
	c.UI.Step(packagesName, "read the archive's lists")
	update := func() error {
		_, err := a.run(ctx, a.dir, "", "apt-get", "-qq", "--error-on=any", "update")
		return err
	}
	err = update()
	if err != nil && ctx.Err() == nil && !strings.HasPrefix(c.Spec.Mirror, "deb ") && c.Spec.Mirror != "" {
		if a.leftOut = lackedSuites(sources, err); a.leftOut != nil {
			sources = (&lock{LeftOut: a.leftOut}).named(sources)
			if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(strings.Join(sources, "\n")+"\n"), 0o644); err != nil {
				return nil, err
			}
			err = update()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the archive's lists: %w", err)
	}
	c.warnOfSuites(sources, a.leftOut)
	return a, nil
}

// lackedSuites returns the suites of updates that an archive at a plain address lacks, by the error of APT. A suite counts as
// lacking only when the server says that it is not there: a broken connection is an error.
func lackedSuites(sources []string, failed error) (suites []string) {
	for _, s := range parseList(strings.Join(sources, "\n")) {
		if s.suite != "bookworm" && strings.Contains(failed.Error(), s.suite+" Release' does not have a Release file") {
			suites = append(suites, s.suite)
		}
	}
	return suites
}

// warnOfSuites says loudly that images are made without security updates, or without what was left out. The build host's own
// archive does not stand in: with it, images of one spec would differ between build hosts, and come from where the spec
// does not say.
func (c *Config) warnOfSuites(sources, leftOut []string) {
	missing := slices.Clone(leftOut)
	const security = "bookworm-security"
	if !slices.Contains(missing, security) && !slices.ContainsFunc(parseList(strings.Join(sources, "\n")), func(s source) bool { return s.suite == security }) {
		missing = append(missing, security)
	}
	for _, suite := range missing {
		address := "…"
		own, _ := hostSources("/") // a proposal; none is no fault
		for _, s := range parseList(strings.Join(own, "\n")) {
			if s.suite == suite {
				address = s.uri
			}
		}
		where := c.Spec.File + ": the mirror"
		if c.Spec.Mirror == "" {
			where = "this machine's APT configuration"
		}
		c.UI.Note(fmt.Sprintf("WARNING: the images are made WITHOUT %s, which %s does not have; name it in the spec, in a list: mirror: [deb … bookworm main, deb %s %s main]",
			suite, where, address, suite))
	}
}

// packagesName is what the progress calls the work on packages of all images.
const packagesName = "packages"

func (a *archive) close() { a.lock.Close() }

// trust makes the folder of keys that sources are believed by which name none: those of this machine's APT, and Debian's own, which
// other distributions keep aside.
func (a *archive) trust() error {
	keys, err := filepath.Glob("/etc/apt/trusted.gpg.d/*")
	if err != nil {
		return err
	}
	for _, key := range append(keys, "/usr/share/keyrings/debian-archive-keyring.gpg") {
		to := filepath.Join(a.dir, "trusted", filepath.Base(key))
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(key); err != nil {
			continue
		}
		if err := os.Symlink(key, to); err != nil {
			return err
		}
	}
	return nil
}

// run runs one of APT's programs in a folder. The status is a file of what counts as installed; empty: nothing.
func (a *archive) run(ctx context.Context, dir, status string, name string, args ...string) (string, error) {
	args = append([]string{"-o", "Dir::State::status=" + cmp.Or(status, filepath.Join(a.dir, "empty"))}, args...)
	cmd := program.Command(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"LC_ALL=C.UTF-8", "PATH=" + program.Path, "APT_CONFIG=" + filepath.Join(a.dir, "apt.conf")}, program.ProxyEnv()...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%s: %w\n%s", name, err, program.LastLines(&said, 8))
	}
	return out.String(), nil
}

// status writes the file by which APT takes packages for installed, and returns its path; empty: of one of them, neither
// the archive nor the store knows anything.
func (a *archive) status(ctx context.Context, s store, packages []Pin) (string, error) {
	stanzas, err := a.show(ctx, packages)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, p := range packages {
		text := stanzas[p.String()].text
		if text == "" {
			if !s.has(p.SHA256) {
				return "", nil
			}
			if text, err = control(ctx, s.path(p.SHA256)); err != nil {
				return "", fmt.Errorf("read package %s: %w", p, err)
			}
		}
		b.WriteString(text + "Status: install ok installed\n\n")
	}
	path := filepath.Join(a.dir, "installed")
	return path, os.WriteFile(path, []byte(b.String()), 0o644)
}

// control returns what a package file says of itself.
func control(ctx context.Context, path string) (string, error) {
	out, err := program.Command(ctx, "dpkg-deb", "--field", path).Output()
	return strings.TrimSpace(string(out)) + "\n", err
}

// resolve returns what APT would install for names of packages and paths of package files, with those in the file status
// installed. The files themselves are left out.
func (a *archive) resolve(ctx context.Context, status string, names []string) ([]Pin, error) {
	out, err := a.run(ctx, a.dir, status, "apt-get", append([]string{"-qq", "-s", "-y", "install"}, names...)...)
	if err != nil {
		return nil, err
	}
	var all []Pin
	for line := range strings.Lines(out) {
		// Inst NAME [OLD VERSION] (VERSION ARCHIVE… [ARCHITECTURE]) …
		rest, ok := strings.CutPrefix(line, "Inst ")
		if !ok {
			continue
		}
		name, rest, _ := strings.Cut(rest, " ")
		_, rest, _ = strings.Cut(rest, "(")
		inside, _, _ := strings.Cut(rest, ")")
		f := strings.Fields(inside)
		if len(f) < 2 {
			return nil, fmt.Errorf("apt-get printed %q", line)
		}
		if f[1] != "local-deb" {
			all = append(all, Pin{Name: name, Version: f[0], Architecture: strings.Trim(f[len(f)-1], "[]")})
		}
	}
	stanzas, err := a.show(ctx, all)
	if err != nil {
		return nil, err
	}
	for i, p := range all {
		s, ok := stanzas[p.String()]
		if !ok || !isSHA256(s.sha256) {
			return nil, fmt.Errorf("the archive does not say what the SHA-256 of %s is", p)
		}
		all[i].SHA256 = s.sha256
	}
	slices.SortFunc(all, func(a, b Pin) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// notFound is how APT says that an archive has no package of a name, or none that could be installed.
var notFound = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate)$`)

// packageFaults finds where the packages are named that an archive has not got, in the role or in the spec; none: err is
// about something else.
func (c *Config) packageFaults(role string, err error) cluster.Problems {
	var faults cluster.Problems
	for _, m := range notFound.FindAllStringSubmatch(err.Error(), -1) {
		name := cmp.Or(m[1], m[2])
		faults = append(faults, c.packageFault(role, name, fmt.Sprintf("the archive has no package %s for %s", name, c.Spec.Distro))...)
	}
	return faults
}

// absent is how the script that asks yum says that no repository has a package for a role.
var absent = regexp.MustCompile(`(?m)^no repository has (\S+) for (\S+)\r?$`)

// absentFaults is packageFaults for what that script has printed.
func (c *Config) absentFaults(log string) cluster.Problems {
	var faults cluster.Problems
	for _, m := range absent.FindAllStringSubmatch(log, -1) {
		if c.Spec.Role(m[2]) != nil {
			faults = append(faults, c.packageFault(m[2], m[1], fmt.Sprintf("no repository has a package %s for %s", m[1], c.Spec.Distro))...)
		}
	}
	return faults
}

// packageFault is a fault at the place where a role's package is named, in the spec or in the role; none: it is in neither.
func (c *Config) packageFault(role, name, msg string) cluster.Problems {
	if p, ok := c.Spec.Role(role).PackageFault(name, msg); ok {
		return cluster.Problems{p}
	}
	if p, ok := c.Catalogue.Role(role).PackageFault(c.Spec.Distro, name, msg); ok {
		return cluster.Problems{p}
	}
	return nil
}

// stanza is what the archive says of a package.
type stanza struct{ text, sha256 string }

// show returns what the archive says of packages, of those that it has, by "NAME VERSION".
func (a *archive) show(ctx context.Context, packages []Pin) (map[string]stanza, error) {
	all := map[string]stanza{}
	if len(packages) == 0 {
		return all, nil
	}
	args := []string{"show", "--no-all-versions"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	out, err := a.run(ctx, a.dir, "", "apt-cache", args...)
	if err != nil && strings.Contains(err.Error(), "No packages found") {
		return all, nil // not one of them
	}
	if err != nil {
		return nil, err
	}
	for text := range strings.SplitSeq(out, "\n\n") {
		var name, version, sum string
		for line := range strings.Lines(text) {
			field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch field {
			case "Package":
				name = value
			case "Version":
				version = value
			case "SHA256":
				sum = value
			}
		}
		if name != "" {
			all[name+" "+version] = stanza{strings.TrimSuffix(text, "\n") + "\n", sum}
		}
	}
	return all, nil
}

// download brings packages into the store.
func (a *archive) download(ctx context.Context, s store, packages []Pin) error {
	dir, err := os.MkdirTemp(string(s), "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"-qq", "download"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	if _, err := a.run(ctx, dir, "", "apt-get", args...); err != nil {
		return err
	}
	for _, p := range packages {
		if err := s.add(ctx, filepath.Join(dir, p.file()), p.SHA256, p.String()); err != nil {
			return err
		}
	}
	return nil
}

// file is the name that APT gives to a package's file.
func (p Pin) file() string {
	return p.Name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + "_" + p.Architecture + ".deb"
}

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
	old, err := c.readLock()
	if err != nil {
		return err
	}
	now, err := c.repin(ctx, old, names, renew)
	if err != nil || now == old {
		return err
	}
	if err := c.writeLock(now); err != nil {
		return err
	}
	if old.Base == nil {
		c.UI.Note(fmt.Sprintf("%s: the packages are pinned", c.LockPath()))
	}
	for _, line := range now.moved(old, names) {
		if old.Base != nil {
			c.UI.Note(fmt.Sprintf("%s: %s", c.LockPath(), line))
		}
	}
	return nil
}

// repin returns a lock that fits the named roles: old, when it does; else one in which what does not fit, or with renew
// everything, is pinned to what the archive has today.
func (c *Config) repin(ctx context.Context, old *lock, names []string, renew bool) (*lock, error) {
	requests := map[string]inputs{}
	for _, name := range names {
		in, err := c.inputs(ctx, name, baseInputs{}, "", nil)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", name, err)
		}
		requests[name] = in
	}
	now := old.clone()
	for name := range now.Roles {
		if c.Spec.Role(name) == nil {
			delete(now.Roles, name)
		}
	}
	base, err := c.baseInputs()
	if err != nil {
		return nil, err
	}
	if renew || now.Base.fit(base.requested()) == nil {
		now.dropBase()
	}
	if now.Base != nil && now.misfits(requests) == nil {
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
		if old := tooOld(least, now.Roles[name].Packages); old != "" {
			return nil, fmt.Errorf("packages of %s: the repositories have %s. Name others in the spec, repos", name, old)
		}
	}
	return now, nil
}

// resolveAPT pins what a lock lacks for these requests, of roles.
func (c *Config) resolveAPT(ctx context.Context, now *lock, requests map[string]inputs) error {
	a, err := c.openArchive(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	if !c.Offline {
		now.LeftOut = a.leftOut
	}
	c.UI.Step(packagesName, "find out which are needed")
	var installed string
	if now.Base != nil {
		if installed, err = a.status(ctx, c.store(), now.Base.Packages); err != nil {
			return err
		}
		if installed == "" {
			now.dropBase() // nobody knows any more what it was made of
		}
	}
	if now.Base == nil {
		now.Base = &pins{Requested: debianBase}
		all := append([]string{"?essential", "?priority(required)", "apt"}, debianBase...)
		if now.Base.Packages, err = a.resolve(ctx, "", all); err != nil {
			return fmt.Errorf("packages of the base: %w", err)
		}
		if installed, err = a.status(ctx, c.store(), now.Base.Packages); err != nil {
			return err
		}
	}
	var faults cluster.Problems // in what people wrote, of all roles
	for _, name := range now.misfits(requests) {
		in := requests[name]
		all := slices.Clone(in.Packages)
		for _, l := range in.Local {
			all = append(all, l.path)
		}
		p := &pins{Requested: in.requested()}
		if len(all) > 0 {
			if p.Packages, err = a.resolve(ctx, installed, all); err != nil {
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

// dropBase forgets the base, and with it the roles: what they get beside it depends on what is in it.
func (l *lock) dropBase() {
	l.Base, l.Roles = nil, map[string]*pins{}
}

// unfit says what the spec asks for that the lock does not have.
func (c *Config) unfit(l *lock, base baseInputs, requests map[string]inputs, names []string) error {
	var lines []string
	add := func(name string, p *pins, now []string) {
		if p == nil {
			lines = append(lines, "  "+name+": nothing is pinned")
		} else if change := listChange(p.Requested, now); change != "" {
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
func (c *Config) gather(ctx context.Context, plans []*plan, everything bool) (gone []Pin, err error) {
	var missing []Pin
	var repos []roles.Repo // that have them
	got := false           // a base that is a disk
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
			if !slices.ContainsFunc(repos, func(o roles.Repo) bool { return reflect.DeepEqual(o, r) }) {
				repos = append(repos, r)
			}
		}
		for _, pin := range all {
			if !c.store().has(pin.SHA256) && !slices.Contains(missing, pin) {
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
		return nil, fmt.Errorf("%s not in the cache, and imagegen is to work offline: run imagegen fetch where there is a network", listed(missing))
	}
	if c.Spec.Distro == "centos7" {
		return c.fetchRPMs(ctx, repos, missing)
	}
	a, err := c.openArchive(ctx)
	if err != nil {
		return nil, err
	}
	defer a.close()
	have, err := a.show(ctx, missing)
	if err != nil {
		return nil, err
	}
	for _, p := range missing {
		if have[p.String()].sha256 != p.SHA256 {
			gone = append(gone, p)
		}
	}
	if gone != nil {
		return gone, nil
	}
	c.UI.Step(packagesName, fmt.Sprintf("fetch %d", len(missing)))
	return nil, a.download(ctx, c.store(), missing)
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

// listed names packages, the first of many.
func listed(all []Pin) string {
	var names []string
	for _, p := range all[:min(len(all), 5)] {
		names = append(names, p.String())
	}
	switch n := len(all) - len(names); {
	case n > 0:
		return fmt.Sprintf("%s and %d more packages are", strings.Join(names, ", "), n)
	case len(all) == 1:
		return "package " + names[0] + " is"
	}
	return "packages " + strings.Join(names, ", ") + " are"
}

// goneError says that packages cannot be had, and what the archive has today.
func (c *Config) goneError(ctx context.Context, gone []Pin, names []string) error {
	old, err := c.readLock()
	if err != nil {
		return err
	}
	today, err := c.repin(ctx, old, names, true)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s pinned in %s, and neither in the cache nor in the archive any more, which has:\n  %s\nimagegen lock pins what the archive has today",
		listed(gone), c.LockPath(), strings.Join(today.moved(old, names), "\n  "))
}

// repository makes an archive of pinned packages in a folder: the packages, and the files by which APT knows them.
func (c *Config) repository(ctx context.Context, dir string, packages []Pin) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	stanzas := make([]string, len(packages))
	errs := make([]error, len(packages))
	slots := make(chan struct{}, max(1, c.Jobs))
	var wg sync.WaitGroup
	for i, p := range packages {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			stanzas[i], errs[i] = c.enter(ctx, dir, p)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	index := strings.Join(stanzas, "\n")
	sum := sha256.Sum256([]byte(index))
	release := fmt.Sprintf("Suite: bookworm\nCodename: bookworm\nArchitectures: amd64\nSHA256:\n %s %d Packages\n", hex.EncodeToString(sum[:]), len(index))
	return errors.Join(os.WriteFile(filepath.Join(dir, "Packages"), []byte(index), 0o644), os.WriteFile(filepath.Join(dir, "Release"), []byte(release), 0o644))
}

// enter puts a package into a folder and returns its entry in the list of packages.
func (c *Config) enter(ctx context.Context, dir string, p Pin) (string, error) {
	path := filepath.Join(dir, p.file())
	if err := c.store().take(ctx, p.SHA256, path, "package "+p.String()); err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	text, err := control(ctx, path)
	if err != nil {
		return "", fmt.Errorf("read package %s: %w", p, err)
	}
	return fmt.Sprintf("%sFilename: ./%s\nSize: %d\nSHA256: %s\n", text, p.file(), info.Size(), p.SHA256), nil
}

func names(packages []Pin) (all []string) {
	for _, p := range packages {
		all = append(all, p.Name)
	}
	return all
}

// fetch brings a file from outside any package into the store. What is there is looked at: a corrupt file is got anew.
func (c *Config) fetch(ctx context.Context, url, sum string) error {
	if c.Offline {
		if c.store().has(sum) {
			return nil
		}
		return fmt.Errorf("%s is not in the cache, and imagegen is to work offline: run imagegen fetch where there is a network", url)
	}
	lock, err := filelock.Lock(ctx, c.store().path(sum)+".lock", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	c.UI.Step(packagesName, "fetch "+url)
	_, err = newFetcher(string(c.store()), func(what string) { c.UI.Step(packagesName, what) }).fetch(ctx, url, sum)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

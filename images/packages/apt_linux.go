package packages

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
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"imagegen/internal/filelock"
	"imagegen/internal/jsonhash"
	"imagegen/internal/program"
)

// Archive queries the sources that images are baked from, with this machine's APT. It uses its own folder in the cache
// for package lists. It ignores which packages and sources this machine has.
type Archive struct {
	dir     string
	lock    *os.File
	LeftOut []string // optional suites that the archive lacks
}

// ArchiveConfig configures an Archive.
type ArchiveConfig struct {
	Dir     string   // folder of all archives in the cache
	Sources []string // lines of sources.list
	// Optional lists suites that may be missing from the archive. They are left out then.
	Optional []string
	Offline  bool // use only what was fetched earlier
	Step     func(string)
}

// OpenArchive prepares an archive, and fetches its package lists unless the bake is offline. It waits while another
// process has the archive open.
func OpenArchive(ctx context.Context, c ArchiveConfig) (_ *Archive, err error) {
	sources := c.Sources
	a := &Archive{dir: filepath.Join(c.Dir, jsonhash.Of(sources)[:32])}
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
			a.Close()
		}
	}()
	dump, err := program.Output(ctx, "apt-config", "dump")
	if err != nil {
		return nil, fmt.Errorf("read this machine's APT settings: %w", err)
	}
	err = errors.Join(a.trust(),
		os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(strings.Join(sources, "\n")+"\n"), 0o644),
		os.WriteFile(filepath.Join(a.dir, "empty"), nil, 0o644),
		os.WriteFile(filepath.Join(a.dir, "apt.conf"), []byte(APTDefaults+aptSettings(string(dump))+fmt.Sprintf(`Dir %[1]q;
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
			return nil, errors.New("the archive's package lists are not in the cache, and --offline is set: run imagegen fetch with a network")
		}
		return a, nil
	}
	c.Step("read the archive's lists")
	update := func() error {
		_, err := a.run(ctx, a.dir, "", "apt-get", "-qq", "--error-on=any", "update")
		return err
	}
	err = update()
	if err != nil && ctx.Err() == nil {
		if a.LeftOut = lackedSuites(c.Optional, err); a.LeftOut != nil {
			sources = (&Lock{LeftOut: a.LeftOut}).Named(sources)
			if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(strings.Join(sources, "\n")+"\n"), 0o644); err != nil {
				return nil, err
			}
			err = update()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the archive's lists: %w", err)
	}
	return a, nil
}

// lackedSuites returns the optional suites that the archive lacks, according to APT's error. A suite is missing only if
// the server says so; a failed connection is an error.
func lackedSuites(optional []string, failed error) (suites []string) {
	for _, s := range optional {
		if strings.Contains(failed.Error(), s+" Release' does not have a Release file") {
			suites = append(suites, s)
		}
	}
	return suites
}

func (a *Archive) Close() { a.lock.Close() }

// trust collects the keyrings for sources without Signed-By: those of this machine's APT, and Debian's own, which other
// distributions keep elsewhere.
func (a *Archive) trust() error {
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

// run runs one of APT's programs in a folder. status is a file of the packages that count as installed; empty: none.
func (a *Archive) run(ctx context.Context, dir, status string, name string, args ...string) (string, error) {
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

// Status writes a dpkg status file in which the packages are installed, and returns its path. It returns "" if neither
// the archive nor the store has one of them.
func (a *Archive) Status(ctx context.Context, s Store, packages []Pin) (string, error) {
	stanzas, err := a.show(ctx, packages)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, p := range packages {
		text := stanzas[p.String()].text
		if text == "" {
			if !s.Has(p.SHA256) {
				return "", nil
			}
			if text, err = control(ctx, s.Path(p.SHA256)); err != nil {
				return "", fmt.Errorf("read package %s: %w", p, err)
			}
		}
		b.WriteString(text + "Status: install ok installed\n\n")
	}
	path := filepath.Join(a.dir, "installed")
	return path, os.WriteFile(path, []byte(b.String()), 0o644)
}

// control returns the control fields of a package file.
func control(ctx context.Context, path string) (string, error) {
	out, err := program.Output(ctx, "dpkg-deb", "--field", path)
	return strings.TrimSpace(string(out)) + "\n", err
}

// Resolve returns what APT would install for names, which are package names and paths of package files, if the packages
// in the file status were installed. The result does not include the package files.
func (a *Archive) Resolve(ctx context.Context, status string, names []string) ([]Pin, error) {
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
			return nil, fmt.Errorf("the archive does not list the SHA-256 of %s", p)
		}
		all[i].SHA256 = s.sha256
	}
	slices.SortFunc(all, func(a, b Pin) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// notFound matches APT's errors about a package that the archive lacks, or that has no installation candidate.
var notFound = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate)$`)

// NotFound returns the names of the packages in an error of Resolve that the archive lacks.
func NotFound(err error) (names []string) {
	for _, m := range notFound.FindAllStringSubmatch(err.Error(), -1) {
		names = append(names, cmp.Or(m[1], m[2]))
	}
	return names
}

// Gone returns the packages that the archive no longer has, or has with different content.
func (a *Archive) Gone(ctx context.Context, packages []Pin) (gone []Pin, err error) {
	have, err := a.show(ctx, packages)
	if err != nil {
		return nil, err
	}
	for _, p := range packages {
		if have[p.String()].sha256 != p.SHA256 {
			gone = append(gone, p)
		}
	}
	return gone, nil
}

// stanza is a package's entry in the archive's package list.
type stanza struct{ text, sha256 string }

// show returns the archive's entries for packages, by "NAME VERSION". Packages that it lacks are left out.
func (a *Archive) show(ctx context.Context, packages []Pin) (map[string]stanza, error) {
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
		return all, nil // it has none of them
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

// Download downloads packages into the store.
func (a *Archive) Download(ctx context.Context, s Store, packages []Pin) error {
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
		if err := s.Add(ctx, filepath.Join(dir, p.file()), p.SHA256, p.String()); err != nil {
			return err
		}
	}
	return nil
}

// Repository makes an APT repository of pinned packages in a new folder.
func (s Store) Repository(ctx context.Context, dir, suite string, packages []Pin, jobs int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	stanzas := make([]string, len(packages))
	errs := make([]error, len(packages))
	slots := make(chan struct{}, max(1, jobs))
	var wg sync.WaitGroup
	for i, p := range packages {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			stanzas[i], errs[i] = s.enter(ctx, dir, p)
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
	release := fmt.Sprintf("Suite: %[1]s\nCodename: %[1]s\nArchitectures: amd64\nSHA256:\n %[2]s %[3]d Packages\n", suite, hex.EncodeToString(sum[:]), len(index))
	return errors.Join(os.WriteFile(filepath.Join(dir, "Packages"), []byte(index), 0o644), os.WriteFile(filepath.Join(dir, "Release"), []byte(release), 0o644))
}

// enter copies a package to a folder and returns its entry for the package list.
func (s Store) enter(ctx context.Context, dir string, p Pin) (string, error) {
	path := filepath.Join(dir, p.file())
	if err := s.Take(ctx, p.SHA256, path, "package "+p.String()); err != nil {
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

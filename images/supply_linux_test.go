package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/images/packages"
	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// testArchive is an archive of empty packages that a test modifies.
type testArchive struct {
	t   *testing.T
	dir string
	all map[string]string // entry in the package list, by file name
}

// newTestArchive returns an archive with the packages of the base, and cron with its dependencies.
func newTestArchive(t *testing.T) *testArchive {
	t.Helper()
	for _, program := range []string{"apt-get", "apt-cache", "apt-config", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("locks are NOT tested: %v", err)
		}
	}
	a := &testArchive{t: t, dir: t.TempDir(), all: map[string]string{}}
	for _, name := range append([]string{"apt", "dpkg"}, basePackages("debian12")...) {
		a.put(packages.Pin{Name: name, Version: "1:1.0-1"}, "Essential: yes\n")
	}
	a.put(packages.Pin{Name: "libcron", Version: "1.0"}, "")
	a.put(packages.Pin{Name: "cron", Version: "1.0"}, "Depends: libcron (>= 1.0)\n")
	return a
}

// debFile returns a package's file name.
func debFile(p packages.Pin) string {
	return p.Name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + "_" + p.Architecture + ".deb"
}

// put adds a package to the archive, and replaces others of that name.
func (a *testArchive) put(p packages.Pin, fields string) {
	a.t.Helper()
	p.Architecture = "all"
	tree := a.t.TempDir()
	testkit.Write(a.t, filepath.Join(tree, "DEBIAN/control"), fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\n%sDescription: nothing\n", p.Name, p.Version, fields))
	for file := range a.all {
		if strings.HasPrefix(file, p.Name+"_") {
			delete(a.all, file)
		}
	}
	path := filepath.Join(a.dir, debFile(p))
	if out, err := exec.Command("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, path).CombinedOutput(); err != nil {
		a.t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	sum, err := sparse.SHA256(a.t.Context(), path)
	if err != nil {
		a.t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		a.t.Fatal(err)
	}
	text := testkit.Run(a.t, "dpkg-deb", "--field", path)
	a.all[debFile(p)] = fmt.Sprintf("%sFilename: ./%s\nSize: %d\nSHA256: %s\n", text, debFile(p), info.Size(), sum)
}

// config returns a build of the role tiny, with these packages, from the archive as it is now.
func (a *testArchive) config(dir, cache, list string) (Config, *[]string) {
	a.t.Helper()
	var index strings.Builder
	for _, text := range a.all {
		index.WriteString(text + "\n")
	}
	dists := filepath.Join(a.dir, "dists/bookworm")
	testkit.Write(a.t, filepath.Join(dists, "main/binary-amd64/Packages"), index.String())
	testkit.Write(a.t, filepath.Join(dists, "Release"), fmt.Sprintf("Suite: bookworm\nCodename: bookworm\nArchitectures: amd64\nComponents: main\nSHA256:\n %x %d main/binary-amd64/Packages\n",
		sha256.Sum256([]byte(index.String())), index.Len()))
	testkit.Write(a.t, filepath.Join(dir, "cluster.yaml"), tinySpec+"mirror: 'deb [trusted=yes] file://"+a.dir+" bookworm main'\n")
	testkit.Write(a.t, filepath.Join(dir, "roles/tiny/role.yaml"), strings.Replace(tinyRole, "[cron]", "["+list+"]", 1))
	c := mustConfig(a.t, dir, cache)
	said := &[]string{}
	c.UI = noted{said}
	return c, said
}

// noted is a Progress that records the notes.
type noted struct{ all *[]string }

func (noted) Step(image, what string)        {}
func (noted) Done(image string, cached bool) {}
func (n noted) Note(text string) {
	if strings.HasPrefix(text, "WARNING: the images are made WITHOUT bookworm-security") { // test archives have one suite
		return
	}
	if _, line, ok := strings.Cut(text, packages.LockName+": "); ok { // the path differs each time
		text = line
	}
	*n.all = append(*n.all, text)
}

// TestLock follows a lock while the archive changes.
func TestLock(t *testing.T) {
	t.Parallel()
	a := newTestArchive(t)
	dir, cache := t.TempDir(), t.TempDir()
	lock := func() string {
		data, err := os.ReadFile(filepath.Join(dir, packages.LockName))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	fetch := func(what, list string, change func(*Config), notes ...string) {
		t.Helper()
		c, said := a.config(dir, cache, list)
		if change != nil {
			change(&c)
		}
		if err := Fetch(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: %q", what, *said)
		if !slices.Equal(*said, notes) {
			t.Errorf("%s: said %q, want %q", what, *said, notes)
		}
	}
	locked := func(c *Config) { c.Locked = true }
	offline := func(c *Config) { c.Offline = true }
	fails := func(list string, change func(*Config), parts ...string) {
		t.Helper()
		c, _ := a.config(dir, cache, list)
		change(&c)
		before := ""
		if _, err := os.Stat(c.LockPath()); err == nil {
			before = lock()
		}
		wantError(t, Fetch(t.Context(), c), parts...)
		if before != "" && lock() != before {
			t.Error("it has changed the lock")
		}
	}
	forget := func(name string) {
		t.Helper()
		c, _ := a.config(dir, cache, "cron")
		l, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(l.Base.Packages, l.Roles["tiny"].Packages...) {
			if p.Name == name {
				if err := os.Remove(c.cache().store().Path(p.SHA256)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}

	fails("cron", locked, packages.LockName+" does not match", "  base: nothing is pinned", "  tiny: nothing is pinned", "without --locked")
	fails("cron", offline, "the archive's package lists are not in the cache", "imagegen fetch")
	fetch("first", "cron", nil, "the packages are pinned")
	first := lock()
	for _, line := range []string{"\ndistro: debian12\n", " - apt 1:1.0-1 all ", " - cron 1.0 all ", " - libcron 1.0 all "} {
		if !strings.Contains(first, line) {
			t.Errorf("the lock lacks %q:\n%s", line, first)
		}
	}
	stored := func() int {
		all, _ := filepath.Glob(filepath.Join(cache, "packages", "*"))
		return len(all)
	}
	if want := len(basePackages("debian12")) + 4; stored() != want {
		t.Errorf("%d packages in the cache, want %d", stored(), want)
	}

	// The archive changes, which does not matter while the pinned packages are in the cache.
	a.put(packages.Pin{Name: "cron", Version: "2.0"}, "Depends: libcron2\n")
	a.put(packages.Pin{Name: "libcron2", Version: "2.0"}, "")
	a.put(packages.Pin{Name: "udev", Version: "1:1.0-2"}, "Essential: yes\n")
	fetch("moved on", "cron", nil)
	fetch("moved on, locked", "cron", locked)
	fetch("moved on, offline", "cron", offline)
	if lock() != first {
		t.Error("the lock has changed by itself")
	}

	// A new package for the role: the base's pins stay, even if the archive no longer has those versions.
	fails("cron, libcron", locked, "  tiny: package list: + libcron\n")
	fetch("a package more", "cron, libcron", nil, "tiny: cron 1.0 → 2.0, + libcron2 2.0")
	fetch("a package less", "cron", nil, "tiny: - libcron 1.0")
	if !strings.Contains(lock(), " - udev 1:1.0-1 all ") {
		t.Errorf("the base has changed:\n%s", lock())
	}

	// A pinned package is gone from the cache and the archive.
	forget("udev")
	gone := []string{"package udev 1:1.0-1 is pinned", "neither in the cache nor in the archive", "\n  base: udev 1:1.0-1 → 1:1.0-2\n", "imagegen lock"}
	fails("cron", locked, gone...)
	fails("cron", offline, "package udev 1:1.0-1 is not in the cache", "imagegen fetch")
	fetch("pinned anew", "cron", nil, "base: udev 1:1.0-1 → 1:1.0-2")

	// The same version with different content is another package.
	a.put(packages.Pin{Name: "cron", Version: "2.0"}, "Depends: libcron2\nSection: admin\n")
	forget("cron")
	fails("cron", locked, "package cron 2.0 is pinned", "tiny: cron 2.0 with different content")

	c, said := a.config(dir, cache, "cron")
	if changed, err := Renew(t.Context(), c); err != nil || !changed || !slices.Equal(*said, []string{"tiny: cron 2.0 with different content"}) {
		t.Errorf("renewed: %v, %v, %q", changed, err, *said)
	}
	if changed, err := Renew(t.Context(), c); err != nil || changed {
		t.Errorf("renewed again: %v, %v", changed, err)
	}
	fetch("at last", "cron", locked)

	c, _ = a.config(dir, cache, "no-such-package")
	wantError(t, Fetch(t.Context(), c), "roles/tiny/role.yaml:4:16: ", "the archive has no package no-such-package for debian12")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Fetch(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDamagedPackage: a damaged package in the cache is reported and not used.
func TestDamagedPackage(t *testing.T) {
	t.Parallel()
	a := newTestArchive(t)
	c, _ := a.config(t.TempDir(), t.TempDir(), "cron")
	if err := Fetch(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	l, err := packages.ReadLock(c.LockPath(), c.Spec.Distro)
	if err != nil {
		t.Fatal(err)
	}
	all := l.Roles["tiny"].Packages
	if err := c.cache().store().Repository(t.Context(), filepath.Join(t.TempDir(), "whole"), "bookworm", all, 2); err != nil {
		t.Fatal(err)
	}
	path := c.cache().store().Path(all[0].SHA256)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, path, string(data))
	err = c.cache().store().Repository(t.Context(), filepath.Join(t.TempDir(), "damaged"), "bookworm", all, 2)
	wantError(t, err, "package cron 1.0 is damaged in the cache", path, "remove that file", "imagegen fetch")
}

// TestLockFile: an invalid lock is an error.
func TestLockFile(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for _, c := range []struct{ text, say string }{
		{"schema: 1\ndistro: debian12\nroles:\n  tiny:\n    packages: [\"cron 1.0 all " + sum + "\"]\n", ""},
		{"schema: 2\n", "schema 1, not 2"},
		{"schema: 1\ndistro: debian12\nbases: {}\n", "field bases not found"},
		{"schema: 1\ndistro: debian12\nbase: {packages: [cron 1.0 all]}\n", "is not a package's name"},
		{"schema: 1\ndistro: debian12\nbase: {packages: ['-oX 1.0 all " + sum + "']}\n", "is not a package's name"},
		{"schema: 1\ndistro: debian12\nbase: {packages: ['../x 1.0 all " + sum + "']}\n", "is not a package's name"},
	} {
		dir := testDir(t, tinySpec, map[string]string{"tiny": tinyRole})
		testkit.Write(t, filepath.Join(dir, packages.LockName), c.text)
		config := mustConfig(t, dir, "")
		l, err := packages.ReadLock(config.LockPath(), config.Spec.Distro)
		if c.say != "" {
			wantError(t, err, filepath.Join(dir, packages.LockName), c.say)
		} else if err != nil || len(l.Roles["tiny"].Packages) != 1 {
			t.Errorf("%+v, %v", l, err)
		}
	}
}

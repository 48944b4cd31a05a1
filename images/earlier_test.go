package images

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"imagegen/internal/testkit"
)

// build puts an image with a content of its own into the output folder, as Build does.
func (o output) build(t *testing.T, role, identity string) {
	t.Helper()
	dir := o.cache.imageDir(identity)
	data, err := Manifest{Schema: 1, Identity: identity}.encode()
	if err != nil {
		t.Fatal(err)
	}
	if !complete(dir) {
		testkit.Write(t, filepath.Join(dir, diskName), "the disk "+identity)
		testkit.Write(t, filepath.Join(dir, manifestName), string(data))
	}
	if _, err := o.export(t.Context(), role, &plan{roles: []string{role}, identity: identity}); err != nil {
		t.Fatal(err)
	}
}

// has fails unless the output folder has these images of a role: the present one, and those that are kept. Each must have the content
// that belongs to its identity.
func (o output) has(t *testing.T, role, present string, kept ...string) {
	t.Helper()
	check := func(in output, identity string) {
		t.Helper()
		m, _, err := in.present(role)
		disk, readErr := os.ReadFile(in.file(role, "raw"))
		if err != nil || readErr != nil || m.Identity != identity || string(disk) != "the disk "+identity {
			t.Errorf("the image %s of %s is %q with the disk %q (%v, %v)", identity, role, m.Identity, disk, err, readErr)
		}
	}
	check(o, present)
	var have []string
	all, _ := filepath.Glob(filepath.Join(earlierDir(o.dir), "*"))
	for _, dir := range all {
		if HasEarlier(o.dir, role, filepath.Base(dir)) {
			have = append(have, filepath.Base(dir))
			check(o.kept(filepath.Base(dir)), filepath.Base(dir))
		}
	}
	if !slices.Equal(have, kept) {
		t.Errorf("kept of %s: %q, want %q", role, have, kept)
	}
}

// What nodes may run is kept until nobody runs it any more, and undoing a change gets it back.
func TestEarlierImages(t *testing.T) {
	dir := t.TempDir()
	o := output{dir: filepath.Join(dir, "dist"), cache: cache{filepath.Join(dir, "cache"), silent{}}, ui: silent{}}
	for _, role := range []string{"web", "db"} { // roles may share an image
		o.build(t, role, "aa")
		o.has(t, role, "aa")
	}
	o.build(t, "web", "aa")
	o.has(t, "web", "aa")
	o.build(t, "web", "bb")
	o.has(t, "web", "bb", "aa")
	o.has(t, "db", "aa")
	o.build(t, "web", "cc") // no node has ever run bb
	o.has(t, "web", "cc", "aa")
	o.underway = true // some run cc
	o.build(t, "web", "dd")
	o.has(t, "web", "dd", "aa", "cc")

	// A build that was interrupted between the disk and the manifest.
	if err := o.retire(t.Context(), "web", Manifest{Identity: "dd"}, true); err != nil {
		t.Fatal(err)
	}
	if err := place(t.Context(), filepath.Join(o.cache.imageDir("aa"), diskName), o.file("web", "raw")); err != nil {
		t.Fatal(err)
	}
	o.build(t, "web", "ee")
	o.has(t, "web", "ee", "aa", "cc", "dd")

	for range 2 {
		if err := PutBack(t.Context(), o.dir, "web", "aa"); err != nil {
			t.Fatal(err)
		}
		o.has(t, "web", "aa", "aa", "cc", "dd", "ee")
	}
	for range 2 {
		if err := EraseEarlier(o.dir); err != nil {
			t.Fatal(err)
		}
	}
	o.has(t, "web", "aa")
	o.has(t, "db", "aa")
	if _, err := os.Stat(earlierDir(o.dir)); !os.IsNotExist(err) {
		t.Errorf("the folder of earlier images is left: %v", err)
	}
}

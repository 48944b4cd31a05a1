package images

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"imagegen/internal/testkit"
)

// TestTrim: the cache drops what no build has used for long, unless it is linked into an output folder or a build is
// running.
func TestTrim(t *testing.T) {
	var notes []string
	c := Config{CacheDir: t.TempDir(), UI: noted{&notes}}
	long := time.Now().Add(-unusedFor - time.Hour)
	for _, file := range []string{"images/old/disk.raw", "images/old/manifest.json", "images/exported/disk.raw", "images/used/disk.raw", "images/new/disk.raw",
		"formats/old/disk.vmdk", "base/old/root/bin/sh", "packages/0123"} {
		path := filepath.Join(c.CacheDir, file)
		testkit.Write(t, path, "x")
		for dir := path; dir != c.CacheDir && filepath.Base(filepath.Dir(path)) != "new"; dir = filepath.Dir(dir) {
			if err := os.Chtimes(dir, long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	testkit.Write(t, filepath.Join(c.CacheDir, "images/old.lock"), "")
	testkit.Write(t, filepath.Join(c.CacheDir, "work/lock"), "")
	if err := os.Link(filepath.Join(c.CacheDir, "images/exported/disk.raw"), filepath.Join(t.TempDir(), "web.raw")); err != nil {
		t.Fatal(err)
	}

	hold := func() (release func()) {
		release, err := c.cache().hold(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	first, second := hold(), hold()
	used(filepath.Join(c.CacheDir, "images/used"))
	first()
	if got := files(t, filepath.Join(c.CacheDir, "images")); !slices.Contains(got, "old") || notes != nil {
		t.Errorf("while another build is at work: %q, %q", got, notes)
	}
	second()
	for dir, want := range map[string][]string{"images": {"exported", "new", "used"}, "formats": nil, "base": nil, "packages": {"0123"}, "work": {}} {
		if got := files(t, filepath.Join(c.CacheDir, dir)); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("in %s are %q, want %q", dir, got, want)
		}
	}
	if want := []string{"cache: removed what no build has used for 30 days: 3 folders"}; !slices.Equal(notes, want) {
		t.Errorf("%q", notes)
	}
	hold()()
	if len(notes) != 1 {
		t.Errorf("nothing is to be removed: %q", notes)
	}
}

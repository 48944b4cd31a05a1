package images

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"imagegen/internal/testkit"
	"imagegen/roles"
)

// Paths in roles and specs are written by root: neither they nor links may lead out of the bake's folders.

func TestDownloadStaysBelow(t *testing.T) {
	dir := t.TempDir()
	c := &Config{CacheDir: filepath.Join(dir, "cache")}
	sum := testkit.SHA256([]byte("x"))
	testkit.Write(t, c.cache().store().Path(sum), "x")
	for i, path := range []string{"/../../escaped", "/a/../../../escaped", "/good/file"} {
		b := &bake{config: c, plan: &plan{}}
		b.Work = filepath.Join(dir, "work", fmt.Sprint(i))
		if err := os.MkdirAll(b.Work, 0o755); err != nil {
			t.Fatal(err)
		}
		b.plan.inputs.Downloads = []roles.Download{{URL: "http://example.com/x", SHA256: sum, Path: path}}
		if err := b.download(t.Context()); (err == nil) != (path == "/good/file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*/escaped")); len(left) > 0 {
		t.Errorf("written outside: %q", left)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "work/2/files/good/file")); string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	// Nor may an existing link.
	below := filepath.Join(dir, "below")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(below, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(below)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := c.cache().store().TakeBelow(t.Context(), sum, root, "link/escaped", "it"); err == nil {
		t.Error("a link was followed")
	}
}

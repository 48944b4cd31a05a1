package disk

import (
	"os"
	"path/filepath"
	"testing"

	"imagegen/internal/testkit"
)

// TestLinksInTrees: if upper has a folder where lower has a link, the link, which would lead to the build host's files,
// is not followed.
func TestLinksInTrees(t *testing.T) {
	outside := t.TempDir()
	testkit.Write(t, filepath.Join(outside, "sub/secret"), "x")
	tree := Tree{Lower: t.TempDir(), Upper: t.TempDir()}
	if err := os.Symlink(outside, filepath.Join(tree.Lower, "opt")); err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(tree.Upper, "opt/sub/own"), "x")
	for path, want := range map[string]string{"opt": "sub", "opt/sub": "own"} {
		_, all, err := tree.list(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || all[0].Name() != want {
			t.Errorf("%s holds %d entries, the first %s", path, len(all), all[0].Name())
		}
	}
}

package images

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/sparse"
	"imagegen/internal/testkit"
)

// TestManifestOfOlderVersion: images of older versions in caches and output folders still work.
func TestManifestOfOlderVersion(t *testing.T) {
	var m Manifest
	old := `{"schema": 1, "role": "web", "identity": "0123", "inputs": {"base": {"distro": "debian12"}},
		"packages": [{"name": "cron", "version": "3.0", "architecture": "amd64"}], "disk": {"format": "raw", "bytes": 11, "sha256": "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"}}`
	if err := json.Unmarshal([]byte(old), &m); err != nil {
		t.Fatal(err)
	}
	data, err := m.sbom()
	if err != nil || !strings.Contains(string(data), `"checksumValue": "b94d27`) || !strings.Contains(string(data), "pkg:deb/debian/cron@3.0?") {
		t.Errorf("%v\n%s", err, data)
	}
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "web.raw"), "hello world")
	testkit.Write(t, filepath.Join(dir, "web.json"), old)
	if _, err := Inspect(t.Context(), filepath.Join(dir, "web.raw")); err != nil {
		t.Error(err)
	}
	testkit.Write(t, filepath.Join(dir, "web.raw"), "hello World")
	if _, err := Inspect(t.Context(), filepath.Join(dir, "web.raw")); !errors.As(err, new(sparse.WrongSum)) {
		t.Errorf("a different file is accepted: %v", err)
	}
}

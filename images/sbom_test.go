package images

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/internal/testkit"
)

func TestSBOM(t *testing.T) {
	m := Manifest{Role: "web", Identity: "0123", Disk: Output{Data: "abcd"}, Packages: []Package{
		{"libstdc++6", "12.2.0-14+deb12u1", "amd64", "gcc-12@12.2.0-14+deb12u1", "Debian GCC Maintainers <debian-gcc@lists.debian.org>"},
		{"passwd", "1:4.13+dfsg1-1", "amd64", "", ""},
	}}
	m.Inputs.Base.Distro = "debian12"
	m.Inputs.Base.Pinned = []Pin{{"passwd", "1:4.13+dfsg1-1", "amd64", "5678"}}
	data, err := m.sbom()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.sbom(); err != nil || string(again) != string(data) {
		t.Errorf("a second time it is\n%s (%v)", again, err)
	}
	var d spdxDocument
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	if d.Version != "SPDX-2.3" || len(d.Packages) != 3 || len(d.Relationships) != 3 {
		t.Fatalf("the document is\n%s", data)
	}
	ids := map[string]bool{spdxDocumentID: true}
	for _, p := range d.Packages {
		if ids[p.ID] {
			t.Errorf("%s is there twice", p.ID)
		}
		ids[p.ID] = true
	}
	for _, r := range d.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%v is about what is not there", r)
		}
	}
	for i, want := range []string{
		"pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12",
		"pkg:deb/debian/passwd@1%3A4.13%2Bdfsg1-1?arch=amd64&distro=debian-12",
	} {
		if got := d.Packages[i+1].References[0].Locator; got != want {
			t.Errorf("purl %s, want %s", got, want)
		}
	}
	if sums := d.Packages[2].Checksums; len(sums) != 1 || sums[0] != (spdxChecksum{"SHA256", "5678"}) || d.Packages[1].Checksums != nil {
		t.Errorf("checksums of the packages' files: %v; and of one that is not pinned: %v", sums, d.Packages[1].Checksums)
	}
	for i, want := range []string{"Organization: Debian GCC Maintainers (debian-gcc@lists.debian.org)", "NOASSERTION"} {
		if got := d.Packages[i+1].Supplier; got != want {
			t.Errorf("supplier %q, want %q", got, want)
		}
	}
	m.Packages = m.Packages[:1]
	m.Disk.Data = "ef01"
	other, err := m.sbom()
	var o spdxDocument
	if err != nil || json.Unmarshal(other, &o) != nil || o.Namespace == d.Namespace {
		t.Errorf("another image's document has the same namespace (%v)\n%s", err, other)
	}
}

// TestPURLNamesSource: advisories are about source packages, so that scanners find nothing without them.
func TestPURLNamesSource(t *testing.T) {
	for _, c := range []struct {
		p            Package
		distro, want string
	}{
		{Package{Name: "bind-libs", Version: "32:9.11-26.el7", Architecture: "x86_64", Source: "bind-9.11-26.el7.src.rpm"}, "centos7",
			"pkg:rpm/centos/bind-libs@9.11-26.el7?arch=x86_64&distro=centos-7&epoch=32&upstream=bind-9.11-26.el7.src.rpm"},
		{Package{Name: "libssl3", Version: "3.0.17-1", Architecture: "amd64", Source: "openssl@3.0.17-1"}, "debian12",
			"pkg:deb/debian/libssl3@3.0.17-1?arch=amd64&distro=debian-12&upstream=openssl"},
		{Package{Name: "redis", Version: "5:7.0.15-1+b1", Architecture: "amd64", Source: "redis@5:7.0.15-1"}, "debian12",
			"pkg:deb/debian/redis@5%3A7.0.15-1%2Bb1?arch=amd64&distro=debian-12&upstream=redis%405%3A7.0.15-1"},
		{Package{Name: "cron", Version: "3.0", Architecture: "amd64", Source: "cron@3.0"}, "debian12", "pkg:deb/debian/cron@3.0?arch=amd64&distro=debian-12"},
		{Package{Name: "cron", Version: "3.0", Architecture: "amd64"}, "debian12", "pkg:deb/debian/cron@3.0?arch=amd64&distro=debian-12"}, // of an older manifest
	} {
		if got := c.p.purl(c.distro); got != c.want {
			t.Errorf("purl %s, want %s", got, c.want)
		}
	}
}

// TestManifestOfOlderVersion: the images of older versions stay in caches and output folders.
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
	if _, err := Inspect(t.Context(), filepath.Join(dir, "web.raw")); !errors.As(err, new(wrongSum)) {
		t.Errorf("another file passes for it: %v", err)
	}
}

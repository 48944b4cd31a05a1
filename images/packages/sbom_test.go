package packages

import (
	"encoding/json"
	"testing"

	"imagegen/distro"
)

func TestSBOM(t *testing.T) {
	m := Image{Name: "web", Identity: "0123", Distro: "debian12", Digest: "abcd", Packages: []Package{
		{"libstdc++6", "12.2.0-14+deb12u1", "amd64", "gcc-12@12.2.0-14+deb12u1", "Debian GCC Maintainers <debian-gcc@lists.debian.org>"},
		{"passwd", "1:4.13+dfsg1-1", "amd64", "", ""},
	}}
	m.Pinned = []Pin{{"passwd", "1:4.13+dfsg1-1", "amd64", "5678"}}
	data, err := SBOM(m)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := SBOM(m); err != nil || string(again) != string(data) {
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
			t.Errorf("%v refers to an unknown ID", r)
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
		t.Errorf("checksums of packages: %v; of one that is not pinned: %v", sums, d.Packages[1].Checksums)
	}
	for i, want := range []string{"Organization: Debian GCC Maintainers (debian-gcc@lists.debian.org)", "NOASSERTION"} {
		if got := d.Packages[i+1].Supplier; got != want {
			t.Errorf("supplier %q, want %q", got, want)
		}
	}
	m.Packages = m.Packages[:1]
	m.Digest = "ef01"
	other, err := SBOM(m)
	var o spdxDocument
	if err != nil || json.Unmarshal(other, &o) != nil || o.Namespace == d.Namespace {
		t.Errorf("another image's document has the same namespace (%v)\n%s", err, other)
	}
}

// TestPURLNamesSource: scanners need the source package, since advisories refer to it.
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
		{Package{Name: "cron", Version: "3.0", Architecture: "amd64"}, "debian12", "pkg:deb/debian/cron@3.0?arch=amd64&distro=debian-12"}, // from an older manifest
	} {
		if got := c.p.purl(distro.Named(c.distro)); got != c.want {
			t.Errorf("purl %s, want %s", got, c.want)
		}
	}
}

package images

import (
	"encoding/json"
	"testing"
)

func TestSBOM(t *testing.T) {
	m := Manifest{Role: "web", Identity: "0123", Disk: Output{SHA256: "abcd"}, Packages: []Package{
		{"libstdc++6", "12.2.0-14+deb12u1", "amd64"}, {"passwd", "1:4.13+dfsg1-1", "amd64"},
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
		"pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12",
		"pkg:deb/debian/passwd@1%3A4.13%2Bdfsg1-1?arch=amd64&distro=debian-12",
	} {
		if got := d.Packages[i+1].References[0].Locator; got != want {
			t.Errorf("purl %s, want %s", got, want)
		}
	}
	if sums := d.Packages[2].Checksums; len(sums) != 1 || sums[0] != (spdxChecksum{"SHA256", "5678"}) || d.Packages[1].Checksums != nil {
		t.Errorf("checksums of the packages' files: %v; and of one that is not pinned: %v", sums, d.Packages[1].Checksums)
	}
	if got, want := (Package{"bind-libs", "32:9.11", "x86_64"}).purl("centos7"), "pkg:rpm/centos/bind-libs@9.11?arch=x86_64&distro=centos-7&epoch=32"; got != want {
		t.Errorf("purl %s, want %s", got, want)
	}
	m.Packages = m.Packages[:1]
	m.Disk.SHA256 = "ef01"
	other, err := m.sbom()
	var o spdxDocument
	if err != nil || json.Unmarshal(other, &o) != nil || o.Namespace == d.Namespace {
		t.Errorf("another image's document has the same namespace (%v)\n%s", err, other)
	}
}

package images

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/images/distro"
	"imagegen/images/packages"
	"imagegen/internal/testspec"
)

// TestCentOSBase: the source of the disk does not change the image.
func TestCentOSBase(t *testing.T) {
	in := func(more string) distro.Base {
		spec, catalogue := testspec.Reference(t, "/spec/cluster.yaml", "centos7", more)
		return baseOf(t, &Config{Spec: spec, Catalogue: catalogue})
	}
	first := in("")
	same := in("base: {url: https://mirror.example.com/x, sha256: " + baseOf(t, &Config{Spec: &cluster.Spec{Distro: "centos7"}}).SHA256 + "}")
	if first.Identity() != same.Identity() || same.URL != "https://mirror.example.com/x" || same.File != "" {
		t.Errorf("%+v", same)
	}
	if other := in("base: {url: https://mirror.example.com/x, sha256: " + strings.Repeat("0", 64) + "}"); other.Identity() == first.Identity() {
		t.Error("a different disk has the same base")
	}
	pinned := first
	pinned.Pinned = []packages.Pin{{Name: "chrony"}}
	if pinned.Identity() != first.Identity() {
		t.Error("other packages change the base")
	}
	image := func(more string) string {
		spec, catalogue := testspec.Reference(t, "/spec/cluster.yaml", "centos7", more)
		in, err := (&Config{Spec: spec, Catalogue: catalogue}).inputs(t.Context(), "web", pinned, "", &packages.Lock{})
		if err != nil {
			t.Fatal(err)
		}
		return in.Identity()
	}
	if image("") != image("mirror: https://mirror.example.com/vault") {
		t.Error("the same packages from another mirror change the image")
	}
	if in("selinux: enforcing").Identity() != first.Identity() {
		t.Error("SELinux changes the base")
	}
}

// TestTooOldPackages: a package below a role's minimum version is an error, whether it comes from the lock or the
// repositories.
func TestTooOldPackages(t *testing.T) {
	for _, c := range []struct {
		version string
		refused bool
	}{
		{"5.7.25-31.35.1.el7", true}, {"1:5.7.25-31.35.1.el7", true}, {"5.6.51-28.46.1.el7", true}, {"5.7-1", true},
		{"5.7.26-31.37.1.el7", false}, {"5.7.44-31.65.1.el7", false}, {"5.10.1-1", false}, {"8.0.35-27.1.el7", false},
	} {
		got := packages.TooOld(map[string]string{"Percona-XtraDB-Cluster-57": "5.7.26"}, []packages.Pin{{Name: "socat", Version: "1"}, {Name: "Percona-XtraDB-Cluster-57", Version: c.version}})
		if (got != "") != c.refused {
			t.Errorf("%s: %q", c.version, got)
		}
	}

	spec, catalogue := testspec.Reference(t, filepath.Join(t.TempDir(), "cluster.yaml"), "centos7", "")
	c := &Config{Spec: spec, Catalogue: catalogue}
	for role, pin := range map[string]string{"percona": "Percona-XtraDB-Cluster-57 5.7.25-31.35.1.el7", "backend": "proxysql2 2.0.16-1.el7"} {
		in, err := c.inputs(t.Context(), role, distro.Base{}, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var p packages.Pin
		if err := p.UnmarshalText([]byte(pin + " x86_64 " + strings.Repeat("a", 64))); err != nil {
			t.Fatal(err)
		}
		l := &packages.Lock{Roles: map[string]*packages.Pins{role: {Requested: in.Requested(), Packages: []packages.Pin{p}}}}
		_, err = c.inputs(t.Context(), role, distro.Base{Pinned: []packages.Pin{p}}, "", l)
		if err == nil || !strings.Contains(err.Error(), "imagegen.lock pins "+pin+", which is too old: the role needs ") {
			t.Errorf("%s: %v", pin, err)
		}
	}
}

// TestDownloads: the spec changes the URL of a role's download, without modifying the catalogue.
func TestDownloads(t *testing.T) {
	spec, catalogue := testspec.Reference(t, "/spec/cluster.yaml", "centos7", "downloads: {wordpress: {url: https://mirror.example.com/w.tgz}}\n")
	backend := catalogue.Role("backend").Distros["centos7"]
	before := slices.Clone(backend.Downloads)
	if d := downloads(spec, backend); len(d) != 1 || d[0].URL != "https://mirror.example.com/w.tgz" || d[0].SHA256 != before[0].SHA256 || d[0].Path != before[0].Path {
		t.Errorf("downloads are %+v", d)
	}
	if !slices.Equal(backend.Downloads, before) {
		t.Error("the spec has changed the catalogue")
	}
}

package images

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/images/packages"
	"imagegen/internal/testkit"
	"imagegen/roles"
)

func referenceCentOS(t *testing.T, more string) (*cluster.Spec, *roles.Catalogue) {
	t.Helper()
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(cluster.Reference("centos7")), "\nroles:", "\n"+more+"\nroles:", 1)
	spec, err := cluster.Parse("/spec/cluster.yaml", []byte(text), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	return spec, catalogue
}

// TestCentOSRepos compares the repositories of all roles with a golden .repo file, and asks for what the spec can change.
func TestCentOSRepos(t *testing.T) {
	spec, catalogue := referenceCentOS(t, "")
	var repos []packages.Repo
	for _, role := range spec.Roles {
		for _, r := range centosRepos(spec, catalogue.Role(role.Name).Distros["centos7"]) {
			if i := slices.IndexFunc(repos, func(o packages.Repo) bool { return o.Name == r.Name }); i < 0 {
				repos = append(repos, r)
			} else if !reflect.DeepEqual(repos[i], r) {
				t.Errorf("%s is another %s than that of other roles", role.Name, r.Name)
			}
		}
	}
	all := packages.RepoFile(repos)
	testkit.Golden(t, filepath.Join("testdata", "centos7.repos"), []byte(all))

	spec, _ = referenceCentOS(t, `mirror: https://mirror.example.com/vault/
repos:
  updates: {urls: [https://mirror.example.com/u/]}
  epel: {exclude: [a, "b*"], priority: 5}
  remi: {urls: [https://mirror.example.com/remi/]}
  ours: {urls: ["file:///srv/ours"], keys: [https://mirror.example.com/KEY]}
downloads: {wordpress: {url: https://mirror.example.com/w.tgz}}
`)
	web := catalogue.Role("web").Distros["centos7"]
	got := packages.RepoFile(centosRepos(spec, web))
	for _, want := range []string{
		"[base]\nname=base\nbaseurl=https://mirror.example.com/vault/7.9.2009/os/$basearch/\n", "[updates]\nname=updates\nbaseurl=https://mirror.example.com/u/\n",
		"priority=5\nexclude=a b*\n", "[ours]\nname=ours\nbaseurl=file:///srv/ours\n", "gpgkey=https://mirror.example.com/KEY\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "remi") {
		t.Errorf("a repository of another role, changed in the spec, is one of this role's:\n%s", got)
	}
	backend := catalogue.Role("backend").Distros["centos7"]
	before := slices.Clone(backend.Downloads)
	if d := downloads(spec, backend); len(d) != 1 || d[0].URL != "https://mirror.example.com/w.tgz" || d[0].SHA256 != before[0].SHA256 || d[0].Path != before[0].Path {
		t.Errorf("downloads are %+v", d)
	}
	if !slices.Equal(backend.Downloads, before) {
		t.Error("the spec has changed the catalogue")
	}
}

// TestCentOSBase: an image is the same wherever its disk comes from.
func TestCentOSBase(t *testing.T) {
	in := func(more string) baseInputs {
		spec, catalogue := referenceCentOS(t, more)
		return (&Config{Spec: spec, Catalogue: catalogue}).centosInputs()
	}
	first := in("")
	same := in("base: {url: https://mirror.example.com/x, sha256: " + centosBase.SHA256 + "}")
	if first.identity() != same.identity() || same.url != "https://mirror.example.com/x" || same.file != "" {
		t.Errorf("%+v", same)
	}
	if other := in("base: {url: https://mirror.example.com/x, sha256: " + strings.Repeat("0", 64) + "}"); other.identity() == first.identity() {
		t.Error("another disk makes the same base")
	}
	pinned := first
	pinned.Pinned = []packages.Pin{{Name: "chrony"}}
	if pinned.identity() != first.identity() {
		t.Error("the disk is unpacked anew for other packages")
	}
	image := func(more string) string {
		spec, catalogue := referenceCentOS(t, more)
		in, err := (&Config{Spec: spec, Catalogue: catalogue}).inputs(t.Context(), "web", pinned, "", &packages.Lock{})
		if err != nil {
			t.Fatal(err)
		}
		return in.identity()
	}
	if image("") != image("mirror: https://mirror.example.com/vault") {
		t.Error("the same packages from another mirror make another image")
	}
	if in("selinux: enforcing").identity() != first.identity() {
		t.Error("SELinux is nothing to the base")
	}
}

// TestTooOldPackages: a package that a role cannot use is refused, whether the lock pins it or the repositories have nothing newer.
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

	dir := t.TempDir()
	catalogue, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse(filepath.Join(dir, "cluster.yaml"), cluster.Reference("centos7"), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{Spec: spec, Catalogue: catalogue}
	for role, pin := range map[string]string{"percona": "Percona-XtraDB-Cluster-57 5.7.25-31.35.1.el7", "backend": "proxysql2 2.0.16-1.el7"} {
		in, err := c.inputs(t.Context(), role, baseInputs{}, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var p packages.Pin
		if err := p.UnmarshalText([]byte(pin + " x86_64 " + strings.Repeat("a", 64))); err != nil {
			t.Fatal(err)
		}
		l := &packages.Lock{Roles: map[string]*packages.Pins{role: {Requested: in.requested(), Packages: []packages.Pin{p}}}}
		_, err = c.inputs(t.Context(), role, baseInputs{Pinned: []packages.Pin{p}}, "", l)
		if err == nil || !strings.Contains(err.Error(), "imagegen.lock pins "+pin+", which is too old: the role needs ") {
			t.Errorf("%s: %v", pin, err)
		}
	}
}

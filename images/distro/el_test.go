package distro

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"imagegen/images/packages"
	"imagegen/internal/testkit"
	"imagegen/internal/testspec"
)

// TestCentOSRepos compares the repositories of all roles with a golden .repo file, and checks changes by the spec.
func TestCentOSRepos(t *testing.T) {
	spec, catalogue := testspec.Reference(t, "/spec/cluster.yaml", "centos7", "")
	var repos []packages.Repo
	for _, role := range spec.Roles {
		for _, r := range elRepos(spec, catalogue.Role(role.Name).Distros["centos7"]) {
			if i := slices.IndexFunc(repos, func(o packages.Repo) bool { return o.Name == r.Name }); i < 0 {
				repos = append(repos, r)
			} else if !reflect.DeepEqual(repos[i], r) {
				t.Errorf("%s: repository %s differs from that of other roles", role.Name, r.Name)
			}
		}
	}
	all := packages.RepoFile(repos)
	testkit.Golden(t, filepath.Join("testdata", "centos7.repos"), []byte(all))

	spec, _ = testspec.Reference(t, "/spec/cluster.yaml", "centos7", `mirror: https://mirror.example.com/vault/
repos:
  updates: {urls: [https://mirror.example.com/u/]}
  epel: {exclude: [a, "b*"], priority: 5}
  remi: {urls: [https://mirror.example.com/remi/]}
  ours: {urls: ["file:///srv/ours"], keys: [https://mirror.example.com/KEY]}
downloads: {wordpress: {url: https://mirror.example.com/w.tgz}}
`)
	web := catalogue.Role("web").Distros["centos7"]
	got := packages.RepoFile(elRepos(spec, web))
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
}

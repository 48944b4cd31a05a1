package distro

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/roles"
)

// A package that the archive lacks is reported at the place in the role or the spec that names it.
func TestPackageThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	role := filepath.Join(dir, "roles/rb/role.yaml")
	if err := os.MkdirAll(filepath.Dir(role), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(role, []byte("description: x\ndistros:\n  debian12: {packages: [rabbitmq-server, nosuchpkg]}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	catalogue, err := roles.Load(filepath.Join(dir, "roles"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Parse("cluster.yaml", []byte("cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nroles:\n  rb:\n"+
		"    packages: [tcpdump, nosuchtool]\n    nodes: {rb1: 10.0.0.1}\n"), catalogue.Rules())
	if err != nil {
		t.Fatal(err)
	}
	c := Options{Spec: spec, Catalogue: catalogue}
	got := c.packageFaults("rb", errors.New("apt-get: exit status 100\nE: Unable to locate package nosuchpkg\nE: Package 'nosuchtool' has no installation candidate\nE: Unable to locate package of-the-base"))
	want := role + ":3:42: distros.debian12.packages[1]: the archive has no package nosuchpkg for debian12\n" +
		"cluster.yaml:6:25: roles.rb.packages[1]: the archive has no package nosuchtool for debian12"
	if got.Error() != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	got = c.absentFaults("step: find out\nno repository has nosuchpkg for rb\nno repository has nosuchtool for rb\r\nno repository has x for nobody\n")
	want = strings.ReplaceAll(want, "the archive has no package", "no repository has a package")
	if got.Error() != want {
		t.Errorf("yum: %s\nwant\n%s", got, want)
	}
	if got := c.packageFaults("rb", errors.New("E: Unmet dependencies")); got != nil {
		t.Errorf("a failure that is not the role's is reported as its: %s", got)
	}
}

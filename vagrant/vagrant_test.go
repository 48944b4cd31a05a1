package vagrant

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/roles"
)

var update = flag.Bool("update", false, "write the golden files anew")

func parse(t testing.TB, text string) *cluster.Spec {
	t.Helper()
	c, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	s, err := cluster.Parse("cluster.yaml", []byte(text), c.Rules())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// identities are of images that are only named.
func identities(s *cluster.Spec) map[string]string {
	ids := map[string]string{}
	for i, r := range s.Roles {
		ids[r.Name] = strings.Repeat(string("0123456789abcdef"[i]), 32)
	}
	return ids
}

func write(t testing.TB, s *cluster.Spec) []byte {
	t.Helper()
	got, err := Write(s, identities(s))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWrite(t *testing.T) {
	for _, distro := range cluster.Distros {
		t.Run(distro, func(t *testing.T) {
			got := write(t, parse(t, string(cluster.Reference(distro))))
			path := filepath.Join("testdata", distro+".Vagrantfile")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("the Vagrantfile differs from %s; go test ./vagrant -update shows how", path)
			}
		})
	}
}

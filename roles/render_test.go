package roles

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/secrets"
	"imagegen/distro"
	"imagegen/internal/testkit"
)

func mustLoad(t testing.TB, dir string) *Catalogue {
	t.Helper()
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reference is the reference cluster.
func reference(t testing.TB, c *Catalogue, distro string) *cluster.Spec {
	t.Helper()
	return parse(t, c, string(cluster.Reference(distro)))
}

func parse(t testing.TB, c *Catalogue, spec string) *cluster.Spec {
	t.Helper()
	s, err := cluster.Parse("cluster.yaml", []byte(spec), c.Rules())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testSecrets returns secrets derived from their names.
func testSecrets(c *Catalogue, s *cluster.Spec) *secrets.Secrets {
	sec := &secrets.Secrets{
		ClusterID: "7f1b9a5e-0c56-4c7e-8a52-3f6d3c1c8e11",
		Passwords: map[string]string{},
		Nodes:     map[string]secrets.KeyPair{},
		CA:        secrets.KeyPair{Cert: []byte("certificate of the CA\n")},
	}
	for _, n := range c.SecretNames(s) {
		h := fnv.New64a()
		h.Write([]byte(n))
		p := fmt.Sprintf("%016x", h.Sum64())
		if strings.HasSuffix(n, "_vrrp") {
			p = p[:8]
		}
		sec.Passwords[n] = p
	}
	for _, n := range s.Nodes() {
		sec.Nodes[n.Name] = secrets.KeyPair{Cert: []byte("certificate of " + n.Name + "\n"), Key: []byte("key of " + n.Name + "\n")}
	}
	return sec
}

// show formats a file as in the golden files.
func show(f RenderedFile) string {
	secret := ""
	if f.Secret {
		secret = " secret"
	}
	return fmt.Sprintf("==> %s %04o %s%s\n%s\n", f.Path, f.Mode, f.Owner, secret, f.Content)
}

// TestGolden compares everything that every node of the reference cluster gets.
func TestGolden(t *testing.T) {
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		s := reference(t, c, distro)
		sec := testSecrets(c, s)
		for _, n := range s.Nodes() {
			t.Run(distro+"/"+n.Name, func(t *testing.T) {
				r, err := c.Render(s, sec, n.Name)
				if err != nil {
					t.Fatal(err)
				}
				var b strings.Builder
				for _, f := range r.Files {
					if !strings.HasPrefix(f.Path, facts.PKIDir) && f.Path != "/etc/hosts" {
						b.WriteString(show(f))
					}
				}
				testkit.Golden(t, filepath.Join("testdata", "golden", distro, n.Name+".txt"), []byte(b.String()))
			})
		}
	}
}

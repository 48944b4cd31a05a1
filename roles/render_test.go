package roles

import (
	"flag"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustLoad(t testing.TB, dir string) *Catalogue {
	t.Helper()
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reference is the reference cluster.
func reference(c *Catalogue, distro string) *cluster.Spec {
	sql := map[string]string{"debian12": "balancer", "centos7": "proxysql"}[distro]
	s := &cluster.Spec{
		File: "cluster.yaml", Cluster: "otus", Distro: distro, Timezone: "Europe/Moscow", SQL: sql,
		Network: cluster.Network{CIDR: netip.MustParsePrefix("192.168.10.0/24")},
		Site:    cluster.Site{Title: "A site that stays", AdminUser: "admin", AdminEmail: "admin@example.org"},
	}
	for _, r := range []struct {
		name, vip string
		nodes     string
	}{
		{"balancer", "192.168.10.39", "balancer1=40 balancer2=41"},
		{"web", "", "web1=42 web2=43"},
		{"glusterfs", "", "glusterfs1=44 glusterfs2=45 glusterfs3=46"},
		{"backend", "", "backend1=47 backend2=48"},
		{"databalancer", "192.168.10.53", "balancer3=52 balancer4=54"},
		{"redis", "", "redis1=49 redis2=50 redis3=51"},
		{"percona", "", "percona1=55 percona2=56 percona3=57"},
	} {
		addRole(c, s, r.name, r.vip, r.nodes)
	}
	return s
}

// addRole adds a role with its defaults; nodes are NAME=LAST_BYTE.
func addRole(c *Catalogue, s *cluster.Spec, name, vip, nodes string) {
	rules := c.Rules()[name]
	r := cluster.Role{Name: name, CPUs: rules.CPUs, Memory: rules.Memory, Disk: rules.Disk, Data: rules.Data, Options: map[string]string{}}
	if vip != "" {
		r.VIP, r.VRRPID = netip.MustParseAddr(vip), rules.VRRPID
	}
	for o, v := range rules.Options {
		r.Options[o] = v.Default
	}
	for i, n := range strings.Fields(nodes) {
		node, last, _ := strings.Cut(n, "=")
		r.Nodes = append(r.Nodes, cluster.Node{Name: node, Role: name, IP: netip.MustParseAddr("192.168.10." + last), Index: i})
	}
	s.Roles = append(s.Roles, r)
}

// testSecrets are made from their names.
func testSecrets(c *Catalogue, s *cluster.Spec) *cluster.Secrets {
	sec := &cluster.Secrets{
		ClusterID: "7f1b9a5e-0c56-4c7e-8a52-3f6d3c1c8e11",
		Passwords: map[string]string{},
		Nodes:     map[string]cluster.KeyPair{},
		CA:        cluster.KeyPair{Cert: []byte("certificate of the CA\n")},
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
		sec.Nodes[n.Name] = cluster.KeyPair{Cert: []byte("certificate of " + n.Name + "\n"), Key: []byte("key of " + n.Name + "\n")}
	}
	return sec
}

// show prints a file as the golden files have it.
func show(f RenderedFile) string {
	secret := ""
	if f.Secret {
		secret = " secret"
	}
	return fmt.Sprintf("==> %s %04o %s%s\n%s\n", f.Path, f.Mode, f.Owner, secret, f.Content)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s:%d: got\n%s\nwant\n%s\n(go test ./roles -update writes the golden files anew)", path, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s: got %d lines, want %d", path, len(g), len(w))
}

// TestGolden compares everything that every node of the reference cluster gets.
func TestGolden(t *testing.T) {
	c := mustLoad(t, "")
	for _, distro := range cluster.Distros {
		s := reference(c, distro)
		sec := testSecrets(c, s)
		for _, n := range s.Nodes() {
			if distro == "centos7" && n.Index > 0 {
				continue
			}
			t.Run(distro+"/"+n.Name, func(t *testing.T) {
				r, err := c.Render(s, sec, n.Name)
				if err != nil {
					t.Fatal(err)
				}
				var b strings.Builder
				for _, f := range r.Files {
					if !strings.HasPrefix(f.Path, cluster.PKIDir) && f.Path != "/etc/hosts" {
						b.WriteString(show(f))
					}
				}
				golden(t, filepath.Join("golden", distro, n.Name+".txt"), b.String())
			})
		}
	}
}

package roles

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/distro"
)

// content returns a rendered file of a node.
func content(t *testing.T, c *Catalogue, s *cluster.Spec, node, path string) string {
	t.Helper()
	r, err := c.Render(s, testSecrets(c, s), node)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Files {
		if f.Path == path {
			return string(f.Content)
		}
	}
	t.Fatalf("%s has no %s", node, path)
	return ""
}

// TestRolesShareImages: roles with the same bake inputs share an image.
func TestRolesShareImages(t *testing.T) {
	c := mustLoad(t, "")
	shares := func(distro, one, other string) {
		a, b := c.Role(one).Distros[distro], c.Role(other).Distros[distro]
		a.Vars, b.Vars = nil, nil // not part of an image
		if len(a.Packages) == 0 || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: %+v and %+v", distro, a, b)
		}
	}
	for _, d := range distro.Names() {
		shares(d, "balancer", "databalancer")
	}
	shares("debian12", "web", "backend")
}

// TestPartialClusters renders clusters that are parts of the reference cluster.
func TestPartialClusters(t *testing.T) {
	c := mustLoad(t, "")
	const head = "cluster: part\ndistro: debian12\nnetwork: {cidr: 10.1.0.0/16}\n"
	redis := "  redis: {nodes: {r1: 10.1.0.1, r2: 10.1.0.2, r3: 10.1.0.3}}\n"
	gluster := "  glusterfs: {nodes: {g1: 10.1.0.4, g2: 10.1.0.5, g3: 10.1.0.6}}\n"
	percona := "  percona: {nodes: {p1: 10.1.0.7, p2: 10.1.0.8, p3: 10.1.0.9}}\n"
	web := "  web: {nodes: {w1: 10.1.0.10}}\n"
	for name, roles := range map[string]string{
		"redis alone":         redis,
		"glusterfs alone":     gluster,
		"percona alone":       percona,
		"static site":         gluster + web,
		"one balancer":        gluster + web + "  balancer: {vip: 10.1.1.1, nodes: {b1: 10.1.0.11}}\n",
		"data balancer alone": "  databalancer: {vip: 10.1.1.2, nodes: {d1: 10.1.0.12, d2: 10.1.0.13}}\n",
		"no Redis":            gluster + percona + "  databalancer: {vip: 10.1.1.2, nodes: {d1: 10.1.0.12}}\n  backend: {nodes: {k1: 10.1.0.14}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := parse(t, c, head+"roles:\n"+roles)
			for _, n := range s.Nodes() {
				r, err := c.Render(s, testSecrets(c, s), n.Name)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range r.Files {
					if f.Path == "/etc/keepalived/keepalived.conf" && regexp.MustCompile(`unicast_peer \{\s*\}`).Match(f.Content) {
						t.Errorf("%s: an empty peer list:\n%s", n.Name, f.Content)
					}
					if f.Path == "/etc/nginx/nginx.conf" && strings.Contains(string(f.Content), "upstream") {
						t.Errorf("%s: backends that are not there:\n%s", n.Name, f.Content)
					}
					if strings.HasSuffix(f.Path, "/www.conf") && strings.Contains(string(f.Content), "session") {
						t.Errorf("%s: sessions in a Redis that is not there:\n%s", n.Name, f.Content)
					}
				}
			}
		})
	}
	// WordPress needs a way to its database.
	s := parse(t, c, head+"sql: balancer\nroles:\n"+gluster+percona+"  backend: {nodes: {k1: 10.1.0.14}}\n")
	if _, err := c.Render(s, testSecrets(c, s), "k1"); err == nil || !strings.Contains(err.Error(), "sql: balancer needs the role databalancer") {
		t.Errorf("got %v", err)
	}
	s = parse(t, c, strings.Replace(head, "debian12", "centos7", 1)+"sql: proxysql\nroles:\n"+gluster+percona+"  backend: {nodes: {k1: 10.1.0.14}}\n")
	if conf := content(t, c, s, "k1", "/usr/share/wordpress/wp-config.php"); !strings.Contains(conf, "'127.0.0.1:6033'") {
		t.Error(conf)
	}
}

// TestBalancersKnowEachOther: openshift's baremetal-runtimecfg 136 had two holders of one address, because each
// balancer derived its list of peers from what it had seen so far, which was empty. Here the seed has the list: all
// others, and not itself.
func TestBalancersKnowEachOther(t *testing.T) {
	c := mustLoad(t, "")
	for count := 2; count <= 4; count++ {
		var nodes []string
		for i := range count {
			nodes = append(nodes, fmt.Sprintf("d%d: 10.1.0.%d", i+1, 12+i))
		}
		s := parse(t, c, "cluster: part\ndistro: debian12\nnetwork: {cidr: 10.1.0.0/16}\nroles:\n  databalancer: {vip: 10.1.1.2, nodes: {"+strings.Join(nodes, ", ")+"}}\n")
		priorities := map[string]bool{}
		for _, n := range s.Nodes() {
			conf := content(t, c, s, n.Name, "/etc/keepalived/keepalived.conf")
			block := regexp.MustCompile(`unicast_peer \{([^}]*)\}`).FindStringSubmatch(conf)
			if block == nil {
				t.Fatalf("%s of %d: no list of peers:\n%s", n.Name, count, conf)
			}
			var want []string
			for _, other := range s.Nodes() {
				if other.Name != n.Name {
					want = append(want, other.IP.String())
				}
			}
			if got := strings.Fields(block[1]); !slices.Equal(got, want) {
				t.Errorf("%s of %d: peers %v, want %v", n.Name, count, got, want)
			}
			priorities[regexp.MustCompile(`(?m)^ +priority \d+`).FindString(conf)] = true
		}
		if len(priorities) != count {
			t.Errorf("%d balancers have the priorities %v", count, priorities)
		}
	}
}

// TestSettings checks settings from the spec and of the reference cluster, as a node sees them.
func TestSettings(t *testing.T) {
	c := mustLoad(t, "")
	text := string(cluster.Reference("debian12"))
	text = strings.Replace(text, "  glusterfs:\n", "  glusterfs:\n    options: {quorum: fixed}\n", 1)
	text = strings.Replace(text, "  # url: https://www.example.com", "  url: https://www.example.com", 1)
	text = strings.Replace(text, "  backend:\n", "  backend:\n    options: {children: '2'}\n", 1)
	s := parse(t, c, text)
	conf := content(t, c, s, "backend1", "/usr/share/wordpress/wp-config.php")
	for _, want := range []string{"define( 'WP_HOME', 'https://www.example.com' );", "$_SERVER['HTTPS'] = 'on'"} {
		if !strings.Contains(conf, want) {
			t.Errorf("no %s in\n%s", want, conf)
		}
	}
	if pool := content(t, c, s, "backend2", "/etc/php/8.2/fpm/pool.d/www.conf"); !strings.Contains(pool, "pm.max_children = 2\n") {
		t.Error(pool)
	}
	r, err := c.Render(s, testSecrets(c, s), "glusterfs2")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"network.ping-timeout": "2", "performance.least-prio-threads": "8", "performance.quick-read": "on", "performance.quick-read-cache-invalidation": "on", "nfs.disable": "on", "cluster.shd-max-threads": "8",
		"features.cache-invalidation": "on", "features.cache-invalidation-timeout": "600",
		"performance.cache-invalidation": "on", "performance.md-cache-timeout": "10",
		"cluster.quorum-type": "fixed", "cluster.quorum-count": "1", "cluster.server-quorum-type": "none",
	}
	if got := params[facts.GlusterParams](t, r, "gluster").Options; !reflect.DeepEqual(got, want) {
		t.Errorf("fixed quorum: %v", got)
	}
	s = reference(t, c, "debian12")
	if r, err = c.Render(s, testSecrets(c, s), "glusterfs2"); err != nil {
		t.Fatal(err)
	}
	delete(want, "cluster.quorum-count")
	want["cluster.quorum-type"], want["cluster.server-quorum-type"] = "auto", "server"
	if got := params[facts.GlusterParams](t, r, "gluster").Options; !reflect.DeepEqual(got, want) {
		t.Errorf("automatic quorum: %v", got)
	}
	if r, err = c.Render(s, testSecrets(c, s), "redis3"); err != nil {
		t.Fatal(err)
	}
	p := params[facts.SentinelParams](t, r, "sentinel")
	if p.Quorum != 2 || p.DownAfter != 1500 || p.FailoverTimeout != 15000 || p.ParallelSyncs != 1 {
		t.Errorf("sentinel: %+v", p)
	}
}

// TestSecretsStayWhereTheyBelong: each secret is only in files marked secret, not world-readable, and only on nodes
// that use it.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	c := mustLoad(t, "")
	for _, distro := range distro.Names() {
		s := reference(t, c, distro)
		sec := testSecrets(c, s)
		for _, n := range s.Nodes() {
			r, err := c.Render(s, sec, n.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Files {
				for name, p := range sec.Passwords {
					if !strings.Contains(string(f.Content), p) {
						continue
					}
					if !f.Secret || f.Mode&0o007 != 0 {
						t.Errorf("%s: %s holds %s: secret %v, mode %o", n.Name, f.Path, name, f.Secret, f.Mode)
					}
					if !slices.Contains(c.Role(n.Role).Secrets, name) {
						t.Errorf("%s: %s holds %s, which is not its role's", n.Name, f.Path, name)
					}
				}
				if strings.Contains(string(f.Content), "key of ") && (!strings.HasSuffix(f.Path, ".key") || f.Mode&0o007 != 0 || !f.Secret) {
					t.Errorf("%s: a private key in %s", n.Name, f.Path)
				}
			}
			again, err := mustLoad(t, "").Render(s, sec, n.Name)
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%s: rendered twice, two results (%v)", n.Name, err)
			}
		}
	}
}

// A role can distinguish clusters of the same name, in its files and in the agent's parameters.
func TestClusterID(t *testing.T) {
	c := mustLoad(t, folder(t, map[string]string{
		"tool/role.yaml": "description: a tool\ndistros: {debian12: {packages: [tree]}}\nfiles: [{path: /etc/tool, template: tool}]\n" +
			"components: [{name: tool, kind: service, params: {unit: tool.service, check: {exec: [tool, '{{clusterID}}']}}}]\n",
		"tool/tool": "token {{clusterID}}\n",
	}))
	s := parse(t, c, "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.1.0.0/16}\nroles:\n  tool: {nodes: {tool1: 10.1.0.1}}\n")
	sec := testSecrets(c, s)
	r, err := c.Render(s, sec, "tool1")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Files, func(f RenderedFile) bool { return f.Path == "/etc/tool" })
	if i < 0 || string(r.Files[i].Content) != "token "+sec.ClusterID+"\n" {
		t.Errorf("the file is not the cluster's: %v", r.Files)
	}
	if last := r.Facts.Components[len(r.Facts.Components)-1]; !strings.Contains(string(last.Params), sec.ClusterID) {
		t.Errorf("the parameters are not the cluster's: %s", last.Params)
	}
}

// BenchmarkRender renders all nodes of a cluster of a thousand; ns/op is for the whole cluster.
func BenchmarkRender(b *testing.B) {
	c := mustLoad(b, "")
	s := reference(b, c, "debian12")
	web := s.Role("web")
	web.Nodes = nil
	addr := netip.MustParseAddr("10.0.0.1")
	for i := range 1000 - 15 {
		web.Nodes = append(web.Nodes, cluster.Node{Name: fmt.Sprint("web", i+1), Role: "web", IP: addr, Index: i})
		addr = addr.Next()
	}
	sec := testSecrets(c, s)
	nodes := s.Nodes()
	if len(nodes) != 1000 {
		b.Fatal(len(nodes))
	}
	for b.Loop() {
		for _, n := range nodes {
			if _, err := c.Render(s, sec, n.Name); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A tier's port is open to the tier that uses it, or to the network if the cluster has no such tier.
func TestWhoMayReachAPort(t *testing.T) {
	c := mustLoad(t, "")
	const head = "cluster: part\ndistro: debian12\nnetwork: {cidr: 10.1.0.0/16}\nroles:\n  redis: {nodes: {r1: 10.1.0.1, r2: 10.1.0.2, r3: 10.1.0.3}}\n"
	for spec, want := range map[string]string{
		head: "ip saddr 10.1.0.0/16 tcp dport 6379 accept",
		head + "  databalancer: {vip: 10.1.1.2, nodes: {d1: 10.1.0.12}}\n": "ip saddr { 10.1.0.1, 10.1.0.2, 10.1.0.3, 10.1.0.12 } tcp dport 6379 accept",
	} {
		s := parse(t, c, spec)
		r, err := c.Render(s, testSecrets(c, s), "r1")
		if err != nil {
			t.Fatal(err)
		}
		rules := ""
		for _, f := range r.Files {
			if f.Path == "/etc/nftables.conf" {
				rules = string(f.Content)
			}
		}
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
}

// If a role cannot work without something, the error is the role's own message.
func TestRoleRefusesASpec(t *testing.T) {
	c := mustLoad(t, "")
	s := parse(t, c, "cluster: part\ndistro: debian12\nsql: balancer\nnetwork: {cidr: 10.1.0.0/16}\nroles:\n"+
		"  glusterfs: {nodes: {g1: 10.1.0.4, g2: 10.1.0.5, g3: 10.1.0.6}}\n  percona: {nodes: {p1: 10.1.0.7, p2: 10.1.0.8, p3: 10.1.0.9}}\n  backend: {nodes: {k1: 10.1.0.14}}\n")
	_, err := c.Render(s, testSecrets(c, s), "k1")
	if want := ": sql: balancer needs the role databalancer; add it, or say sql: proxysql"; err == nil || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), "executing") {
		t.Errorf("%v", err)
	}
}

// TestFixedSettings: what keepalived.conf says is fixed is what it contains, and all that two nodes of a role must agree on. If
// another such setting comes, it must be fixed as well.
func TestFixedSettings(t *testing.T) {
	c := mustLoad(t, "")
	for _, d := range distro.Names() {
		s := reference(t, c, d)
		for _, node := range []string{"balancer1", "balancer3"} {
			r, err := c.Render(s, testSecrets(c, s), node)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Files {
				if f.Path != "/etc/keepalived/keepalived.conf" {
					continue
				}
				agreed := 0
				for line := range strings.Lines(string(f.Content)) {
					words := strings.Fields(line)
					if len(words) == 0 {
						continue
					}
					switch words[0] {
					case "virtual_router_id", "advert_int", "auth_type", "version", "vrrp_version", "use_vmac", "vmac_xmit_base":
					default:
						if !strings.Contains(words[0], "/") || words[0][0] == '"' {
							continue // not an address
						}
					}
					agreed++
					if !strings.Contains(f.Fixed, strings.Join(words, " ")) {
						t.Errorf("%s %s: %q is not fixed: %s", d, node, strings.Join(words, " "), f.Fixed)
					}
				}
				if agreed != len(strings.Split(f.Fixed, ", ")) {
					t.Errorf("%s %s: %d settings of %s are in the file", d, node, agreed, f.Fixed)
				}
			}
		}
	}
}

// TestAddressMovesInTime: what the settings promise, three adverts and the skew, is within the goals in docs/faults.md.
func TestAddressMovesInTime(t *testing.T) {
	c := mustLoad(t, "")
	number := func(conf, key string) float64 {
		m := regexp.MustCompile(`(?m)^ +` + key + ` ([\d.]+)$`).FindStringSubmatch(conf)
		if m == nil {
			t.Fatalf("no %s in\n%s", key, conf)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for d, limit := range map[string]float64{"debian12": 0.7, "centos7": 3.1} {
		s := reference(t, c, d)
		for _, standby := range []string{"balancer2", "balancer4"} {
			conf := content(t, c, s, standby, "/etc/keepalived/keepalived.conf")
			advert, priority := number(conf, "advert_int"), number(conf, "priority")
			if down := 3*advert + (256-priority)/256*advert; down > limit {
				t.Errorf("%s %s takes the address after %.2f s", d, standby, down)
			}
			// Version 2 carries the interval in whole seconds.
			if strings.Contains(conf, " version 3\n") == (advert == math.Trunc(advert)) {
				t.Errorf("%s %s: adverts each %v s, in this version:\n%s", d, standby, advert, conf)
			}
			if strings.Contains(conf, " version 3\n") && strings.Contains(conf, "auth") {
				t.Errorf("%s %s: VRRP 3 has no password:\n%s", d, standby, conf)
			}
		}
	}
}

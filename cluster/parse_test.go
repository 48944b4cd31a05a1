package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagegen/distro"
	"imagegen/internal/testkit"
)

// testRules resemble the rules of the reference cluster's seven roles.
func testRules() map[string]Rules {
	role := func(name string, r Rules) Rules {
		r.Name, r.CPUs, r.Disk, r.MinNodes = name, 2, 4*GiB, max(1, r.MinNodes)
		if r.Memory == 0 {
			r.Memory = 256 * MiB
		}
		if r.VIP == "" {
			r.VIP = VIPNone
		}
		if r.Distros == nil {
			r.Distros = []string{"centos7", "debian12"}
		}
		return r
	}
	rules := map[string]Rules{}
	for name, r := range map[string]Rules{
		"balancer":     {VIP: VIPRequired, VRRPID: 51, Needs: []string{"web"}, TLS: true},
		"web":          {Needs: []string{"glusterfs"}, Repos: map[string][]string{"centos7": {"epel", "gluster"}}, Downloads: map[string][]string{"centos7": {"wordpress"}}},
		"glusterfs":    {Quorum: true, Data: 10 * GiB, Options: map[string]Option{"quorum": {Default: "auto", OneOf: []string{"auto", "fixed"}, Help: "who decides"}}},
		"backend":      {Needs: []string{"glusterfs", "percona"}, Options: map[string]Option{"children": {Default: "10", Pattern: "[1-9][0-9]{0,2}", Help: "PHP processes at most"}}},
		"databalancer": {VIP: VIPRequired, VRRPID: 52, MaxNodes: 4},
		"redis":        {Quorum: true, Data: 2 * GiB},
		"percona":      {Quorum: true, Memory: 512 * MiB, Data: 10 * GiB},
		// For rules that none of the seven has.
		"gateway": {VIP: VIPOptional, MinNodes: 2, Distros: []string{"debian12"}},
	} {
		rules[name] = role(name, r)
	}
	return rules
}

func TestReference(t *testing.T) {
	for _, distro := range distro.Names() {
		spec, err := Parse("cluster.yaml", Reference(distro), testRules())
		if err != nil {
			t.Fatalf("%s: %v", distro, err)
		}
		checkSpec(t, spec, testRules())
		var got strings.Builder
		fmt.Fprintf(&got, "%s %s %s %s sql=%s\n", spec.Cluster, spec.Distro, spec.Timezone, spec.Network.CIDR, spec.SQL)
		for _, r := range spec.Roles {
			fmt.Fprintf(&got, "%s cpus=%d memory=%s disk=%s data=%s", r.Name, r.CPUs, r.Memory, r.Disk, r.Data)
			if r.VIP.IsValid() {
				fmt.Fprintf(&got, " vip=%s vrrp_id=%d", r.VIP, r.VRRPID)
			}
			got.WriteByte('\n')
			for _, n := range r.Nodes {
				fmt.Fprintf(&got, "  %d %s %s %s\n", n.Index, n.Name, n.IP, n.MAC)
			}
		}
		testkit.Golden(t, filepath.Join("testdata", "reference-"+distro+".txt"), []byte(got.String()))
	}
}

// TestGood: every spec in testdata/good is valid.
func TestGood(t *testing.T) {
	for _, path := range glob(t, "testdata/good/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			spec, err := Load(path, testRules())
			if err != nil {
				t.Fatal(err)
			}
			checkSpec(t, spec, testRules())
		})
	}
}

// TestBroken: every spec in testdata/broken has exactly the errors in the golden file beside it.
func TestBroken(t *testing.T) {
	paths := glob(t, "testdata/broken/*.yaml")
	if len(paths) < 40 {
		t.Fatalf("only %d broken specs", len(paths))
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// Relative paths in a spec are relative to its folder; messages contain only the file's name.
			t.Chdir(filepath.Dir(path))
			spec, err := Parse("cluster.yaml", data, testRules())
			var problems Problems
			if spec != nil || !errors.As(err, &problems) {
				t.Fatalf("is taken for a good spec (error %v)", err)
			}
			checkProblems(t, problems, data)
			testkit.Golden(t, strings.TrimSuffix(filepath.Base(path), ".yaml")+".txt", []byte(err.Error()+"\n"))
		})
	}
}

func TestTooLarge(t *testing.T) {
	_, err := Parse("cluster.yaml", bytes.Repeat([]byte("# nothing\n"), 200_000), testRules())
	if want := "cluster.yaml:1:1: the file is too large; a spec has 1MiB at most"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestLoadSaysWhatToDoWithoutASpec(t *testing.T) {
	_, err := Load("testdata/none.yaml", testRules())
	if want := "read the spec: there is no testdata/none.yaml; imagegen init writes an example"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestDefaults(t *testing.T) {
	spec := parse(t, "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nroles: {redis: {nodes: {a: 10.0.0.1, b: 10.0.0.2, c3: 10.0.0.3}}}\n")
	if spec.Timezone != "UTC" || spec.SQL != "balancer" || spec.SSH.User != "admin" || spec.Mirror != "" ||
		spec.Site != (Site{Title: "c", AdminUser: "admin", AdminEmail: "admin@example.com"}) {
		t.Errorf("defaults are %+v", spec)
	}
	if r := spec.Role("redis"); r.Data != 2*GiB || r.Memory != 256*MiB || r.CPUs != 2 || r.Disk != 4*GiB {
		t.Errorf("defaults of the role are %+v", r)
	}
	if spec.Role("web") != nil {
		t.Error("there is a role that the spec does not have")
	}
}

// TestMAC: a node's MAC address depends only on its cluster's and its own name, not on other nodes or its IP address.
func TestMAC(t *testing.T) {
	const text = "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nroles: {databalancer: {vip: 10.0.0.9, nodes: {%s}}}\n"
	one, _ := parse(t, fmt.Sprintf(text, "a: 10.0.0.1")).Node("a")
	two, _ := parse(t, fmt.Sprintf(text, "b: 10.0.0.1, a: 10.0.0.7")).Node("a")
	if one.MAC != two.MAC || !strings.HasPrefix(one.MAC, "02:") {
		t.Errorf("MACs %s and %s", one.MAC, two.MAC)
	}
	given, _ := parse(t, fmt.Sprintf(text, "a: {ip: 10.0.0.1, mac: 52-54-00-AA-BB-CC}")).Node("a")
	if given.MAC != "52:54:00:aa:bb:cc" {
		t.Errorf("MAC %s", given.MAC)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Bytes{"1KiB": KiB, "512MiB": 512 * MiB, "10GiB": 10 * GiB, "2TiB": 2 * TiB} {
		got, err := ParseBytes(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s is %d (%s), %v", text, got, got, err)
		}
	}
	var got strings.Builder
	for _, text := range []string{"", "512", "512MB", "512M", "512m", "512mib", "512 MiB", "1.5GiB", "-1GiB", "0MiB", "010GiB",
		"9999999TiB", "99999999999999999999MiB", "10Gib/s", "10PiB", "GiB", "10 goats"} {
		if n, err := ParseBytes(text); err == nil {
			t.Errorf("%q is taken for %d", text, n)
		} else {
			fmt.Fprintf(&got, "%v\n", err)
		}
	}
	testkit.Golden(t, "testdata/sizes.txt", []byte(got.String()))
}

// TestManyNodes: checking must not be quadratic in the number of nodes.
func TestManyNodes(t *testing.T) {
	text := manyNodes(1000)
	before := testkit.ProcessorTime(t)
	if got := len(parse(t, text).Nodes()); got != 1000 {
		t.Errorf("%d nodes", got)
	}
	if used := testkit.ProcessorTime(t) - before; used > 2*time.Second { // normally some 10 ms
		t.Errorf("took %s of processor time", used)
	}
}

func BenchmarkParse1000Nodes(b *testing.B) {
	text, rules := []byte(manyNodes(1000)), testRules()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse("cluster.yaml", text, rules); err != nil {
			b.Fatal(err)
		}
	}
}

func manyNodes(n int) string {
	var s strings.Builder
	s.WriteString("cluster: big\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/16}\nroles:\n  redis: {nodes: {r1: 10.0.255.1, r2: 10.0.255.2, r3: 10.0.255.3}}\n" +
		"  glusterfs: {nodes: {g1: 10.0.255.4, g2: 10.0.255.5, g3: 10.0.255.6}}\n  web:\n    nodes:\n")
	for i := range n - 6 {
		fmt.Fprintf(&s, "      web%d: 10.0.%d.%d\n", i+1, 1+i/250, 1+i%250)
	}
	return s.String()
}

// FuzzParse: for any input, the parser returns errors with positions or a valid spec.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/broken/*.yaml", "testdata/good/*.yaml"} {
		for _, path := range glob(f, pattern) {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add(Reference("debian12"))
	rules := testRules()
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := Parse("cluster.yaml", data, rules)
		if err == nil {
			checkSpec(t, spec, rules)
			return
		}
		var problems Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("error without problems: %v", err)
		}
		checkProblems(t, problems, data)
	})
}

// checkProblems checks rules that hold for all error messages.
func checkProblems(t *testing.T, problems Problems, data []byte) {
	t.Helper()
	for i, p := range problems {
		if p.Line < 1 || p.Col < 1 || p.File == "" || p.Msg == "" {
			t.Errorf("no position or message: %+v", p)
		}
		if i > 0 && (problems[i-1].Line > p.Line || problems[i-1].Line == p.Line && problems[i-1].Col > p.Col) {
			t.Errorf("out of order: %s", p)
		}
		if slices.Contains(problems[:i], p) {
			t.Errorf("said twice: %s", p)
		}
		if strings.ContainsFunc(p.String(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("not one line of text: %q", p)
		}
		if len(p.Msg) > 600 {
			t.Errorf("%d characters: %s", len(p.Msg), p)
		}
		for _, word := range []string{"cluster.Spec", "unmarshal", "netip", "struct", "map[", "%!", "<nil>", "strconv", "ParseAddr"} {
			if strings.Contains(p.Msg, word) && !bytes.Contains(data, []byte(word)) {
				t.Errorf("%q is for programmers: %s", word, p)
			}
		}
	}
}

// checkSpec checks everything that other packages rely on.
func checkSpec(t *testing.T, s *Spec, rules map[string]Rules) {
	t.Helper()
	fail := func(format string, args ...any) { t.Helper(); t.Errorf(format, args...) }
	if len(s.Cluster) > 32 || !label.MatchString(s.Cluster) || !slices.Contains(distro.Names(), s.Distro) || !s.Network.CIDR.Addr().Is4() {
		fail("spec %+v", s)
	}
	if _, err := time.LoadLocation(s.Timezone); err != nil || s.Timezone == "" || s.Timezone == "Local" {
		fail("time zone %q", s.Timezone)
	}
	if s.SQL != "balancer" && (s.SQL != "proxysql" || s.Distro == "debian12") {
		fail("sql %q on %s", s.SQL, s.Distro)
	}
	if s.Site.Title == "" || s.Site.AdminUser == "" || s.Site.AdminEmail == "" || strings.HasSuffix(s.Site.URL, "/") {
		fail("site %+v", s.Site)
	}
	if s.SSH.User == "" || s.SSH.User == "root" {
		fail("ssh %+v", s.SSH)
	}
	if len(s.Roles) == 0 {
		fail("no roles")
	}
	unique := map[string]bool{}
	only := func(kind, v string) {
		t.Helper()
		if unique[kind+v] {
			fail("%s %s is there twice", kind, v)
		}
		unique[kind+v] = true
	}
	if g := s.Network.Gateway; g.IsValid() {
		only("address", g.String())
	}
	for _, r := range s.Roles {
		only("role", r.Name)
		rule, ok := rules[r.Name]
		if !ok || !slices.Contains(rule.Distros, s.Distro) {
			fail("role %s on %s", r.Name, s.Distro)
		}
		if r.VIP.IsValid() {
			only("address", r.VIP.String())
			only("vrrp id", fmt.Sprint(r.VRRPID))
			if r.VRRPID < 1 || r.VRRPID > 255 || rule.VIP == VIPNone {
				fail("role %s: VRRP id %d", r.Name, r.VRRPID)
			}
		} else if rule.VIP == VIPRequired || r.VRRPID != 0 {
			fail("role %s has no VIP, VRRP id %d", r.Name, r.VRRPID)
		}
		if r.CPUs < 1 || r.Memory < 64*MiB || r.Disk < GiB || (r.Data == 0) != (rule.Data == 0) {
			fail("role %s: %+v", r.Name, r)
		}
		if n := len(r.Nodes); n < rule.MinNodes || rule.MaxNodes > 0 && n > rule.MaxNodes || rule.Quorum && (n < 3 || n%2 == 0) {
			fail("role %s has %d nodes", r.Name, n)
		}
		if len(r.Options) != len(rule.Options) {
			fail("role %s: options %v", r.Name, r.Options)
		}
		for _, need := range rule.Needs {
			if s.Role(need) == nil {
				fail("role %s without %s", r.Name, need)
			}
		}
		for i, n := range r.Nodes {
			only("node", n.Name)
			only("address", n.IP.String())
			only("mac", n.MAC)
			if n.Index != i || n.Role != r.Name || !s.Network.CIDR.Contains(n.IP) || len(n.MAC) != 17 || n.MAC != strings.ToLower(n.MAC) {
				fail("node %+v", n)
			}
			if len(n.Name) > 63 || !label.MatchString(n.Name) || n.Name == s.Cluster {
				fail("node %s", n.Name)
			}
			if got, ok := s.Node(n.Name); !ok || got != n {
				fail("node %s is not found", n.Name)
			}
		}
	}
}

func parse(t *testing.T, text string) *Spec {
	t.Helper()
	spec, err := Parse("cluster.yaml", []byte(text), testRules())
	if err != nil {
		t.Fatal(err)
	}
	checkSpec(t, spec, testRules())
	return spec
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return paths
}

// TestSelfSignedHosts: a self-signed certificate is for the host in the visitor's address bar and for what the balancers answer at.
func TestSelfSignedHosts(t *testing.T) {
	const spec = "cluster: c\ndistro: debian12\nnetwork: {cidr: 10.0.0.0/24}\nsite: {SITE}\nroles:\n  balancer: {vip: 10.0.0.9, nodes: {b: 10.0.0.1}}\n" +
		"  databalancer: {vip: 10.0.0.8, nodes: {d: 10.0.0.7}}\n  web: {nodes: {w: 10.0.0.2}}\n  glusterfs: {nodes: {g1: 10.0.0.3, g2: 10.0.0.4, g3: 10.0.0.5}}\n"
	for site, want := range map[string]string{
		"tls: self-signed": "10.0.0.9 localhost 127.0.0.1",
		"tls: self-signed, url: 'https://www.example.com:8443'": "www.example.com 10.0.0.9 localhost 127.0.0.1",
	} {
		s := parse(t, strings.Replace(spec, "SITE", site, 1))
		if got := strings.Join(s.Site.TLS.Hosts, " "); !s.Site.TLS.SelfSigned || got != want {
			t.Errorf("%s: %s, want %s", site, got, want)
		}
	}
}

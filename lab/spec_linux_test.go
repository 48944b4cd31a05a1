package lab

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagegen/cloudinit"
	"imagegen/cluster"
	"imagegen/cluster/secrets"
	"imagegen/internal/cgroup"
	"imagegen/internal/testkit"
	"imagegen/machines"
	"imagegen/machines/fleet"
	"imagegen/operate"
)

// still is a lab of testSpec in which nothing runs: fake cgroups determine which nodes are on.
type still struct {
	*Lab
	secrets *secrets.Secrets
}

func newStill(t *testing.T) *still {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	spec := testSpec("otus")
	keys, err := secrets.Load(filepath.Join(dir, "secrets"), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &still{secrets: keys}
	s.Lab = &Lab{
		spec: spec, paths: paths{filepath.Join(dir, "dist")}, network: "imagegen-otus", group: cgroup.Group(filepath.Join(dir, "imagegen-otus")),
		clusterID: keys.ClusterID, providers: testProviders,
		made: fleet.Made{Spec: spec, Dir: "dist", Seed: func(n cluster.Node) (cloudinit.Seed, error) { return testSeed(s.spec, s.secrets, n) }},
		log:  t.Logf,
	}
	for _, r := range spec.Roles {
		testkit.Write(t, s.made.ImagePath(r.Name), "image")
	}
	for _, n := range spec.Nodes() {
		s.build(t, n)
	}
	return s
}

// build makes a node's seed.
func (s *still) build(t *testing.T, n cluster.Node) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.made.SeedPath(n.Name)), 0o755); err != nil {
		t.Fatal(err)
	}
	seed, err := s.made.Seed(n)
	if err == nil {
		err = seed.WriteISO(s.made.SeedPath(n.Name))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// on creates a node, with a cgroup that has processes.
func (s *still) on(t *testing.T, name string) {
	t.Helper()
	n, ok := s.spec.Node(name)
	if !ok {
		t.Fatalf("no node %s", name)
	}
	testkit.Write(t, s.paths.provider(), "nspawn\n")
	p, err := s.provider()
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.machine(n)
	if err == nil {
		err = p.Create(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(string(s.group.Sub(name)), "cgroup.events"), "populated 1\n")
}

// buildOf returns the build of a node, according to Known.
func (s *still) buildOf(t *testing.T, name string) string {
	t.Helper()
	all, err := s.Known(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Node.Name == name {
			return m.Build
		}
	}
	t.Fatalf("%s is not known", name)
	return ""
}

// Seeds of another spec are detected before anything starts.
func TestSeedsOfAnotherSpec(t *testing.T) {
	s := newStill(t)
	if err := s.CheckFiles("store1", "balancer1"); err != nil {
		t.Fatal(err)
	}
	s.spec.Cluster = "other"
	if err := s.CheckFiles("store1"); err == nil || err.Error() != "dist/seeds/store1.iso is not of this spec: imagegen build" {
		t.Errorf("of another cluster: %v", err)
	}
	if err := s.CheckFiles("store1", "store2"); err == nil || err.Error() != "dist/seeds/store1.iso, dist/seeds/store2.iso are not of this spec: imagegen build" {
		t.Errorf("two of another cluster: %v", err)
	}
	s.spec.Cluster = "otus"
	testkit.Write(t, s.made.SeedPath("store1"), "half a seed")
	if err := s.CheckFiles("store1"); err == nil || !strings.Contains(err.Error(), "dist/seeds/store1.iso is not of this spec") {
		t.Errorf("damaged: %v", err)
	}
	testkit.Write(t, filepath.Join(s.paths.out, "images/store.json"), `{"inputs": {"base": {"distro": "centos7"}}}`)
	if err := s.CheckFiles("store2"); err == nil || err.Error() != "dist/images/store.raw is not of this spec: imagegen build" {
		t.Errorf("an image of another distro: %v", err)
	}
	os.Remove(s.made.SeedPath("store2"))
	if err := s.CheckFiles("store2"); err == nil || !strings.Contains(err.Error(), "not there yet: dist/seeds/store2.iso:") {
		t.Errorf("none: %v", err)
	}
}

// Removed nodes are still known, with their machines' roles and addresses, and no other node gets those addresses.
func TestRemovedNodes(t *testing.T) {
	s := newStill(t)
	s.on(t, "store1")
	s.on(t, "store2")
	store := &s.spec.Roles[1]
	store.Nodes = []cluster.Node{store.Nodes[0], {Name: "store3", Role: "store", IP: store.Nodes[1].IP, MAC: "02:00:5e:00:00:03", Index: 1}}

	known, err := s.known([]string{"store2", "store1"})
	if err != nil || known[0].Role != "store" || known[0].IP != netip.MustParseAddr("192.168.10.45") {
		t.Errorf("%+v, %v", known, err)
	}
	if _, err := s.known([]string{"store9"}); err == nil {
		t.Error("a node is known that never was")
	}
	if got := s.buildOf(t, "store2"); got != operate.BuildRemoved {
		t.Errorf("build of store2: %q", got)
	}
	err = s.checkAddresses(store.Nodes[1:])
	if err == nil || !strings.Contains(err.Error(), "store2 still runs with the address 192.168.10.45") || !strings.Contains(err.Error(), "imagegen kill store2") {
		t.Errorf("two nodes with one address: %v", err)
	}
	if err := s.checkAddresses(store.Nodes[:1]); err != nil {
		t.Errorf("its own address: %v", err)
	}
	if err := os.RemoveAll(string(s.group.Sub("store2"))); err != nil { // off
		t.Fatal(err)
	}
	if err := s.checkAddresses(store.Nodes[1:]); err != nil {
		t.Errorf("store2 is off: %v", err)
	}
	if err := s.Remove(t.Context(), "store1"); err == nil || !strings.Contains(err.Error(), "is in the spec") {
		t.Errorf("a node that the spec has was removed: %v", err)
	}
}

// Nodes of an older build are distinguished from current ones. Their known addresses are those of that build.
func TestOlderNodes(t *testing.T) {
	s := newStill(t)
	node := func(name string) cluster.Node { n, _ := s.spec.Node(name); return n }
	if got := s.buildOf(t, "store1"); got != "" {
		t.Errorf("never made: %q", got)
	}
	s.on(t, "store1")
	s.on(t, "store2")
	s.on(t, "balancer1")
	s.build(t, node("store2")) // same content, different file
	for _, name := range []string{"store1", "store2"} {
		if got := s.buildOf(t, name); got != operate.BuildCurrent {
			t.Errorf("%s: %q", name, got)
		}
	}
	s.spec.Roles[1].Nodes[0].IP = netip.MustParseAddr("192.168.10.77")
	s.build(t, node("store1"))
	if got := s.buildOf(t, "store1"); got != operate.BuildOlder {
		t.Errorf("another seed: %q", got)
	}
	if got := addressOf(s.runs(node("store1"))); got != "192.168.10.44" {
		t.Errorf("store1 runs with %s", got)
	}
	os.Remove(s.made.ImagePath("balancer"))
	testkit.Write(t, s.made.ImagePath("balancer"), "another image")
	if got := s.buildOf(t, "balancer1"); got != operate.BuildOlder {
		t.Errorf("another image: %q", got)
	}
}

// Machines with other secrets are not started; the error says what to do.
func TestMachinesOfOtherSecrets(t *testing.T) {
	s := newStill(t)
	s.on(t, "store1")
	s.clusterID = "99999999-2222-4333-8444-555555555555"
	p, err := s.provider()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := s.spec.Node("store1")
	if _, err := s.powerOn(t.Context(), p, n); !errors.Is(err, machines.ErrForeign) || !strings.Contains(err.Error(), "imagegen down removes it") {
		t.Errorf("%v", err)
	}
	all, err := s.Known(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Power != operate.PowerOff || m.Build != "" {
			t.Errorf("%+v", m)
		}
	}
}

// The site is reported only while a node that can serve it is on.
func TestSiteNeedsABalancer(t *testing.T) {
	s := newStill(t)
	s.on(t, "store1")
	testkit.Write(t, s.paths.site(), DefaultSite+" 192.168.10.39")
	if got := s.Site(); got != "" {
		t.Errorf("without a balancer the site is at %q", got)
	}
	s.on(t, "balancer1")
	if got := s.Site(); got != DefaultSite {
		t.Errorf("with a balancer the site is at %q", got)
	}
}

// A lab belongs to its folder, even after that is moved, but not to a copy of the folder or a new one in its place.
func TestOwnerIsKnownByItsFolder(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("a b"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := owner{dir: at("a b"), inode: inodeOf(at("a b"))}
	if back := parseOwner(o.String()); back != o {
		t.Errorf("%+v reads as %+v", o, back)
	}
	if parseOwner("") != (owner{}) || (owner{}).is(at("a b")) {
		t.Error("nobody's cluster is somebody's")
	}
	if err := os.Rename(at("a b"), at("c")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if !o.is(at("c")) || o.is(at("d")) {
		t.Errorf("moved: %t; another folder: %t", o.is(at("c")), o.is(at("d")))
	}
	if !o.is(at("a b")) || o.is(at("e")) { // that is, down can clean up there
		t.Error("a folder that is nowhere: want the former place, and no other")
	}
	if err := os.Mkdir(at("a b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if o.is(at("a b")) {
		t.Error("what is now at the former place is taken for the folder")
	}
	l := newStill(t)
	if err := os.MkdirAll(l.paths.lab(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    owner
		want []string
	}{
		{owner{at("c"), o.inode}, []string{"running from " + at("c"), "-o " + dir}},
		{o, []string{"was " + at("a b"), "moved"}},
		{owner{l.paths.lab(), "0:1"}, []string{"moved", "remove what is at " + l.paths.lab()}},
	} {
		said := l.othersCluster(c.o).Error()
		if slices.ContainsFunc(c.want, func(w string) bool { return !strings.Contains(said, w) }) {
			t.Errorf("%s: want %q", said, c.want)
		}
	}
}

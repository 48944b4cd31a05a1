package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"imagegen/cloudinit"
	"imagegen/cloudinit/nocloud"
	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/distro"
	"imagegen/internal/testkit"
)

// referenceChanges are changes of the reference cluster's spec.
var referenceChanges = []struct {
	name  string
	edits []edit
}{
	{"add web3", []edit{{"      web2: 192.168.10.43\n", "      web2: 192.168.10.43\n      web3: 192.168.10.70\n"}}},
	{"remove web2", []edit{{"      web2: 192.168.10.43\n", ""}}},
	{"add backend3", []edit{{"      backend2: ", "      backend3: 192.168.10.70\n      backend2: "}}},
	{"add a balancer", []edit{{"      balancer2: 192.168.10.41\n", "      balancer2: 192.168.10.41\n      balancer5: 192.168.10.70\n"}}},
	{"add two of redis", []edit{{"      redis1: ", "      redis4: 192.168.10.70\n      redis5: 192.168.10.71\n      redis1: "}}},
	{"add two of percona", []edit{{"      percona1: ", "      percona4: 192.168.10.70\n      percona5: 192.168.10.71\n      percona1: "}}},
	{"add two of glusterfs", []edit{{"      glusterfs1: ", "      glusterfs4: 192.168.10.70\n      glusterfs5: 192.168.10.71\n      glusterfs1: "}}},
	{"another address of web2", []edit{{"web2: 192.168.10.43", "web2: 192.168.10.70"}}},
	{"another virtual address", []edit{{"vip: 192.168.10.39", "vip: 192.168.10.38"}}},
	{"another time zone", []edit{{"timezone: Europe/Moscow", "timezone: Europe/Berlin"}}},
	{"another title", []edit{{"title: A site that stays up", "title: Another"}}},
	{"options", []edit{
		{"  redis:\n", "  redis:\n    options: {maxmemory: \"40\"}\n"},
		{"  percona:\n", "  percona:\n    options: {threads: \"4\"}\n"},
		{"  backend:\n", "  backend:\n    options: {children: \"6\"}\n"},
		{"  glusterfs:\n", "  glusterfs:\n    options: {quorum: fixed}\n"},
	}},
	{"operators elsewhere", []edit{{"network: {cidr: 192.168.10.0/24}\n", "network: {cidr: 192.168.10.0/24, gateway: 192.168.10.1}\noperators: [10.1.0.0/16]\n"}}},
}

// TestReferencePlans shows what each change of the reference cluster does to the nodes that it has already. Those that take the
// new seed over are then like new ones.
func TestReferencePlans(t *testing.T) {
	for _, d := range distro.Names() {
		reference := string(cluster.Reference(d))
		old := renderSeeds(t, "", reference)
		var b strings.Builder
		tried := map[string]bool{"nothing": true}
		for _, c := range referenceChanges {
			spec := reference
			for _, e := range c.edits {
				if strings.Count(spec, e.old) != 1 {
					t.Fatalf("%s: %q is there %d times", d, e.old, strings.Count(spec, e.old))
				}
				spec = strings.Replace(spec, e.old, e.new, 1)
			}
			fmt.Fprintf(&b, "# %s\n", c.name)
			seeds := renderSeeds(t, "", spec)
			nodes := map[string][]string{} // by what happens to them
			var order []string
			for _, n := range slices.Sorted(maps.Keys(old)) {
				seed, kept := seeds[n]
				if !kept {
					continue
				}
				what := describePlan(t, nocloud.Seed(old[n]), nocloud.Seed(seed), bundle(t, old[n]), bundle(t, seed))
				if nodes[what] == nil {
					order = append(order, what)
				}
				nodes[what] = append(nodes[what], n)
			}
			for _, what := range order {
				fmt.Fprintf(&b, "%s: %s\n", strings.Join(nodes[what], " "), what)
				if n := nodes[what][0]; !tried[what] && !strings.HasPrefix(what, "replaced") {
					tried[what] = true
					likeNew(t, d+": "+c.name, old[n], seeds[n])
				}
			}
			b.WriteString("\n")
		}
		testkit.Golden(t, "testdata/plans-"+d+".txt", []byte(b.String()))
	}
}

// likeNew takes over a seed and compares the node with a new one.
func likeNew(t *testing.T, name string, old, seed cloudinit.Seed) {
	t.Helper()
	fresh, m := newSeeded(t, seed), newSeeded(t, old)
	fresh.agentStarts()
	m.agentStarts()
	if _, err := m.takesOver(seed, nil); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	m.agentStarts()
	for _, diff := range differences(m.looks(), fresh.looks()) {
		t.Errorf("%s: %s", name, diff)
	}
}

// describePlan says what a new seed does to a node.
func describePlan(t *testing.T, old, seed nocloud.Seed, was, is facts.Bundle) string {
	t.Helper()
	from, err := facts.Decode(was.Facts)
	if err != nil {
		t.Fatal(err)
	}
	to, err := facts.Decode(is.Facts)
	if err != nil {
		t.Fatal(err)
	}
	p := planTakeover(from, to)
	if !old.SameMachine(seed) {
		p.Replace = append(p.Replace, "another machine")
	}
	if len(p.Replace) > 0 {
		return "replaced: " + strings.Join(p.Replace, "; ")
	}
	if nocloud.Digest(old.UserData, old.NetworkConfig) == nocloud.Digest(seed.UserData, seed.NetworkConfig) {
		return "nothing"
	}
	var files []string
	for _, f := range p.Files {
		files = append(files, f.Path)
	}
	var does []string
	for _, u := range p.Stop {
		does = append(does, "stop "+u)
	}
	for _, u := range p.Reload {
		does = append(does, "reload "+u)
	}
	return fmt.Sprintf("%s (%s)", strings.Join(append(does, "the agent starts anew"), ", "), strings.Join(files, " "))
}

// TestPlanSaysWhyNot: every reason for which a node must be replaced is said, and all of them at once.
func TestPlanSaysWhyNot(t *testing.T) {
	old := seedOf(t)
	const disk = `  - {name: disk, kind: disk, params: {mount: /data, filesystem: ext4, dirs: [{path: /data/x, owner: "root:root", mode: "0755"}]}}` + "\n"
	for _, c := range []struct {
		name       string
		from, with []edit
		want       []string
	}{
		{"a rigid file", nil, []edit{{"rigid\n", "bent\n"}}, []string{"/etc/gadget/rigid.conf changed"}},
		{"a rigid file's mode", nil, []edit{{"template: rigid.conf}", `template: rigid.conf, mode: "0600"}`}}, []string{"/etc/gadget/rigid.conf changed"}},
		{"a new rigid file", nil, []edit{{"components:\n", "  - {path: /etc/x, template: more.conf}\ncomponents:\n"}}, []string{"/etc/x is new"}},
		{"a file that may be the image's is gone", nil, []edit{{"  - {path: /etc/gadget/lazy.conf, template: lazy.conf, mode: \"0640\", owner: \"root:gadget\", change: none}\n", ""}},
			[]string{"/etc/gadget/lazy.conf is gone, and the image may have a file of its own there"}},
		{"something fixed", nil, []edit{{"id 7", "id 8"}, {"shared\n", "common\n"}}, []string{`/etc/gadget/shared.conf: "id 7" became "id 8"`}},
		{"a kernel parameter", []edit{{`{net.core.somaxconn: "1024"}`, `{net.core.somaxconn: "1024", vm.swappiness: "1"}`}}, nil,
			[]string{"the kernel parameter vm.swappiness is no longer set, and the node does not know its default"}},
		{"a disk comes", nil, []edit{{"components:\n", "data: 1GiB\ncomponents:\n" + disk}}, []string{"component disk is new"}},
		{"a disk goes", []edit{{"components:\n", "components:\n" + disk}}, nil, []string{"component disk is gone"}},
		{"a disk changes", []edit{{"components:\n", "components:\n" + disk}}, []edit{{"components:\n", "components:\n" + strings.Replace(disk, "/data/x", "/data/y", 1)}},
			[]string{"component disk has other parameters"}},
		{"another kind", []edit{{"components:\n", "components:\n" + strings.Replace(disk, "name: disk", "name: x", 1)}},
			[]edit{{"components:\n", "components:\n  - {name: x, kind: service, params: {unit: x.service}}\n"}}, []string{"component x is a service instead of a disk"}},
		{"several", nil, []edit{{"rigid\n", "bent\n"}, {"id 7", "id 8"}, {"shared\n", "common\n"}, {"components:\n", "components:\n" + disk}},
			[]string{"/etc/gadget/rigid.conf changed", `/etc/gadget/shared.conf: "id 7" became "id 8"`, "component disk is new"}},
	} {
		from, with := old, seedOf(t, c.with...)
		if c.from != nil {
			from = seedOf(t, c.from...)
		}
		m := newSeeded(t, from)
		p, begun, err := m.agent(nil).takeOver(sign(t, bundle(t, with), ""), true)
		if err != nil || begun {
			t.Errorf("%s: %v", c.name, err)
		}
		if fixed := slices.DeleteFunc(slices.Clone(c.want), func(why string) bool { return !strings.Contains(why, "became") }); !slices.Equal(p.Fixed, fixed) {
			t.Errorf("%s: what is fixed and differs: %q, want %q", c.name, p.Fixed, fixed)
		}
		if !slices.Equal(p.Replace, c.want) {
			t.Errorf("%s: %q, want %q", c.name, p.Replace, c.want)
		}
		before := m.looks()
		if _, begun, err := m.agent(nil).takeOver(sign(t, bundle(t, with), ""), false); err == nil || begun || !strings.Contains(err.Error(), "gadget1 must be replaced: "+strings.Join(c.want, "; ")) {
			t.Errorf("%s: it was taken over: %v", c.name, err)
		}
		for _, d := range differences(m.looks(), before) {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	var v1 facts.Facts
	v1.Version = 1
	if p := planTakeover(v1, facts.Facts{Version: facts.FactsVersion}); !slices.Equal(p.Replace, []string{"its seed is of an earlier imagegen, and does not list its files"}) {
		t.Errorf("facts of the version before: %q", p.Replace)
	}
}

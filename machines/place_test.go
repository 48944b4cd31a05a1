package machines

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
)

// role is a role of n nodes called NAME1, NAME2, ….
func role(name string, n int) cluster.Role {
	r := cluster.Role{Name: name, Memory: 256 << 20}
	for i := range n {
		r.Nodes = append(r.Nodes, cluster.Node{Name: fmt.Sprint(name, i+1), Role: name, Index: i, IP: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
	}
	return r
}

func majority(role string) bool {
	return slices.Contains([]string{"redis", "percona", "glusterfs"}, role)
}

func referenceRoles() *cluster.Spec {
	return &cluster.Spec{Roles: []cluster.Role{role("balancer", 2), role("web", 2), role("glusterfs", 3), role("backend", 2),
		role("databalancer", 2), role("redis", 3), role("percona", 3)}}
}

func TestAnyOfThreeHostsMayDie(t *testing.T) {
	hosts := []string{"h1", "h2", "h3"}
	spec := referenceRoles()
	at := Place(spec, hosts, nil)
	if lines := Losses(spec, hosts, at, majority); lines != nil {
		t.Errorf("%v\n%s", at, strings.Join(lines, "\n"))
	}
	load := map[string]int{}
	for _, h := range at {
		load[h]++
	}
	for _, h := range hosts {
		if load[h] < 5 || load[h] > 6 {
			t.Errorf("17 nodes are spread as %v", load)
		}
	}
}

func TestTooFewHosts(t *testing.T) {
	spec := referenceRoles()
	for _, c := range []struct {
		hosts []string
		want  []string
	}{
		{[]string{"h1"}, []string{"losing host h1 loses all nodes of balancer, all nodes of web, all nodes of glusterfs, all nodes of backend, all nodes of databalancer, all nodes of redis, all nodes of percona"}},
		{[]string{"h1", "h2"}, []string{"losing host h1 loses the majority of glusterfs (2 of 3)", "losing host h2 loses the majority of"}},
	} {
		got := Losses(spec, c.hosts, Place(spec, c.hosts, nil), majority)
		if len(got) != len(c.want) {
			t.Errorf("%v: %q", c.hosts, got)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], c.want[i]) {
				t.Errorf("%v: %q, want %q", c.hosts, got[i], c.want[i])
			}
		}
	}
}

// A role with a quorum keeps it if any one of three or more hosts dies, whatever the role's size and history.
func TestMajoritySurvivesAnyHost(t *testing.T) {
	for hosts := 3; hosts <= 6; hosts++ {
		var names []string
		for i := range hosts {
			names = append(names, fmt.Sprint("h", i+1))
		}
		for start := 3; start <= 9; start += 2 {
			spec := &cluster.Spec{Roles: []cluster.Role{role("web", 2), role("percona", start)}}
			at := Place(spec, names, nil)
			for n := start; n <= 13; n += 2 {
				spec.Roles[1] = role("percona", n)
				at = Place(spec, names, at)
				if lines := Losses(spec, names, at, majority); lines != nil {
					t.Errorf("%d hosts, %d nodes grown from %d: %q", hosts, n, start, lines)
				}
			}
		}
	}
}

// Running nodes are not moved, so after nodes were removed, a role may depend on one host. Warnings are about where
// nodes are, not where they would be placed today.
func TestLossesOfWhatRuns(t *testing.T) {
	hosts := []string{"h1", "h2", "h3"}
	spec := &cluster.Spec{Roles: []cluster.Role{role("redis", 3)}}
	at := Place(spec, hosts, map[string]string{"redis1": "h1", "redis2": "h1", "redis3": "h2"})
	got := Losses(spec, hosts, at, majority)
	if len(got) != 1 || got[0] != "losing host h1 loses the majority of redis (2 of 3)" {
		t.Errorf("%v: %q", at, got)
	}
}

// A node whose host is no longer listed is placed again. The others stay, even if the order of hosts changes.
func TestHostIsReplaced(t *testing.T) {
	spec := referenceRoles()
	before := Place(spec, []string{"h1", "h2", "h3"}, nil)
	hosts := []string{"h4", "h3", "h1"}
	after := Place(spec, hosts, before)
	for n, h := range before {
		if h != "h2" && after[n] != h {
			t.Errorf("%s moved from %s to %s", n, h, after[n])
		}
		if h == "h2" && after[n] != "h4" {
			t.Errorf("%s went from the lost host to %s, and not to the new one", n, after[n])
		}
	}
	if lines := Losses(spec, hosts, after, majority); lines != nil {
		t.Errorf("%q", lines)
	}
}

// Wherever nodes are inserted into the spec, no running node is moved, and each role is spread evenly.
func TestPlacementIsStable(t *testing.T) {
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		hosts := []string{"h1", "h2", "h3", "h4"}[:2+rnd.IntN(3)]
		spec := referenceRoles()
		at := Place(spec, hosts, nil)
		for step := range 6 {
			r := &spec.Roles[rnd.IntN(len(spec.Roles))]
			r.Nodes = slices.Insert(r.Nodes, rnd.IntN(len(r.Nodes)+1), cluster.Node{Name: fmt.Sprint("new", step), Role: r.Name})
			before := maps.Clone(at)
			at = Place(spec, hosts, at)
			for n, h := range before {
				if at[n] != h {
					t.Fatalf("seed %d: adding new%d to %s moved %s from %s to %s", seed, step, r.Name, n, h, at[n])
				}
			}
			per := map[string]int{}
			for _, n := range r.Nodes {
				per[at[n.Name]]++
			}
			least, most := len(r.Nodes), 0
			for _, h := range hosts {
				least, most = min(least, per[h]), max(most, per[h])
			}
			if most-least > 1 {
				t.Fatalf("seed %d: %s is spread unevenly: %v", seed, r.Name, per)
			}
		}
	}
}

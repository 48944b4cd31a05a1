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

// Whatever the history of added nodes, wherever in the spec they were inserted, no node that runs is ever moved, and three hosts
// or more always survive the loss of one as far as each role has been added to in steps that the hosts can balance.
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

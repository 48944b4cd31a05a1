package change

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/operate"
	"imagegen/roles"
)

// What the catalogue says of the built-in roles gives the order in which they change, whatever the spec's order.
func TestBuiltInRoles(t *testing.T) {
	c, err := roles.Load("")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"percona", "redis", "glusterfs", "databalancer", "backend", "web", "balancer"}
	for range 2 {
		at := map[string]int{}
		var said []string
		for i, r := range (State{Roles: RolesOf(c, names)}).order() {
			at[r.Name] = i
			said = append(said, fmt.Sprint(r.Name, " ", r.Quorum, " ", r.Joint, " ", r.VIP))
		}
		for _, pair := range []string{"balancer web", "web backend", "web glusterfs", "backend glusterfs", "backend databalancer", "backend redis", "backend percona", "databalancer redis", "databalancer percona"} {
			client, server, _ := strings.Cut(pair, " ")
			if at[client] > at[server] {
				t.Errorf("%s changes after %s, which it connects to: %q", client, server, said)
			}
		}
		slices.Sort(said)
		if want := []string{"backend false false false", "balancer false false true", "databalancer false false true", "glusterfs true true false", "percona true true false", "redis true true false", "web false false false"}; !slices.Equal(said, want) {
			t.Errorf("%q, want %q", said, want)
		}
		slices.Reverse(names)
	}
	if r := RolesOf(c, []string{"forgotten"}); !r[0].Quorum {
		t.Error("a role that the catalogue no longer has passes for one whose nodes may go")
	}
}

// keptGeneration keeps nothing else.
type keptGeneration struct {
	Earlier
	generation *facts.Generation
}

func (k keptGeneration) Generation() *facts.Generation { return k.generation }

// previous is what the cluster leaves: the generation in use or, once the target is in use, the one before it, if a node still runs it.
func TestPrevious(t *testing.T) {
	generation := func(number int, parent string) facts.Generation {
		return facts.Generation{Manifest: facts.Manifest{Number: number, Parent: parent}, Digest: fmt.Sprint("digest", number)}
	}
	one, three, four := generation(1, ""), generation(3, "digest1"), generation(4, "digest3")
	found := func(inUse facts.Generation, known ...facts.Generation) operate.Generations {
		return operate.Generations{InUse: &inUse, Known: known, Nodes: []operate.NodeGeneration{{Node: "web1", Status: &agree.Status{}}}}
	}
	for name, c := range map[string]struct {
		found  operate.Generations
		target facts.Generation
		kept   *facts.Generation
		want   int
	}{
		"not in use yet":            {found(three, one, three), four, nil, 3},
		"in use":                    {found(four, one, three, four), four, nil, 3},
		"nobody runs its parent":    {found(four, one, four), four, nil, 1},
		"its parent is kept here":   {found(four, one, four), four, &three, 3},
		"another is kept here":      {found(four, four), four, &one, 4},
		"nobody runs an older one":  {found(four, four), four, nil, 4},
		"what was only ever signed": {found(three, one, three, four), generation(5, "digest3"), &one, 3},
	} {
		r := &Run{Earlier: keptGeneration{generation: c.kept}}
		if got := r.previous(c.found, Target{Generation: c.target}); got.Number != c.want {
			t.Errorf("%s: %d, want %d", name, got.Number, c.want)
		}
	}
}

// Members become more or fewer only once all agree on who they are.
func TestDisagree(t *testing.T) {
	peer := func(name, ip string) facts.Peer { return facts.Peer{Name: name, Role: "redis", IP: ip} }
	one, two, three, moved := peer("redis1", "ip1"), peer("redis2", "ip2"), peer("redis3", "ip3"), peer("redis3", "other")
	in := func(number int, members ...facts.Peer) facts.Membership {
		return facts.Membership{Number: number, Members: members}
	}
	report := func(name string, in ...facts.Membership) facts.NodeReport {
		return facts.NodeReport{Node: facts.Peer{Name: name}, Ready: true, Joint: &facts.Joint{Role: "redis", InUse: in}}
	}
	old, with, without, elsewhere := in(1, one, two, three), in(2, one, two, three), in(2, one, two), in(2, one, two, moved)
	unready := report("redis1", without)
	unready.Ready, unready.Order = false, []string{"redis"}
	unready.Components = map[string]facts.ComponentReport{"redis": {Status: facts.Status{State: facts.Waiting, Detail: "for data"}}}
	three3, other3 := &facts.Member{Name: "redis3", IP: "ip3"}, &facts.Member{Name: "redis3", IP: "other"}
	for name, c := range map[string]struct {
		is   *facts.Member // what redis3 becomes
		one  facts.NodeReport
		two  facts.NodeReport
		want string
	}{
		"a new one is known":            {three3, report("redis1", without, with), report("redis2", without, with), ""},
		"one does not know it":          {three3, report("redis1", without, with), report("redis2", without), "redis2 does not count redis3 at ip3 as a member yet"},
		"they know different others":    {three3, report("redis1", in(1, one), with), report("redis2", with), "redis1 and redis2 count different members"},
		"another address is known":      {other3, report("redis1", old, elsewhere), report("redis2", old, elsewhere), ""},
		"another address is not known":  {other3, report("redis1", old, elsewhere), report("redis2", old), "redis2 does not count redis3 at other as a member yet"},
		"one leaves, and counts":        {nil, report("redis1", old, without), report("redis2", without), "redis1 still counts redis3 as a member"},
		"one leaves, and is forgotten":  {nil, report("redis1", without), report("redis2", without), ""},
		"one is not ready":              {nil, unready, report("redis2", without), "redis1 is not ready: redis is waiting: for data"},
		"an agent that does not say it": {nil, facts.NodeReport{Ready: true}, report("redis2", without), "redis1 does not say who the members of redis are"},
		"one is silent":                 {nil, report("redis1", without), facts.NodeReport{}, "redis2 does not answer"},
	} {
		reports := map[string]facts.NodeReport{"redis1": c.one, "redis2": c.two}
		if c.two.Node.Name == "" {
			delete(reports, "redis2")
		}
		if got := disagree(Step{Node: "redis3", Role: "redis", Agree: []string{"redis1", "redis2"}}, c.is, reports); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A target has only the seeds of nodes that change: those of an undone change lack the volume's servers, whose reports say it.
func TestLone(t *testing.T) {
	report := func(kind string) facts.NodeReport {
		return facts.NodeReport{Node: facts.Peer{Name: "glusterfs1", Role: "glusterfs"}, Components: map[string]facts.ComponentReport{
			"gluster": {Kind: "gluster", Report: json.RawMessage(`{"volume":{"options":{"cluster.quorum-type":"` + kind + `"}}}`)},
		}}
	}
	target := Target{Generation: facts.Generation{Manifest: facts.Manifest{Members: []facts.Member{{Name: "glusterfs1", Role: "glusterfs"}}}}}
	for kind, want := range map[string]bool{"auto": false, "fixed": true} {
		s := &seen{reports: map[string]facts.NodeReport{"glusterfs1": report(kind)}}
		if got, err := s.lone(target, "glusterfs"); got != want || err != nil {
			t.Errorf("%s: %t, %v", kind, got, err)
		}
	}
}

package change

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster/facts"
)

// The roles of the reference cluster, in the order of its spec.
var reference = []Role{
	{Name: "balancer", VIP: true, Uses: []string{"web"}},
	{Name: "web", Uses: []string{"backend", "glusterfs"}},
	{Name: "glusterfs", Quorum: true, Joint: true},
	{Name: "backend", Uses: []string{"glusterfs", "databalancer", "percona"}},
	{Name: "databalancer", VIP: true, Uses: []string{"redis", "percona"}},
	{Name: "redis", Quorum: true, Joint: true},
	{Name: "percona", Quorum: true, Joint: true},
}

// node is a node that is ready with the seed and image "old" and shall get the seed "new", in place.
func node(name string, edits ...func(*Node)) Node {
	role := strings.TrimRight(name, "0123456789")
	index := int(name[len(name)-1] - '1')
	n := Node{
		Name: name, Role: role, Seed: "old", Image: "image", Ready: true, Joint: true,
		Was:      &facts.Member{Name: name, Role: role, IP: "ip-" + name, Index: index, Image: "image", Seed: "old"},
		Is:       &facts.Member{Name: name, Role: role, IP: "ip-" + name, Index: index, Image: "image", Seed: "new"},
		Takeover: &facts.Plan{Files: []facts.FileChange{{Path: "/etc/f", What: "changed"}}},
	}
	for _, edit := range edits {
		edit(&n)
	}
	return n
}

func same(n *Node)    { n.Is.Seed = "old" }
func done(n *Node)    { n.Seed = "new" }
func image(n *Node)   { n.Is.Image = "newer" }
func unready(n *Node) { n.Ready = false }
func leads(n *Node)   { n.Leads = "holds the virtual address" }
func moved(n *Node)   { n.Is.IP = "other-" + n.Name }
func removed(n *Node) { n.Is = nil }
func apart(n *Node)   { n.Apart = "another virtual address" }
func off(n *Node)     { n.Off, n.Silent, n.Ready, n.Seed, n.Image = true, true, false, "", "" }
func prepared(n *Node) {
	off(n)
	n.Prepared = true
}
func silent(n *Node) { n.Silent, n.Ready, n.Seed, n.Image = true, false, "", "" }
func added(n *Node) {
	off(n)
	n.Was, n.Takeover, n.Joint = nil, nil, false
}
func earlier(n *Node)     { n.Joint = false }
func mustReplace(n *Node) { n.Takeover.Replace = []string{"its time zone is another one"} }
func running(n *Node) {
	n.Off, n.Silent, n.Ready, n.Joint, n.Seed, n.Image = false, false, true, true, "new", "image"
}
func useless(n *Node)    { n.Takeover.Refuse = []string{"accounts are not renamed"} }
func quiet(n *Node)      { n.Quiet = true }
func noTakeover(n *Node) { n.Takeover = nil }
func swapped(n *Node)    { n.Is.Index++ }
func restarts(n *Node)   { n.Takeover.Stop = []string{"x.service"} }
func data(n *Node)       { n.Is.Data = true }

// storage returns the nodes of three roles that do not use each other, and restart.
func storage(edits map[string]func(*Node)) (nodes []Node) {
	for _, name := range []string{"glusterfs1", "glusterfs2", "glusterfs3", "redis1", "redis2", "redis3", "percona1", "percona2", "percona3"} {
		n := node(name, restarts, data)
		if edit := edits[name]; edit != nil {
			edit(&n)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// brief describes a plan in short: each step's action, node, and needs.
func brief(steps []Step) string {
	var all []string
	for i, s := range steps {
		said := string(s.Action) + " " + s.Node
		if i > 0 && s.Round == steps[i-1].Round {
			said = "with that " + said
		}
		if len(s.Needs) > 0 {
			said += " (" + strings.Join(s.Needs, " ") + ")"
		}
		if s.Agree != nil && slices.Equal(s.Agree, s.Needs) {
			said += " who agree"
		}
		all = append(all, said)
	}
	return strings.Join(all, ", ")
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		nodes   []Node
		without []string
		want    string
	}{
		"nothing":                          {[]Node{node("web1", same), node("web2", same)}, nil, ""},
		"another option":                   {[]Node{node("web1"), node("web2")}, nil, "take over web1 (web2), take over web2 (web1)"},
		"half-way":                         {[]Node{node("web1", done), node("web2")}, nil, "take over web2 (web1)"},
		"half-way, the first is not ready": {[]Node{node("web1", done, unready), node("web2")}, nil, "take over web2 (web1)"},
		"another image":                    {[]Node{node("web1", same, image), node("web2", same, image)}, nil, "replace web1 (web2), replace web2 (web1)"},
		"the agent refuses":                {[]Node{node("web1", mustReplace), node("web2")}, nil, "replace web1 (web2), take over web2 (web1)"},
		"an agent that cannot":             {[]Node{node("web1", noTakeover)}, nil, "replace web1"},
		"the standby first":                {[]Node{node("balancer1", leads), node("balancer2")}, nil, "take over balancer2 (balancer1), take over balancer1 (balancer2)"},
		"one is broken":                    {[]Node{node("redis1"), node("redis2", unready), node("redis3", leads)}, nil, "take over redis2 (redis1 redis3), take over redis1 (redis2 redis3), take over redis3 (redis2 redis1)"},
		"all are broken":                   {[]Node{node("web1", unready), node("web2", unready)}, nil, "take over web1, take over web2"},
		"one is broken and needs nothing":  {[]Node{node("web1", same, unready), node("web2")}, nil, "take over web2 (web1)"},
		"one is silent":                    {[]Node{node("web1"), node("web2", silent)}, nil, "wait web2, take over web1 (web2)"},
		"one is given up":                  {[]Node{node("web1"), node("web2", silent)}, []string{"web2"}, "take over web1"},
		"one was being replaced":           {[]Node{node("web1"), node("web2", off)}, nil, "replace web2 (web1), take over web1 (web2)"},
		"one is off, and needs nothing":    {[]Node{node("web1"), node("web2", prepared)}, nil, "wait web2, take over web1 (web2)"},
		"clients first":                    {[]Node{node("balancer1"), node("web1"), node("glusterfs1", same), node("backend1"), node("databalancer1"), node("redis1")}, nil, "take over balancer1, take over web1, take over backend1, take over databalancer1, take over redis1"},
		"a third web":                      {[]Node{node("balancer1"), node("web1"), node("web3", added), node("backend1")}, nil, "take over balancer1, take over web1, take over backend1, add web3 (web1)"},
		"a new role":                       {[]Node{node("balancer1"), node("web1", added), node("backend1", added)}, nil, "take over balancer1, add backend1, add web1"},
		"a web less":                       {[]Node{node("balancer1"), node("web1"), node("web2", removed), node("backend1")}, nil, "take over balancer1, take over web1, take over backend1, remove web2"},
		"a web less, off already":          {[]Node{node("web1"), node("web2", removed, off)}, nil, "take over web1"},
		"a web less, another more":         {[]Node{node("balancer1"), node("web1"), node("web2", removed), node("web3", added)}, nil, "take over balancer1, take over web1, add web3 (web1), remove web2"},
		"a role less":                      {[]Node{node("balancer1", removed, leads), node("balancer2", removed), node("web1")}, nil, "take over web1, remove balancer1, remove balancer2"},
		"another address":                  {[]Node{node("balancer1"), node("web1", moved), node("web2")}, nil, "take over balancer1, take over web2, replace web1 (web2)"},
		"another address, made already":    {[]Node{node("balancer1", done), node("web1", moved, done), node("web2", done)}, nil, ""},
		"a third balancer":                 {[]Node{node("balancer1", leads), node("balancer2"), node("balancer3", added)}, nil, "take over balancer2 (balancer1), take over balancer1 (balancer2), add balancer3 (balancer1 balancer2)"},
		"a balancer less":                  {[]Node{node("balancer1"), node("balancer2"), node("balancer3", removed, leads)}, nil, "remove balancer3 (balancer1 balancer2), take over balancer1 (balancer2), take over balancer2 (balancer1)"},
		"a balancer's address":             {[]Node{node("balancer1", leads), node("balancer2", moved), node("web1")}, nil, "stop balancer2 (balancer1), take over balancer1, take over web1, replace balancer2 (balancer1)"},
		"a balancer's address, half-way":   {[]Node{node("balancer1", leads, done), node("balancer2", moved, off), node("web1")}, nil, "take over web1, replace balancer2 (balancer1)"},
		"members more": {[]Node{node("redis1", leads), node("redis2"), node("redis3"), node("redis4", added), node("redis5", added)}, nil,
			"take over redis2 (redis3 redis1), take over redis3 (redis2 redis1), take over redis1 (redis2 redis3), " +
				"add redis4 (redis1 redis2 redis3) who agree, add redis5 (redis1 redis2 redis3) who agree"},
		"members more, half-way": {[]Node{node("redis1", done, leads), node("redis2", done), node("redis3", done), node("redis4", added, running), node("redis5", added)}, nil,
			"add redis5 (redis1 redis2 redis3 redis4) who agree"},
		"members less": {[]Node{node("redis1"), node("redis2"), node("redis3"), node("redis4", removed, leads), node("redis5", removed)}, nil,
			"take over redis1 (redis2 redis3 redis4 redis5), take over redis2 (redis1 redis3 redis4 redis5), take over redis3 (redis1 redis2 redis4 redis5), " +
				"remove redis4 (redis1 redis2 redis3) who agree, remove redis5 (redis1 redis2 redis3) who agree"},
		"members less, one is off already": {[]Node{node("redis1", done), node("redis2", done), node("redis3"), node("redis4", removed, off), node("redis5", removed)}, nil,
			"take over redis3 (redis1 redis2 redis5), remove redis5 (redis1 redis2 redis3) who agree"},
		"a member for another": {[]Node{node("percona1"), node("percona2"), node("percona3", removed), node("percona4", added)}, nil,
			"take over percona1 (percona2 percona3), take over percona2 (percona1 percona3), add percona4 (percona1 percona2) who agree, " +
				"remove percona3 (percona1 percona2) who agree"},
		"a member's address": {[]Node{node("percona1"), node("percona2", moved), node("percona3")}, nil,
			"take over percona1 (percona3 percona2), take over percona3 (percona1 percona2), replace percona2 (percona1 percona3) who agree"},
		"a member's address, before it is there": {[]Node{node("percona1", done), node("percona2", moved, off), node("percona3", done)}, nil,
			"replace percona2 (percona1 percona3) who agree"},
		"a member's place":                    {[]Node{node("redis1"), node("redis2", swapped), node("redis3")}, nil, "take over redis1 (redis2 redis3), take over redis2 (redis1 redis3), take over redis3 (redis1 redis2)"},
		"all members":                         {[]Node{node("web1"), node("redis1", removed), node("redis2", removed), node("redis3", removed)}, nil, "take over web1, remove redis1, remove redis2, remove redis3"},
		"another virtual address":             {[]Node{node("balancer1", leads, apart, mustReplace), node("balancer2", apart, mustReplace)}, nil, "stop balancer2 (balancer1), replace balancer1, replace balancer2 (balancer1)"},
		"another virtual address, stopped":    {[]Node{node("balancer1", leads, apart, mustReplace), node("balancer2", off)}, nil, "replace balancer1, replace balancer2 (balancer1)"},
		"another virtual address, half-way":   {[]Node{node("balancer1", done), node("balancer2", off)}, nil, "replace balancer2 (balancer1)"},
		"another virtual address, it was off": {[]Node{node("balancer1", done, unready), node("balancer2", off)}, nil, "replace balancer2 (balancer1)"},
	} {
		steps, err := Plan(State{Roles: reference, Nodes: c.nodes, Without: c.without})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := brief(steps); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// Nodes of roles that do not use each other change at the same time, and those that lead alone.
func TestPlanRounds(t *testing.T) {
	edit := func(pairs ...any) map[string]func(*Node) {
		all := map[string]func(*Node){}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i].(string)] = pairs[i+1].(func(*Node))
		}
		return all
	}
	clients := []Node{node("web1", restarts), node("web2", restarts), node("backend1", restarts), node("backend2", restarts)}
	for name, c := range map[string]struct {
		nodes []Node
		want  string // the nodes of each round
	}{
		"all":                     {storage(nil), "glusterfs1 redis1 percona1, glusterfs2 redis2 percona2, glusterfs3 redis3 percona3"},
		"some lead":               {storage(edit("redis1", leads, "percona3", leads)), "glusterfs1 redis2 percona1, glusterfs2 redis3 percona2, glusterfs3, redis1, percona3"},
		"one is done":             {storage(edit("glusterfs1", done, "glusterfs2", done, "glusterfs3", done)), "redis1 percona1, redis2 percona2, redis3 percona3"},
		"one is not ready":        {storage(edit("percona2", unready)), "glusterfs1 redis1 percona2, glusterfs2 redis2 percona1, glusterfs3 redis3 percona3"},
		"another is not ready":    {storage(edit("percona1", func(n *Node) { done(n); unready(n) })), "glusterfs1 redis1, glusterfs2 redis2, glusterfs3 redis3, percona2, percona3"},
		"one is replaced":         {storage(edit("redis1", mustReplace)), "glusterfs1 percona1, glusterfs2 percona2, glusterfs3 percona3, redis1, redis2, redis3"},
		"the clients come first":  {append(clients, storage(nil)...), "web1, web2, backend1, backend2, glusterfs1 redis1 percona1, glusterfs2 redis2 percona2, glusterfs3 redis3 percona3"},
		"a role through another":  {[]Node{node("backend1"), node("backend2"), node("redis1"), node("redis2"), node("redis3")}, "backend1, backend2, redis1, redis2, redis3"},
		"only filters":            {[]Node{node("web1", quiet), node("web2", quiet), node("backend1", quiet), node("backend2", quiet), node("redis1", quiet), node("redis2", quiet), node("redis3", quiet)}, "web1 backend1 redis1, web2 backend2 redis2, redis3"},
		"filters before daemons":  {[]Node{node("web1", quiet), node("web2", quiet), node("backend1", quiet), node("backend2", quiet), node("redis1"), node("redis2"), node("redis3", quiet)}, "web1 backend1, web2 backend2, redis1, redis2, redis3"},
		"filters after daemons":   {[]Node{node("web1"), node("web2", quiet), node("backend1", quiet), node("backend2", quiet), node("redis1", done)}, "web1, web2 backend1, backend2"},
		"a majority must be left": {[]Node{node("glusterfs1", data, restarts), node("glusterfs2", data, same), node("percona1", data, restarts), node("percona2", data, same)}, "glusterfs1, percona1"},
	} {
		steps, err := Plan(State{Roles: reference, Nodes: c.nodes})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := ""
		for i, s := range steps {
			switch {
			case i > 0 && s.Round == steps[i-1].Round:
				got += " "
			case i > 0:
				got += ", "
			}
			got += s.Node
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// What a plan says is what an operator agrees to.
func TestPlanSays(t *testing.T) {
	restarts := func(n *Node) { n.Takeover.Stop, n.Takeover.Reload = []string{"nginx.service"}, []string{"x.service"} }
	steps, err := Plan(State{Roles: reference, Nodes: []Node{node("balancer1", leads), node("web1", restarts), node("web2", removed)}})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, s := range steps {
		said = append(said, fmt.Sprintf("%s: %s [%s]", s.Node, strings.Join(s.Why, "; "), strings.Join(s.Notes, "; ")))
	}
	want := []string{
		"balancer1: /etc/f changed [it holds the virtual address]",
		"web1: /etc/f changed [restarts nginx.service; reloads x.service; no other node of web works meanwhile: there is an outage until it is ready again]",
		"web2: the spec no longer has it [its machine is turned off; imagegen down web2 removes its disks, its seed and its key]",
	}
	if !slices.Equal(said, want) {
		t.Errorf("said\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
}

func TestPlanRefuses(t *testing.T) {
	redis := []Node{node("redis1"), node("redis2"), node("redis3")}
	all := append(slices.Clone(reference), Role{Name: "store", Quorum: true}, Role{Name: "share", Quorum: true, Joint: true, Lone: true})
	store := []Node{node("store1"), node("store2")}
	other := func(n *Node) { n.Is.Role = "backend" }
	for name, c := range map[string]struct {
		nodes   []Node
		without []string
		byHand  bool
		want    string
	}{
		"a fixed member more":     {append(slices.Clone(store), node("store3", added)), nil, false, "store3 cannot be added while the cluster runs: the members of store do not know how to take in another one"},
		"a fixed member less":     {append(slices.Clone(store), node("store3", removed)), nil, false, "store3 cannot be removed while the cluster runs: the other members of store would wait for it"},
		"its address":             {append(slices.Clone(store), node("store3", moved)), nil, false, "store3 cannot get another address while the members of store run: with --outage, all nodes of store are off until it has it"},
		"its place":               {append(slices.Clone(store), node("store3", swapped)), nil, false, "store3 cannot get another place among the nodes of store while the cluster runs"},
		"what only they may have": {[]Node{node("share1"), node("share2"), node("share3"), node("share4", removed), node("share5", removed, off)}, nil, false, "share4 and share5 cannot be removed: with the option quorum: fixed, one node may have files that no other node of share knows of; set quorum: auto first, in a change of its own"},
		"earlier agents":          {[]Node{node("redis1", earlier), node("redis2", earlier), node("redis3"), node("redis4", added), node("redis5", added)}, nil, false, "the agents of redis1 and redis2 do not know how the members of redis change: give them the image that imagegen build makes now, in a change of its own"},
		"too many members more":   {append(slices.Clone(redis), node("redis4", added), node("redis5", added), node("redis6", added)), nil, false, "only 3 of 3 members of redis would stay where they are, of 6 then, and a majority of both is needed: change fewer at a time"},
		"too many members less":   {append(slices.Clone(redis), node("redis4", removed), node("redis5", removed), node("redis6", removed)), nil, false, "only 3 of 6 members of redis would stay where they are, of 3 then, and a majority of both is needed: change fewer at a time"},
		"new members":             {[]Node{node("redis1", added), node("redis2", added), node("redis3", added)}, nil, false, "redis would be a new role: its members start only together, and nodes are added one at a time"},
		"two members' addresses":  {append(slices.Clone(redis), node("redis4", moved), node("redis5", moved)), nil, false, "redis4 and redis5 would get other addresses at the same time: change one at a time, or with --outage: all nodes of redis are then off until they have their new addresses"},
		"all addresses":           {[]Node{node("web1", moved), node("web2", moved)}, nil, false, "no node of web would keep its address, so none would serve meanwhile: change one at a time, or with --outage: all nodes of web are then off until they have their new addresses"},
		"most members' addresses": {[]Node{node("redis1"), node("redis2", moved), node("redis3", moved)}, nil, false, "redis2 and redis3 would get other addresses at the same time: change one at a time, or with --outage: all nodes of redis are then off until they have their new addresses"},
		"two addresses":           {[]Node{node("web1", moved), node("web2", moved), node("web3")}, nil, false, "web1 and web2 would get other addresses at the same time: change one at a time, or with --outage: all nodes of web are then off until they have their new addresses"},
		"all nodes are new":       {[]Node{node("web1", removed), node("web2", added)}, nil, false, "no node of web would keep its address, so none would serve meanwhile: change one at a time"},
		"another role":            {[]Node{node("web1", other)}, nil, false, "web1 was a web and would become a backend: give the new node another name"},
		"given up, and answers":   {[]Node{node("web1"), node("web2")}, []string{"web2"}, false, "web2 answers, so it cannot be given up: leave out --without web2"},
		"given up, and unknown":   {[]Node{node("web1")}, []string{"web9"}, false, "there is no node web9 that could be given up"},
		"no effect":               {[]Node{node("web1", useless), node("web2", useless)}, nil, false, "accounts are not renamed"},
		"no majority":             {[]Node{node("redis1"), node("redis2"), node("redis3", silent)}, []string{"redis3"}, false, "without redis3, redis would have no majority while redis2 changes"},
		"apart, by hand":          {[]Node{node("balancer1", leads), node("balancer2", apart)}, nil, true, "another virtual address; without a provider, turn off the others of balancer and make the machines of all anew"},
	} {
		_, err := Plan(State{Roles: all, Nodes: c.nodes, Without: c.without, ByHand: c.byHand})
		var refused *Refused
		if !errors.As(err, &refused) || !slices.Equal(refused.Reasons, []string{c.want}) {
			t.Errorf("%s:\n got %v\nwant %s", name, err, c.want)
		}
	}
}

// With the operator's consent, the nodes of a role get other addresses while all of them are off.
func TestPlanOutage(t *testing.T) {
	all := func(edits ...func(*Node)) (nodes []Node) {
		for _, name := range []string{"balancer1", "balancer2", "web1", "glusterfs1", "backend1", "databalancer1", "redis1", "redis2", "redis3", "percona1"} {
			nodes = append(nodes, node(name, edits...))
		}
		return nodes
	}
	made := func(n *Node) { silent(n); n.Made = true }
	anew := func(n *Node) { // it runs at its new address
		n.Before, n.Was = n.Was, n.Is
		done(n)
	}
	const stops = "stop balancer1, with that stop balancer2, stop web1, stop backend1, stop glusterfs1, stop databalancer1, stop redis1, with that stop redis2, with that stop redis3, stop percona1"
	const makes = "replace percona1, with that replace redis1, with that replace redis2, with that replace redis3, with that replace databalancer1, with that replace glusterfs1, " +
		"with that replace backend1, with that replace web1, with that replace balancer1, with that replace balancer2"
	for name, c := range map[string]struct {
		nodes     []Node
		without   []string
		elsewhere bool
		want      string
	}{
		"all":              {all(moved), nil, true, stops + ", " + makes},
		"all, in one net":  {all(moved), nil, false, stops + ", " + makes},
		"all are off":      {all(moved, off), nil, true, makes},
		"all are made":     {all(moved, made), nil, true, "wait balancer1, with that wait balancer2, wait web1, wait backend1, wait glusterfs1, wait databalancer1, wait redis1, with that wait redis2, with that wait redis3, wait percona1"},
		"all are done":     {all(moved, anew), nil, true, ""},
		"all out of reach": {all(moved, silent), nil, true, stops + ", " + makes},
		"one role, when its users have changed": {[]Node{node("backend1"), node("databalancer1"), node("redis1", moved, leads), node("redis2", moved), node("redis3", moved), node("percona1")}, nil, false,
			"take over backend1, take over databalancer1, stop redis1, with that stop redis2, with that stop redis3, replace redis1, with that replace redis2, with that replace redis3, take over percona1"},
		"two of three": {[]Node{node("redis1", moved), node("redis2", moved), node("redis3")}, nil, false,
			"stop redis1, with that stop redis2, with that stop redis3, replace redis1, with that replace redis2, with that replace redis3"},
		"one of three whose members are fixed": {[]Node{node("store1"), node("store2"), node("store3", moved)}, nil, false,
			"stop store1, with that stop store2, with that stop store3, replace store1, with that replace store2, with that replace store3"},
		"one of three needs none":                         {[]Node{node("redis1", moved), node("redis2"), node("redis3")}, nil, false, "take over redis2 (redis3 redis1), take over redis3 (redis2 redis1), replace redis1 (redis2 redis3) who agree"},
		"in another network, one that could stay as well": {[]Node{node("web1", moved), node("web2")}, nil, true, "stop web1, with that stop web2, replace web1, with that replace web2"},
		"half-way":                      {[]Node{node("redis1", moved, anew), node("redis2", moved, off), node("redis3", moved, made)}, nil, true, "replace redis2, wait redis3"},
		"half-way, one is where it was": {[]Node{node("redis1", moved, anew), node("redis2", moved), node("redis3", moved, off)}, nil, true, "stop redis2, replace redis2, with that replace redis3"},
		"the last is off":               {[]Node{node("percona1", moved, anew), node("percona2", moved, anew), node("percona3", moved, off)}, nil, false, "replace percona3"},
		"another web instead":           {[]Node{node("web1", moved), node("web2", removed), node("web3", added)}, nil, true, "stop web1, remove web2, replace web1, with that add web3"},
		"one is given up":               {[]Node{node("redis1", moved), node("redis2", moved), node("redis3", moved, silent)}, []string{"redis3"}, true, "stop redis1, with that stop redis2, replace redis1, with that replace redis2"},
	} {
		steps, err := Plan(State{Roles: append(slices.Clone(reference), Role{Name: "store", Quorum: true}), Nodes: c.nodes, Without: c.without, Outage: true, Elsewhere: c.elsewhere})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := brief(steps); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}

	to := func(other string) func(*Node) { return func(n *Node) { n.Is.IP = "ip-" + other } }
	for name, c := range map[string]struct {
		state State
		want  string
	}{
		"addresses go round": {State{Outage: true, Nodes: []Node{node("redis1", to("redis2")), node("redis2", moved), node("redis3", moved)}},
			"redis1 would get the address ip-redis2 of redis2, and what the data of redis say of that could mean either: in two changes, with another address in between"},
		"other members, too": {State{Outage: true, Nodes: []Node{node("redis1", moved), node("redis2", moved), node("redis3", moved), node("redis4", added)}},
			"members of redis would be added or removed, and others get new addresses in an outage: one after the other, in two changes"},
		"without a majority": {State{Outage: true, Without: []string{"redis2", "redis3"}, Nodes: []Node{node("redis1", moved), node("redis2", moved, silent), node("redis3", moved, silent)}},
			"without redis2 and redis3, the others of redis would be no majority after the outage"},
		"earlier agents": {State{Outage: true, Nodes: []Node{node("redis1", moved, earlier), node("redis2", moved), node("redis3", moved)}},
			"the agents of redis1 do not know how the members of redis change: give them the image that imagegen build makes now, in a change of its own"},
		"another network, unasked": {State{Elsewhere: true, Nodes: []Node{node("web1", moved), node("glusterfs1", moved), node("redis1", moved), node("redis2", moved), node("redis3", moved)}},
			"the cluster moves to another network, and nodes in one do not reach those in the other: --outage turns all nodes off, and on again in the new one"},
		"a provider that cannot": {State{Outage: true, Elsewhere: true, Tied: "no", Nodes: []Node{node("web1", moved)}}, "no"},
	} {
		c.state.Roles = reference
		_, err := Plan(c.state)
		var refused *Refused
		if !errors.As(err, &refused) || !slices.Equal(refused.Reasons, []string{c.want}) {
			t.Errorf("%s:\n got %v\nwant %s", name, err, c.want)
		}
	}
}

// Whatever is left of an outage after interruptions: no node is made anew while one of those that are to be off runs with its old seed, and
// none is turned off before those that connect to it. In the end all run their new seeds.
func TestPlansOfAnyOutage(t *testing.T) {
	rounds := 0
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 16))
		s := State{Roles: reference, Outage: true, Elsewhere: random.IntN(2) == 0}
		for _, role := range reference {
			together := s.Elsewhere || random.IntN(2) == 0
			for i := range 3 {
				n := node(fmt.Sprint(role.Name, i+1), restarts)
				if together {
					moved(&n)
				}
				for _, e := range []func(*Node){off, silent, unready} {
					if together && random.IntN(6) == 0 {
						e(&n)
					}
				}
				s.Nodes = append(s.Nodes, n)
			}
		}
		steps, err := Plan(s)
		for limit := 0; err == nil && len(steps) > 0; limit++ {
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("history %d: %s\nplan: %s", seed, fmt.Sprintf(format, args...), brief(steps))
			}
			if limit > 200 {
				fail("no end")
			}
			round := slices.DeleteFunc(slices.Clone(steps), func(s Step) bool { return s.Round > 1 })
			random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
			for _, step := range round[:1+random.IntN(len(round))] {
				n := &s.Nodes[slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == step.Node })]
				for _, o := range s.Nodes {
					old := o.Was.IP != o.Is.IP && !o.Off && !o.done()
					switch {
					case !step.outage:
					case step.anew() && old:
						fail("%s is made anew while %s runs where it was", n.Name, o.Name)
					case step.Action == Stop && old && slices.Contains(inFront[n.Role], o.Role):
						fail("%s is turned off before %s", n.Name, o.Name)
					}
				}
				if step.outage && len(round) > 1 {
					rounds++
				}
				carryOut(&s, step)
				if step.anew() {
					n.Before, n.Was = cmp.Or(n.Before, n.Was), n.Is
				}
			}
			steps, err = Plan(s)
		}
		if err != nil {
			t.Fatalf("history %d: %v", seed, err)
		}
		if i := slices.IndexFunc(s.Nodes, func(n Node) bool { return !n.done() }); i >= 0 {
			t.Fatalf("history %d: in the end, %+v", seed, s.Nodes[i])
		}
	}
	if rounds < 200 {
		t.Errorf("%d rounds of several steps: too few to mean anything", rounds)
	}
}

// randomState returns a cluster in the middle of anything, and what shall become of it.
func randomState(r *rand.Rand) State {
	s := State{Roles: slices.Clone(reference)}
	for i, role := range s.Roles {
		s.Roles[i].Lone = role.Name == "glusterfs" && r.IntN(4) == 0
	}
	for _, role := range s.Roles {
		count := 1 + r.IntN(4)
		if role.Quorum {
			count = 3 + 2*r.IntN(2)
		}
		leader := r.IntN(count)
		setApart := role.VIP && r.IntN(6) == 0
		for i := range count {
			n := node(fmt.Sprint(role.Name, i+1))
			for _, e := range []struct {
				edit func(*Node)
				one  int // in so many
			}{{restarts, 2}, {same, 3}, {image, 6}, {mustReplace, 4}, {noTakeover, 8}, {unready, 8}} {
				if r.IntN(e.one) == 0 {
					e.edit(&n)
				}
			}
			n.Is.Data = role.Quorum
			n.Quiet = n.Takeover != nil && len(n.Takeover.Stop) == 0 && r.IntN(2) == 0
			if i == leader && n.Ready {
				leads(&n)
			}
			if setApart {
				apart(&n)
				mustReplace2(&n)
			}
			one := 10
			if role.Joint && count > 3 && i > 2 {
				one = 5
			}
			if !role.Quorum || role.Joint && i > 1 {
				switch r.IntN(one) {
				case 0:
					moved(&n)
					n.Is.Seed = "new"
				case 1:
					removed(&n)
				case 2:
					if !role.Quorum { // there were never two members
						added(&n)
					}
				}
			}
			s.Nodes = append(s.Nodes, n)
		}
		if role.Joint && r.IntN(3) == 0 {
			for i := range 1 + r.IntN(2) {
				s.Nodes = append(s.Nodes, node(fmt.Sprint(role.Name, count+1+i), added, data))
			}
		}
	}
	return s
}

// mustReplace2 is mustReplace of a node that may have no plan.
func mustReplace2(n *Node) {
	if n.Is != nil {
		n.Is.Seed, n.Takeover = "new", &facts.Plan{Replace: []string{"another virtual address"}}
	}
}

// carryOut changes the state as a step does that succeeds.
func carryOut(s *State, step Step) {
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Name != step.Node {
			continue
		}
		switch step.Action {
		case Stop, Remove:
			off(n)
			n.Leads = ""
		default:
			n.Off, n.Silent, n.Ready, n.Joint, n.Seed, n.Image = false, false, true, true, n.Is.Seed, n.Is.Image
		}
	}
}

// inFront are the roles through which visitors come to each role that may share a round.
var inFront = map[string][]string{
	"glusterfs": {"balancer", "web", "backend"}, "databalancer": {"balancer", "web", "backend"},
	"redis": {"balancer", "web", "backend", "databalancer"}, "percona": {"balancer", "web", "backend", "databalancer"},
}

// together says why the steps of a round must not be carried out at the same time; empty: they may.
func together(s State, round []Step) string {
	roles := map[string]bool{}
	lost := map[string]bool{}
	for i, step := range round {
		n := s.Nodes[slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == step.Node })]
		lost[n.Name] = true
		ready := 0
		for _, o := range s.Nodes {
			if slices.Contains(inFront[n.Role], o.Role) && o.stays() && !o.done() && !(n.Quiet && o.Quiet) {
				return fmt.Sprintf("%s changes before %s, which comes before it", n.Name, o.Name)
			}
			if o.Role == n.Role && o.Name != n.Name && o.Ready {
				ready++
			}
			if i > 0 && slices.Contains(step.Needs, o.Name) && !o.Ready {
				return fmt.Sprintf("%s would wait for %s while others change", n.Name, o.Name)
			}
		}
		switch {
		case step.Action != TakeOver:
			return fmt.Sprintf("%s of %s beside others", step.Action, n.Name)
		case roles[n.Role]:
			return "two nodes of " + n.Role
		case !n.Quiet && inFront[n.Role] == nil || slices.ContainsFunc(round, func(o Step) bool {
			return slices.Contains(inFront[n.Role], o.Role) && !(n.Quiet && s.node(o.Node).Quiet)
		}):
			return n.Role + " uses, or is used by, another of the round"
		case len(n.Takeover.Stop) > 0 && n.Leads != "":
			return n.Name + " leads"
		case len(n.Takeover.Stop) > 0 && ready == 0 && i > 0:
			return "no node of " + n.Role + " would be left"
		}
		roles[n.Role] = true
	}
	voters, left := 0, 0
	for _, n := range s.Nodes {
		if n.Is != nil && n.Is.Data {
			if voters++; !n.Off && !n.Silent && !lost[n.Name] {
				left++
			}
		}
	}
	if 2*left <= voters {
		return fmt.Sprintf("%d of %d voters would be left", left, voters)
	}
	return ""
}

// Whatever the cluster and the change: rounds one at a time end with every node running its new seed, never take a role below its
// majority or below one node that works, where there is another, and newcomers come when all others know them. After each round
// so many steps less are left as were carried out, so whoever goes on after an interruption comes to the same end.
func TestPlansOfAnyCluster(t *testing.T) {
	const histories = 5_000
	planned, refused, joint, shared := 0, 0, 0, 0
	for seed := range uint64(histories) {
		random := rand.New(rand.NewPCG(seed, 15))
		s := randomState(random)
		steps, err := Plan(s)
		if err != nil {
			refused++
			continue
		}
		if len(steps) > 0 {
			planned++
		}
		if slices.ContainsFunc(steps, func(s Step) bool { return s.Agree != nil }) {
			joint++
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("history %d: %s\nplan: %s", seed, fmt.Sprintf(format, args...), brief(steps))
		}
		arrived, removal := false, false
		for len(steps) > 0 {
			round := slices.Clone(steps)
			if next := slices.IndexFunc(steps, func(s Step) bool { return s.Round > 1 }); next >= 0 {
				round = round[:next]
			}
			if len(round) > 1 {
				shared++
				if why := together(s, round); why != "" {
					fail("in one round: %s", why)
				}
			}
			// An interruption may leave any of them out.
			random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
			round = round[:1+random.IntN(len(round))]
			for _, step := range round {
				i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == step.Node })
				n := s.Nodes[i]
				role := s.Roles[slices.IndexFunc(s.Roles, func(r Role) bool { return r.Name == n.Role })]
				if step.Action == Await {
					fail("it waits for a node that is known")
				}
				// The step begins only when these are ready.
				for j := range s.Nodes {
					if slices.Contains(step.Needs, s.Nodes[j].Name) {
						if s.Nodes[j].Off {
							fail("%s waits for %s, which is off", step.Node, s.Nodes[j].Name)
						}
						s.Nodes[j].Ready = true
					}
				}
				ready, others := 0, 0
				// Of the members before the change, and of all that count now, which are newcomers as well once they are there and no
				// removed ones that are off: how many there are, and how many others are ready.
				var members, work [2]int
				complete := true // all that stay are what they should be, and ready
				for _, o := range s.Nodes {
					if o.Role != n.Role {
						continue
					}
					in := [2]bool{o.Was != nil, o.Was != nil && !(o.Is == nil && o.Off) || o.done()}
					for g := range in {
						if in[g] {
							members[g]++
						}
						if in[g] && o.Ready && o.Name != n.Name {
							work[g]++
						}
					}
					complete = complete && (o.Is == nil || o.done() && o.Ready)
					if o.Name != n.Name && o.stays() {
						others++
						if o.Ready {
							ready++
						}
					}
				}
				if leaves := n.Is == nil; role.Quorum && leaves && work[1] > 0 {
					// The agents wait until all others work without it, and forget who were members before.
					if !complete || !slices.Equal(step.Agree, present(n, s.of(n.Role))) {
						fail("%s leaves before the others work without it", n.Name)
					}
				} else if role.Quorum && !leaves && (n.Ready || n.arrives()) {
					for g := range members {
						if work[g] < members[g]/2+1 {
							fail("%s %s leaves %d of %d members of %s", step.Action, n.Name, work[g], members[g], n.Role)
						}
					}
				}
				if role.Lone && n.Is == nil && others > 0 {
					fail("%s leaves, and may have what no other knows of", n.Name)
				}
				if role.Joint && n.arrives() && !slices.Equal(step.Agree, present(n, s.of(n.Role))) {
					fail("%s comes before the others agree that it is a member", n.Name)
				}
				if n.Ready && n.stays() && others > 0 && ready == 0 && n.Apart == "" {
					fail("%s %s leaves no node of %s", step.Action, n.Name, n.Role)
				}
				switch {
				case n.Is == nil:
					removal = removal || !role.VIP
				case n.arrives() && step.Action != Stop:
					arrived = true
					for _, o := range s.Nodes {
						if o.stays() && !o.done() {
							fail("%s comes before %s knows it", n.Name, o.Name)
						}
					}
					if removal {
						fail("%s comes after a removal", n.Name)
					}
				case arrived || removal:
					fail("%s changes after newcomers or removals", n.Name)
				}
				// Two that do not know each other, or whose settings differ, would both hold the virtual address.
				if role.VIP {
					for _, o := range s.Nodes {
						if o.Role != n.Role || o.Name == n.Name || o.Off || step.Action == Stop || step.Action == Remove {
							continue
						}
						if n.Apart != "" && n.stays() && o.stays() && !o.done() {
							fail("%s of %s beside %s with other settings", step.Action, n.Name, o.Name)
						}
						if n.stays() && o.Was != nil && !o.stays() && !(o.Is != nil && o.done()) {
							fail("%s of %s, which would no longer know %s", step.Action, n.Name, o.Name)
						}
					}
				}
				carryOut(&s, step)
			}
			rest, err := Plan(s)
			if err != nil {
				fail("after %s: %v", brief(round), err)
			}
			if len(rest) != len(steps)-len(round) { // the order may be another, because others are ready or lead now
				fail("after %s the plan is %s", brief(round), brief(rest))
			}
			steps = rest
		}
		for _, n := range s.Nodes {
			if n.Is != nil && !n.done() || n.Is == nil && !n.Off {
				fail("in the end, %s is %+v", n.Name, n)
			}
		}
	}
	t.Logf("%d plans, %d of them with other members where a majority decides, %d refused, of %d, and %d rounds of several steps", planned, joint, refused, histories, shared)
	if planned < histories/4 || joint < histories/10 || refused < histories/100 || shared < histories/10 {
		t.Errorf("%d plans, %d with other members, %d refused, %d rounds of several steps: too few of one kind to mean anything", planned, joint, refused, shared)
	}
}

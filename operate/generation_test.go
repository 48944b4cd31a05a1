package operate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imagegen/cluster"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
	"imagegen/cluster/secrets"
)

// voters gives the fake agents acceptors.
type voters struct {
	*fakes
	mu      sync.Mutex
	states  map[string]agree.State
	running map[string]facts.Generation
	older   map[string]bool // agents of an earlier imagegen
}

func newVoters(t *testing.T, nodes int) *voters {
	v := &voters{fakes: newFakes(t, nodes), states: map[string]agree.State{}, running: map[string]facts.Generation{}, older: map[string]bool{}}
	v.mux.HandleFunc(facts.GenerationPath, func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		name := r.TLS.ServerName
		state, running := v.states[name], v.running[name]
		if v.older[name] {
			http.NotFound(w, r)
			return
		}
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			var request agree.Request
			if err := agree.Decode(body, &request, facts.OpenGeneration); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			var reply agree.Reply
			v.states[name], reply = state.Handle(request)
			json.NewEncoder(w).Encode(reply)
			return
		}
		if digest := r.FormValue("digest"); digest != "" {
			all := []*facts.Generation{&running, state.Known}
			if state.Accepted != nil {
				all = append(all, &state.Accepted.Generation)
			}
			for _, g := range all {
				if g != nil && g.Digest == digest {
					w.Write(g.Signed)
					return
				}
			}
			http.NotFound(w, r)
			return
		}
		s := state.Status()
		s.Node = name
		if running.Number > 0 {
			m, _ := running.Member(name)
			s.Seed, s.Running = m.Seed, agree.Name(&running)
		}
		json.NewEncoder(w).Encode(s)
	})
	return v
}

// make makes a generation of the spec's nodes. The content of their seeds differs with what.
func (v *voters) make(t *testing.T, keys *secrets.Secrets, number int, parent, what string) facts.Generation {
	t.Helper()
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: "otus", ClusterID: keys.ClusterID, Number: number, Parent: parent, Secrets: keys.Revision}
	for _, n := range v.spec.Nodes() {
		m.Members = append(m.Members, facts.Member{Name: n.Name, Role: n.Role, IP: n.IP.String(), Index: n.Index, Seed: facts.Digest([]byte(n.Name + what)), Facts: facts.Digest(nil)})
	}
	signed, err := keys.Sign(m)
	if err != nil {
		t.Fatal(err)
	}
	g, err := facts.OpenGeneration(signed)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// found describes what Generation has found.
func found(g Generations) string {
	said := "none"
	if g.InUse != nil {
		said = fmt.Sprint(g.InUse.Number)
	}
	if g.Uncertain != nil {
		said += " (" + g.Uncertain.Error() + ")"
	}
	for _, n := range g.Nodes {
		if n.Behind != "" || n.Error != "" {
			said += fmt.Sprintf("; %s: %s%s", n.Node, n.Behind, n.Error)
		}
	}
	return said
}

func TestGeneration(t *testing.T) {
	v := newVoters(t, 3)
	cl := v.cluster(t, v.keys)
	look := func(want string, without ...string) Generations {
		t.Helper()
		g, err := cl.Generation(t.Context(), without)
		if err != nil {
			t.Fatal(err)
		}
		if got := found(g); got != want {
			t.Errorf("found %s\n want %s", got, want)
		}
		return g
	}
	none := "no generation is in use: too few nodes run from seeds that belong to one"
	v.older["web3"] = true
	look("none (" + none + "); web3: its agent is of an imagegen without generations")
	v.older["web3"] = false
	one := v.make(t, v.keys, 1, "", "a")
	for _, n := range v.spec.Nodes() {
		v.states[n.Name] = agree.State{Fence: new(int)}
		v.running[n.Name] = one
	}
	delete(v.running, "web3")
	look("1; web3: it runs a seed of no generation, and generation 1 is in use")
	v.running["web3"] = one
	v.gone["10.1.0.2"] = true
	silent := "these nodes do not answer and may run a later generation: web3"
	look("1 (" + silent + "); web3: no route to host")
	look("1; web3: no route to host", "web3")
	delete(v.gone, "10.1.0.2")

	two := v.make(t, v.keys, 2, one.Digest, "b")
	if err := cl.Propose(t.Context(), look("1"), two, false); err != nil {
		t.Fatal(err)
	}
	behind := ": it runs generation 1, and generation 2 is in use"
	look("2; web1" + behind + "; web2" + behind + "; web3" + behind)

	// The spec has moved a node and dropped another; both are found where they are.
	v.running["web1"], v.running["web2"] = two, two
	v.spec.Roles[0].Nodes = v.spec.Roles[0].Nodes[:2]
	v.spec.Roles[0].Nodes[0].IP = netip.MustParseAddr("10.1.0.9")
	v.gone["10.1.0.9"] = true
	g := look("2; web3" + behind)
	if g.Nodes[0].Node != "web1" || g.Nodes[0].Address.String() != "10.1.0.0" || len(g.Nodes) != 3 {
		t.Errorf("%+v", g.Nodes)
	}
	// Nodes vote where they are, also if the generation in use has moved them already. The next operator goes on with that.
	three := v.make(t, v.keys, 3, two.Digest, "c")
	if err := cl.Propose(t.Context(), g, three, false); err != nil {
		t.Fatal(err)
	}
	v.gone["10.1.0.2"] = true
	behind = ": it runs generation 2, and generation 3 is in use"
	g = look("3; web1" + behind + "; web2" + behind + "; web3: no route to host")
	if err := cl.Propose(t.Context(), g, v.make(t, v.keys, 4, three.Digest, "d"), false); err != nil {
		t.Error(err)
	}
	v.gone["10.1.0.0"] = true
	if g, err := cl.Generation(t.Context(), nil); err != nil || g.InUse.Number != 4 {
		t.Errorf("%s, %v", found(g), err)
	} else if err := cl.Propose(t.Context(), g, v.make(t, v.keys, 5, g.InUse.Digest, "e"), false); err == nil || !strings.Contains(err.Error(), "not answering: web1") {
		t.Errorf("only web2 is there: %v", err)
	}
}

func TestPropose(t *testing.T) {
	v := newVoters(t, 3)
	cl := v.cluster(t, v.keys)
	one := v.make(t, v.keys, 1, "", "a")
	for _, n := range v.spec.Nodes() {
		v.states[n.Name] = agree.State{Fence: new(int)}
		v.running[n.Name] = one
	}
	on := func(g facts.Generation) Generations { return Generations{InUse: &g} }
	two, other := v.make(t, v.keys, 2, one.Digest, "b"), v.make(t, v.keys, 3, one.Digest, "c")

	v.gone["10.1.0.0"], v.gone["10.1.0.1"] = true, true
	err := cl.Propose(t.Context(), on(one), two, false)
	if want := "2 of 3 votes are needed for a new generation; not answering: web1 and web2 (no route to host)"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	v.gone = map[string]bool{}

	// A majority has accepted it before its operator went away: the next one completes that.
	vote := agree.Request{Step: agree.Accept, Ballot: agree.Ballot{Round: 7, Proposer: "p"}, Parent: &one, Value: &other}
	for _, name := range []string{"web2", "web3"} {
		v.states[name], _ = v.states[name].Handle(vote)
	}
	var chosen *OtherChosen
	if err := cl.Propose(t.Context(), on(one), two, false); !errors.As(err, &chosen) || chosen.Generation.Digest != other.Digest {
		t.Errorf("%v", err)
	}
	var late *agree.Behind
	if err := cl.Propose(t.Context(), on(one), two, false); !errors.As(err, &late) || late.InUse.Digest != other.Digest {
		t.Errorf("%v", err)
	}
	// Older secrets.
	next := v.make(t, v.keys, 4, other.Digest, "d").Manifest
	next.Secrets++
	signed, err := v.keys.Sign(next)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := facts.OpenGeneration(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Propose(t.Context(), on(other), newer, false); err != nil {
		t.Error(err)
	}
	if err := cl.Propose(t.Context(), on(newer), v.make(t, v.keys, 5, newer.Digest, "e"), false); err == nil || !strings.Contains(err.Error(), "get the newer copy of the folder secrets") {
		t.Errorf("%v", err)
	}

	// Nodes that may have forgotten their votes do, when an operator says that he is alone.
	six := v.make(t, v.keys, 6, newer.Digest, "f").Manifest
	six.Secrets++
	if signed, err = v.keys.Sign(six); err != nil {
		t.Fatal(err)
	}
	last, err := facts.OpenGeneration(signed)
	if err != nil {
		t.Fatal(err)
	}
	v.states["web1"], v.states["web2"] = agree.State{}, agree.State{}
	if err := cl.Propose(t.Context(), on(newer), last, false); err == nil || !strings.Contains(err.Error(), "with new disks since the last generation, so that they may have forgotten a vote: web1 and web2") {
		t.Errorf("%v", err)
	}
	if err := cl.Propose(t.Context(), on(newer), last, true); err != nil {
		t.Error(err)
	}

	// What another cluster's authority has signed is not believed.
	strangers, err := secrets.Load(filepath.Join(t.TempDir(), "secrets"), &cluster.Spec{Cluster: "otus"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign := v.make(t, strangers, 9, last.Digest, "x")
	v.states["web1"] = agree.State{Fence: new(int), Known: &foreign}
	if g, err := cl.Generation(t.Context(), nil); err != nil || g.InUse != nil || g.Uncertain == nil {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestStatusOfGeneration(t *testing.T) {
	for want, g := range map[string]*facts.GenerationReport{
		"": {Number: 4, InUse: 4},
		"runs generation 3: generation 4 is in use":                 {Number: 3, InUse: 4, Behind: "generation 4 is in use"},
		"its seed belongs to no generation: generation 4 is in use": {InUse: 4, Behind: "generation 4 is in use"},
		"disk full": {Error: "disk full"},
	} {
		var s NodeStatus
		s.add(facts.NodeReport{Ready: true, Generation: g})
		if strings.Join(s.Warnings, "|") != want || s.Generation != g.Number {
			t.Errorf("%+v: %q", g, s.Warnings)
		}
	}
}

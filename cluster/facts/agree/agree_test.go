package agree

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"imagegen/cluster/facts"
	"imagegen/internal/generationtest"
)

// cast is a set of generations for tests, by name.
type cast map[string]facts.Generation

// generation makes a generation with members n1, n2, …, all with data disks.
func generation(number int, parent string, members ...string) facts.Generation {
	m := facts.Manifest{Version: facts.ManifestVersion, Cluster: "c", ClusterID: "6f1c0a52-8a6a-4c0e-9c1b-0123456789ab", Number: number, Parent: parent, Secrets: 1}
	for i, name := range members {
		m.Members = append(m.Members, facts.Member{Name: name, Role: "r", IP: fmt.Sprintf("10.0.0.%d", i+1), Index: i, Data: true,
			Seed: facts.Digest(fmt.Appendf(nil, "%s in %d", name, number)), Facts: facts.Digest([]byte(name))})
	}
	data, err := m.Encode()
	if err != nil {
		panic(err)
	}
	return facts.Generation{Manifest: m, Digest: facts.Digest(data)}
}

func (c cast) fetch(n Named) (facts.Generation, error) {
	for _, g := range c {
		if g.Digest == n.Digest {
			return g, nil
		}
	}
	return facts.Generation{}, errors.New("nobody has it")
}

func newCast() cast {
	c := cast{"1": generation(1, "", "n1", "n2", "n3")}
	c["2"] = generation(2, c["1"].Digest, "n2", "n3", "n4")
	c["2b"] = generation(2, c["1"].Digest, "n1", "n2", "n3", "n5")
	c["3"] = generation(3, c["2"].Digest, "n3", "n4", "n5")
	return c
}

// status describes an acceptor.
func (c cast) status(fence int, known, accepted string) Status {
	s := Status{Fence: &fence}
	if fence < 0 {
		s.Fence = nil
	}
	if known != "" {
		g := c[known]
		s.Known = Name(&g)
	}
	if accepted != "" {
		g := c[accepted]
		s.Accepted = &NamedVote{Ballot{1, "p"}, *Name(&g)}
	}
	return s
}

func TestFence(t *testing.T) {
	c := newCast()
	for _, x := range []struct {
		what, self, running string
		others              map[string]Status
		ok                  bool
		fence               int
	}{
		{"nobody has answered", "n1", "1", nil, false, 0},
		{"a new cluster, one silent", "n1", "1", map[string]Status{"n2": c.status(-1, "", "")}, false, 0},
		{"a new cluster, all there", "n1", "1", map[string]Status{"n2": c.status(-1, "", ""), "n3": c.status(-1, "", "")}, true, 0},
		{"one of two remembers", "n1", "1", map[string]Status{"n2": c.status(0, "1", "")}, false, 0},
		{"both remember", "n1", "1", map[string]Status{"n2": c.status(0, "1", ""), "n3": c.status(0, "1", "")}, true, 1},
		{"its own memory was lost before", "n1", "1", map[string]Status{"n2": c.status(4, "1", ""), "n3": c.status(0, "1", "")}, true, 4},
		// Generation 2 may have been chosen: then n4 decides on its successor, and must be asked as well.
		{"one has accepted a successor with others", "n2", "1", map[string]Status{"n1": c.status(0, "1", "2"), "n3": c.status(0, "1", "")}, false, 0},
		{"and its members have answered", "n2", "1", map[string]Status{"n1": c.status(0, "1", "2"), "n3": c.status(0, "1", ""), "n4": c.status(0, "2", "")}, true, 2},
		{"and one of them knows a successor", "n2", "1", map[string]Status{"n1": c.status(0, "1", "2"), "n3": c.status(0, "2", "3"), "n4": c.status(0, "2", "3")}, true, 3},
		{"it runs an old generation", "n3", "1", map[string]Status{"n1": c.status(0, "1", ""), "n2": c.status(0, "1", ""), "n4": c.status(0, "2", "")}, true, 2},
		{"it is no member of what is in use", "n1", "1", map[string]Status{"n2": c.status(0, "3", ""), "n3": c.status(0, "3", "")}, true, 3},
	} {
		fence, ok, err := Fence(x.self, c[x.running], x.others, c.fetch)
		if err != nil || ok != x.ok || ok && fence != x.fence {
			t.Errorf("%s: %d, %v, %v; want %d, %v", x.what, fence, ok, err, x.fence, x.ok)
		}
	}
}

// running describes a node that has never been asked for a vote.
func (c cast) running(name, seed, generation string) Status {
	g := c[generation]
	m, _ := c[seed].Member(name)
	s := Status{Seed: m.Seed, Running: Name(&g)}
	if generation == "" {
		s.Running = nil
	}
	return s
}

func TestInUse(t *testing.T) {
	c := newCast()
	old := generation(1, "", "n1", "n2", "n3")
	c["3same"] = generation(3, c["2"].Digest, "n1", "n2", "n3")
	for i := range 3 { // the seeds of 1
		c["3same"].Members[i].Seed = old.Members[i].Seed
	}
	for _, x := range []struct {
		what    string
		nodes   map[string]Status
		without []string
		want    string // a generation, or part of the error
	}{
		{"all run the first", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.running("n2", "1", "1"), "n3": c.running("n3", "1", "1")}, nil, "1"},
		{"one is silent", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.running("n2", "1", "1")}, nil, "do not answer and may run a later generation: n3"},
		{"and given up", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.running("n2", "1", "1")}, []string{"n3"}, "1"},
		{"one runs it", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.running("n2", "1", ""), "n3": {}}, nil, "1"},
		{"made before generations", map[string]Status{"n1": {Seed: "x"}, "n2": {Seed: "y"}, "n3": {}}, nil, "no generation is in use"},
		{"same seeds in a later one", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.running("n2", "1", "3same"), "n3": c.running("n3", "1", "1")}, nil, "3same"},
		{"one knows better", map[string]Status{"n1": c.running("n1", "1", "1"), "n2": c.status(0, "2", ""), "n3": c.running("n3", "1", "1")}, nil, "2"},
		{"accepted by one", map[string]Status{"n1": c.status(0, "1", "2"), "n2": c.status(0, "1", ""), "n3": c.status(0, "1", "")}, nil, "1"},
		{"accepted by a majority", map[string]Status{"n1": c.status(0, "1", "2"), "n2": c.status(0, "1", "2"), "n3": c.status(0, "1", "")}, nil, "2"},
		{"the voters are not its electorate", map[string]Status{"n4": c.status(0, "1", "2"), "n2": c.status(0, "1", "2")}, nil, "1"},
		{"two steps", map[string]Status{"n1": c.status(0, "1", "2"), "n2": c.status(0, "1", "2"), "n3": c.status(0, "2", "3"), "n4": c.status(0, "2", "3")}, nil, "3"},
		{"two of one number", map[string]Status{"n1": c.status(0, "2", ""), "n2": c.status(0, "2b", "")}, nil, "there are two generations 2"},
	} {
		g, err := InUse(x.nodes, x.without, c.fetch)
		switch want, ok := c[x.want]; {
		case ok && (err != nil || g.Digest != want.Digest):
			t.Errorf("%s: generation %d, %v; want %s", x.what, g.Number, err, x.want)
		case !ok && (err == nil || !strings.Contains(err.Error(), x.want)):
			t.Errorf("%s: generation %d, %v; want %s", x.what, g.Number, err, x.want)
		}
	}
	split := map[string]Status{"n1": {Fence: new(int)}}
	for i, v := range []NamedVote{{Ballot{1, "p"}, *Name(ptr(c["2"]))}, {Ballot{2, "p"}, *Name(ptr(c["2"]))}} {
		s := c.status(0, "1", "")
		s.Accepted = &v
		split[fmt.Sprintf("n%d", i+2)] = s
	}
	if g, err := InUse(split, nil, c.fetch); err != nil || g.Number != 1 {
		t.Errorf("one vote each for two ballots: generation %d, %v", g.Number, err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestFollows(t *testing.T) {
	parent := generation(4, "", "n1")
	parent.Secrets = 3
	for want, change := range map[string]func(*facts.Manifest){
		"":                      func(*facts.Manifest) {},
		"is of another cluster": func(m *facts.Manifest) { m.ClusterID = "x" },
		"was not made for":      func(m *facts.Manifest) { m.Parent = "" },
		"is older than":         func(m *facts.Manifest) { m.Number = 4 },
		"with revision 2 of":    func(m *facts.Manifest) { m.Secrets = 2 },
	} {
		m := generation(7, parent.Digest, "n1").Manifest
		m.Secrets = 3
		change(&m)
		if err := Follows(parent.Manifest, parent.Digest, m); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// TestDecode: what goes over the wire and to the disk comes back, and nothing that another authority has signed.
func TestDecode(t *testing.T) {
	authority := generationtest.New(t)
	member := generation(1, "", "n1").Members[0]
	one := authority.Sign(t, 1, "", member)
	two := authority.Sign(t, 2, one.Digest, member)
	foreign := generationtest.New(t).Sign(t, 2, one.Digest, member)
	s := State{Fence: new(int), Known: &one, Promised: Ballot{3, "p"}, Accepted: &Vote{Ballot{2, "q"}, two}}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := Decode(data, &back, authority.Verify); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(back); err != nil || !bytes.Equal(again, data) {
		t.Errorf("%s became %s (%v)", data, again, err)
	}
	for _, v := range []any{
		State{Known: &foreign}, State{Accepted: &Vote{Generation: foreign}}, Request{Step: Prepare, Parent: &foreign}, Request{Step: Chosen, Value: &foreign},
		Reply{Known: &foreign}, Reply{Accepted: &Vote{Generation: foreign}},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, into := range []interface{ generations() []*facts.Generation }{new(State), new(Request), new(Reply)} {
			if fmt.Sprintf("%T", into) == fmt.Sprintf("*%T", v) {
				if err := Decode(data, into, authority.Verify); err == nil || !strings.Contains(err.Error(), "is not signed by the authority") {
					t.Errorf("%T: %v", v, err)
				}
			}
		}
	}
	for _, r := range []Request{{}, {Step: "forget"}, {Step: Prepare, Parent: &one}, {Step: Accept, Parent: &one, Ballot: Ballot{1, "p"}}, {Step: Chosen}} {
		if r.Complete() == nil {
			t.Errorf("a request to %q with nothing is complete", r.Step)
		}
	}
}

// FuzzDecode: no input leads to a panic, and an acceptor handles whatever was decoded.
func FuzzDecode(f *testing.F) {
	authority := generationtest.New(f)
	member := generation(1, "", "n1").Members[0]
	one := authority.Sign(f, 1, "", member)
	two := authority.Sign(f, 2, one.Digest, member)
	for _, r := range []Request{{Step: Prepare, Ballot: Ballot{1, "p"}, Parent: &one}, {Step: Accept, Ballot: Ballot{1, "p"}, Parent: &one, Value: &two}, {Step: Chosen, Value: &two}} {
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if Decode(data, &r, authority.Verify) != nil || r.Complete() != nil {
			return
		}
		State{}.Handle(r)
		State{Fence: new(int), Known: &two}.Handle(r)
	})
}

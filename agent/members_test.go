package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"imagegen/cluster/facts"
)

// redisMembership has one node for each name, in this order.
func redisMembership(number int, names ...string) facts.Membership {
	m := facts.Membership{Number: number}
	for i, name := range names {
		m.Members = append(m.Members, facts.Peer{Name: name, Role: "redis", IP: "10.0.0." + name, Index: i})
	}
	return m
}

func numbers(j facts.Joint) (list []int) {
	for _, m := range j.InUse {
		list = append(list, m.Number)
	}
	return list
}

// What a node knows of the members outlives its root disk and its data disk, one at a time, and counts only with the data disk there.
func TestMembershipsAreRemembered(t *testing.T) {
	root, data := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	there := true
	seed := redisMembership(1, "1", "2", "3")
	agent := func() *memberships {
		return &memberships{own: func() facts.Membership { return seed }, accepted: func() []facts.Membership { return nil }, number: func() int { return seed.Number },
			store: jointFiles{root, func() (string, bool) { return data, there }}}
	}
	if _, err := agent().count(nil); err != nil {
		t.Fatal(err)
	}
	seed = redisMembership(2, "1", "2", "4") // a new root disk
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	there = false
	m := agent()
	if j, err := m.count(nil); err == nil {
		t.Errorf("without the data disk: %+v", j)
	}
	there = true
	j, err := m.count(nil)
	if err != nil || !slices.Equal(numbers(j), []int{1, 2}) {
		t.Errorf("%+v, %v", j, err)
	}
	if err := os.Remove(data); err != nil { // a new data disk
		t.Fatal(err)
	}
	if j, err := agent().count(nil); err != nil || !slices.Equal(numbers(j), []int{1, 2}) {
		t.Errorf("%+v, %v", j, err)
	}
	if _, err := m.settle(2); err != nil {
		t.Fatal(err)
	}
	old := facts.Joint{Role: "redis", InUse: []facts.Membership{redisMembership(1, "1", "2", "3")}}
	j, err = agent().count(map[string]PeerReport{"2": {NodeReport: facts.NodeReport{Joint: &old}}})
	if err != nil || !slices.Equal(numbers(j), []int{2}) || j.Settled != 2 {
		t.Errorf("what was forgotten counts again: %+v, %v", j, err)
	}
	if err := os.WriteFile(data, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := agent().count(nil); err == nil {
		t.Errorf("with a damaged record: %+v", j)
	}
}

// A node that this one does not know makes itself known by asking; a node of another role does not.
func TestWhoAsksIsHeard(t *testing.T) {
	a := testAgent(func(string) {})
	a.facts.Node = facts.Peer{Name: "1", Role: "redis", IP: "10.0.0.1"}
	a.members.own = func() facts.Membership { return redisMembership(2, "1", "4") }
	ask := func(j facts.Joint) facts.Joint {
		t.Helper()
		text, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, facts.StatePath, nil)
		r.Header.Set(facts.JointHeader, string(text))
		a.apiHandler().ServeHTTP(httptest.NewRecorder(), r)
		got, err := a.members.count(nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if j := ask(facts.Joint{Role: "web", Settled: 9, InUse: []facts.Membership{redisMembership(1, "3")}}); !slices.Equal(numbers(j), []int{2}) || j.Settled != 0 {
		t.Errorf("%+v", j)
	}
	if j := ask(facts.Joint{Role: "redis", InUse: []facts.Membership{redisMembership(1, "1", "3")}}); !slices.Equal(numbers(j), []int{1, 2}) {
		t.Errorf("%+v", j)
	}
	var names []string
	for _, p := range a.asked() {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"3", "4"}) {
		t.Errorf("it asks %v", names)
	}
}

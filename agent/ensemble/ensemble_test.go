package ensemble

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"imagegen/cluster/facts"
)

func TestBackoff(t *testing.T) {
	now := time.Unix(1000, 0)
	var b Backoff
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		if b.Left(now) != 0 {
			t.Errorf("held for %v", b.Left(now))
		}
		b.Next(now)
		if got := b.Left(now); got != want*time.Second {
			t.Errorf("pause %v, want %v s", got, want)
		}
		now = now.Add(b.Left(now))
	}
	b.Settle(now.Add(MaxPause))
	if b.Next(now); b.Left(now) != MaxPause {
		t.Errorf("what has only just been well is tried again after %v", b.Left(now))
	}
	b.Settle(now.Add(2*MaxPause + time.Second))
	if b.Next(now); b.Left(now) != time.Second {
		t.Errorf("after it has been well: %v", b.Left(now))
	}
	if got := Held("nginx failed", "start", 1500*time.Millisecond); got.State != facts.Failed || got.Detail != "nginx failed; next start in 2 s" {
		t.Errorf("%+v", got)
	}
}

// peers is a world of three nodes, seen by the second; the first answers.
func peers(report string) World {
	nodes := []facts.Peer{{Name: "c", Role: "r", Index: 2}, {Name: "x", Role: "other"}, {Name: "a", Role: "r"}}
	return World{Self: facts.Peer{Name: "b", Role: "r", Index: 1}, Peers: nodes, Reports: map[string]PeerReport{
		"a": {NodeReport: facts.NodeReport{Node: nodes[2], Components: map[string]facts.ComponentReport{"its-name": {Kind: "k", Report: json.RawMessage(report)}}}}}}
}

func TestMembers(t *testing.T) {
	w := peers(`{"n":7}`)
	w.Without = []string{"a", "c"}
	members, self := Members(w)
	var reader Reader[struct{ N int }]
	for i := range members {
		if i != self {
			v, known := reader.From(w, members[i].Name, "k")
			if members[i].Heard = known; known && v.N != 7 {
				t.Errorf("%+v", v)
			}
		}
	}
	want := []Member{
		{Peer: facts.Peer{Name: "a", Role: "r"}, In: 1, Answers: true, Heard: true}, // answers, so it cannot be given up
		{Peer: facts.Peer{Name: "b", Role: "r", Index: 1}, In: 1, Answers: true, Heard: true, Hears: true},
		{Peer: facts.Peer{Name: "c", Role: "r", Index: 2}, In: 1, GivenUp: true},
	}
	if self != 1 || !slices.Equal(members, want) {
		t.Errorf("%d, %+v", self, members)
	}
	if first := First(members); first.Name != "a" {
		t.Errorf("the first is %s", first.Name)
	}
	if silent := Silent(members); silent != nil {
		t.Errorf("silent: %v", silent)
	}
	w.Without = nil
	members, _ = Members(w)
	if silent := Silent(members); !slices.Equal(silent, []string{"a", "c"}) {
		t.Errorf("silent: %v", silent)
	}
	// The agent of a answers: there is nothing to decide about it.
	if s := Await(members, []string{"a", "c"}, ", who may have %s", "data"); s.Missing != "c" || s.Detail != "for a, c, who may have data" {
		t.Errorf("%+v", s)
	}
}

// A report that says the same again is not read again; one that says something else is.
func TestReaderReadsWhatHasChanged(t *testing.T) {
	var reader Reader[struct{ P *int }]
	read := func(report string) *int {
		v, known := reader.From(peers(report), "a", "k")
		if !known {
			t.Fatalf("%s is not known", report)
		}
		return v.P
	}
	first := read(`{"p":1}`)
	if read(`{"p":1}`) != first {
		t.Error("the same report was read twice")
	}
	if p := read(`{"p":2}`); *p != 2 {
		t.Errorf("%d", *p)
	}
	for _, text := range []string{``, `{"p":"x"}`, `[`} {
		if _, known := reader.From(peers(text), "a", "k"); known {
			t.Errorf("%q is taken for a report", text)
		}
	}
	if _, known := reader.From(peers(`{}`), "c", "k"); known {
		t.Error("a peer that does not answer is known")
	}
	if _, runs, known := reader.Of(peers(`{}`).Reports["a"].NodeReport, "another"); runs || !known {
		t.Error("a node without the component has said all there is to say")
	}
}

func TestOldObservationsDoNotCount(t *testing.T) {
	r := facts.NodeReport{Ages: map[string]int64{"old": 4000, "new": 500, "bare": 9000},
		Components: map[string]facts.ComponentReport{"old": {Report: json.RawMessage(`1`)}, "new": {Report: json.RawMessage(`2`)}, "bare": {Kind: "b"}, "unsaid": {Report: json.RawMessage(`3`)}}}
	for age, want := range map[time.Duration][]string{0: {"new", "old", "unsaid"}, 2 * time.Second: {"new", "unsaid"}, 6 * time.Second: nil} {
		var left []string
		for name, c := range Fresh(r, age, HeardLimit).Components {
			if len(c.Report) > 0 {
				left = append(left, name)
			}
		}
		if slices.Sort(left); !slices.Equal(left, want) {
			t.Errorf("in an answer of %v: %v", age, left)
		}
	}
	if len(r.Components["old"].Report) == 0 {
		t.Error("the report itself was changed")
	}
}

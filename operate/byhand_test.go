package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/cluster/facts"
)

// made are fake agents that say what they were made from.
type made struct {
	mu    sync.Mutex
	nodes map[string]facts.Made
}

func (m *made) set(node string, v facts.Made) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[node] = v
}

// Without a provider a roll tells a person which machine to make anew, one at a time, and goes on only when a new machine with the
// new seed answers and is ready.
func TestRollByHand(t *testing.T) {
	f := newFakes(t, 3)
	m := &made{nodes: map[string]facts.Made{}}
	e := &expected.Expected{Version: expected.Version, Cluster: "otus", ClusterID: f.keys.ClusterID}
	for _, n := range f.spec.Nodes() {
		m.set(n.Name, facts.Made{Seed: "old", Machine: "old-" + n.Name})
		e.Nodes = append(e.Nodes, expected.Node{Node: n.Name, Role: "web", Seed: "new", Image: "new"})
	}
	m.set("web2", facts.Made{Image: "new", Seed: "new", Machine: "new-web2"})
	f.report = func(r *facts.NodeReport) {
		m.mu.Lock()
		defer m.mu.Unlock()
		r.Made = m.nodes[r.Node.Name]
	}
	cl := f.cluster(t, f.keys)
	names := []string{"web1", "web2", "web3"}
	if err := cl.Roll(t.Context(), Wait{Timeout: time.Minute}, names, nil); err == nil || !strings.Contains(err.Error(), "no provider") {
		t.Fatalf("nobody is told: %v", err)
	}
	var told, waits []string
	cl.Tell = func(n cluster.Node, _ bool) { told = append(told, n.Name) }
	if err := cl.Roll(t.Context(), Wait{Timeout: time.Minute}, names, nil); err == nil || !strings.Contains(err.Error(), "expected.json is missing") || told != nil {
		t.Fatalf("nobody knows what is older: %v, %q", err, told)
	}
	cl.Expected = e
	nodes, err := cl.Status(t.Context())
	if err != nil || nodes[0].Build != BuildOlder || nodes[1].Build != BuildCurrent {
		t.Fatalf("%+v, %v", nodes, err)
	}
	// The person makes the machine with the wrong seed first, and then from the wrong image.
	step := 0
	w := Wait{Timeout: time.Minute, Progress: func(nodes []NodeStatus) {
		n := nodes[0]
		if n.Detail == "" || len(waits) > 0 && waits[len(waits)-1] == n.Node+n.Detail {
			return
		}
		waits = append(waits, n.Node+n.Detail)
		switch step++; step % 3 {
		case 1:
			m.set(n.Node, facts.Made{Seed: "old", Machine: "wrong-" + n.Node})
		case 2:
			m.set(n.Node, facts.Made{Image: "old", Seed: "new", Machine: "half-" + n.Node})
		case 0:
			m.set(n.Node, facts.Made{Image: "new", Seed: "new", Machine: "new-" + n.Node})
		}
	}}
	var replaced []string
	if err := cl.Roll(t.Context(), w, names, func(node string) { replaced = append(replaced, node) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"web1", "web3"}; !slices.Equal(told, want) || !slices.Equal(replaced, want) {
		t.Errorf("told %q, replaced %q", told, replaced)
	}
	if len(waits) != 6 || !strings.Contains(waits[2], "has another image") || !strings.Contains(waits[0], "web1for its new machine: the old one still answers") || !strings.Contains(waits[1], "has another seed") {
		t.Errorf("%q", waits)
	}
	// Of an image that does not say which it is, the seed tells; of another one, its identity does.
	for image, want := range map[string]string{"": BuildCurrent, "new": BuildCurrent, "old": BuildOlder} {
		m.set("web1", facts.Made{Image: image, Seed: "new", Machine: "x"})
		if nodes, err := cl.Status(t.Context()); err != nil || nodes[0].Build != want {
			t.Errorf("image %q: %+v, %v", image, nodes, err)
		}
	}
	// Nobody does it.
	m.set("web1", facts.Made{Seed: "old", Machine: "x"})
	want := ""
	for limit := time.Second; limit < 2*time.Minute && (err == nil || !strings.Contains(err.Error(), want)); limit *= 2 { // until a busy machine has answered once
		err = cl.Roll(t.Context(), Wait{Timeout: limit}, names, func(string) { t.Error("replaced") })
		want = fmt.Sprintf("web1 is not replaced: it waited for its new machine: the old one still answers within %s", limit)
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
}

// Events of all nodes come in the order of time, and who was not heard is named.
func TestEventsOfAllNodes(t *testing.T) {
	f := newFakes(t, 3)
	start := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	happened := map[string][]int{"web1": {1, 4}, "web2": {2, 3, 5}}
	f.mux.HandleFunc("GET "+facts.EventsPath, func(w http.ResponseWriter, r *http.Request) {
		got := facts.Events{Node: r.TLS.ServerName}
		for _, at := range happened[r.TLS.ServerName] {
			got.Events = append(got.Events, facts.Event{Time: start.Add(time.Duration(at) * time.Second), Text: r.URL.RawQuery})
		}
		json.NewEncoder(w).Encode(got)
	})
	f.gone["10.1.0.2"] = true
	cl := f.cluster(t, f.keys)
	all, unheard, err := cl.Events(t.Context(), 90*time.Minute)
	if err != nil || len(unheard) != 1 || unheard["web3"] == nil {
		t.Fatalf("%v, %v", unheard, err)
	}
	var order []string
	for _, e := range all {
		order = append(order, e.Node)
		if e.Text != "since=1h30m0s" {
			t.Errorf("asked for %s", e.Text)
		}
	}
	if want := []string{"web1", "web2", "web2", "web1", "web2"}; !slices.Equal(order, want) {
		t.Errorf("%q, want %q", order, want)
	}
	f.gone["10.1.0.0"], f.gone["10.1.0.1"] = true, true
	if _, _, err := cl.Events(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("%v", err)
	}
}

// The journal ends when its reader does, comes from the console when the agent is silent, and a broken connection is an error.
func TestLogs(t *testing.T) {
	f := newFakes(t, 2)
	gone := make(chan bool, 1)
	f.mux.HandleFunc("GET "+facts.LogsPath, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.URL.RawQuery + "\n"))
		w.(http.Flusher).Flush()
		switch {
		case r.FormValue("since") == "1m0s":
			panic(http.ErrAbortHandler)
		case r.FormValue("follow") == "1":
			<-r.Context().Done()
			gone <- true
		}
	})
	cl := f.cluster(t, f.keys)
	var out strings.Builder
	if err := cl.Logs(t.Context(), &out, "web1", 0, false, nil); err != nil || out.String() != "\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := cl.Logs(t.Context(), &out, "web1", time.Minute, false, nil); err == nil || !strings.Contains(err.Error(), "broke") {
		t.Errorf("a journal that was cut off: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	read := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	if err := cl.Logs(ctx, read, "web1", 0, true, nil); err == nil {
		t.Error("following ended by itself")
	}
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error("the agent does not notice that its reader has gone")
	}
	f.gone["10.1.0.0"] = true
	if err := cl.Logs(t.Context(), &out, "web1", 0, false, nil); err == nil || !strings.Contains(err.Error(), "logs of web1: no route to host") {
		t.Errorf("silent, and no console: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

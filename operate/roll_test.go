package operate

import (
	"context"
	"fmt"
	"imagegen/cluster"
	"imagegen/cluster/expected"
	"imagegen/cluster/facts"
	"strings"
	"testing"
	"time"
)

// A roll begins with the nodes that an earlier build broke, and goes on when no other can become ready any more.
func TestRollOrder(t *testing.T) {
	const long = 2 * patience
	node := func(name, build, state string) NodeStatus {
		power := "on"
		if state == "off" {
			power = "off"
		}
		return NodeStatus{Node: name, Build: build, State: state, Power: power}
	}
	for name, c := range map[string]struct {
		builds, states string
		watched        time.Duration
		next           string
		settled        bool
	}{
		"nothing to do":                        {"current current current", "ready ready ready", 0, "", true},
		"all ready":                            {"older older older", "ready ready ready", 0, "1", true},
		"half-way":                             {"current older older", "ready ready ready", 0, "2", true},
		"half-way, the new one starts":         {"current older older", "working ready ready", long, "2", false},
		"half-way, the new one failed":         {"current older older", "failed ready ready", long, "2", false},
		"one was broken":                       {"older older older", "ready failed ready", 0, "2", true},
		"one starts, perhaps":                  {"older older older", "ready working ready", 0, "2", false},
		"one has been starting for long":       {"older older older", "ready working ready", long, "2", true},
		"all broken":                           {"older older older", "failed stopped failed", 0, "1", true},
		"all broken, the first renewed":        {"current older older", "waiting failed failed", 0, "2", false},
		"all broken, the first waits":          {"current older older", "waiting failed failed", long, "2", true},
		"all broken, the first broken as well": {"current older older", "failed failed failed", long, "2", false},
		"all renewed, and waiting":             {"current current current", "waiting waiting ready", long, "", false},
		"one is off":                           {"older older older", "ready off ready", 0, "1", true},
		"one is off, the others are done":      {"current older current", "ready off ready", 0, "2", true},
	} {
		var nodes []NodeStatus
		states := strings.Fields(c.states)
		for i, build := range strings.Fields(c.builds) {
			nodes = append(nodes, node(fmt.Sprint(i+1), build, states[i]))
		}
		if next, more := nextToRoll(nodes, nil); next != c.next || more != (c.next != "") {
			t.Errorf("%s: next is %q, %t; want %q", name, next, more, c.next)
		}
		if got := settled(nodes, c.watched); got != c.settled {
			t.Errorf("%s: settled: %t", name, got)
		}
	}

	// Those that lead come last, unless they serve nobody.
	leads := map[string]string{"1": "is the master", "2": "gets writes"}
	for states, want := range map[string]string{"ready ready ready": "3", "ready failed ready": "2", "ready ready off": "3"} {
		var nodes []NodeStatus
		for i, state := range strings.Fields(states) {
			nodes = append(nodes, node(fmt.Sprint(i+1), "older", state))
		}
		if next, _ := nextToRoll(nodes, leads); next != want {
			t.Errorf("%s: next is %q, want %q", states, next, want)
		}
	}
}

// mute is a provider that does not answer.
type mute struct {
	Machines
	spec *cluster.Spec
}

func (m mute) Known(context.Context) (all []Machine, err error) {
	for _, n := range m.spec.Nodes() {
		all = append(all, Machine{Node: n, Power: PowerUnknown, Build: BuildUnknown, Unasked: true})
	}
	return all, nil
}

func (mute) CheckReplace(...string) error { return nil }

// While the provider does not answer, nodes whose image alone is older pass for current by their seeds. That must not end a roll with
// nothing to do.
func TestRollNeedsTheProvider(t *testing.T) {
	f := newFakes(t, 2)
	f.report = func(r *facts.NodeReport) { r.Made.Seed = "new" }
	cl := f.cluster(t, f.keys)
	cl.Machines = mute{spec: f.spec}
	cl.Expected = &expected.Expected{Nodes: []expected.Node{{Node: "web1", Seed: "new"}, {Node: "web2", Seed: "new"}}}
	if nodes, err := cl.Status(t.Context()); err != nil || nodes[0].Build != BuildCurrent {
		t.Fatalf("%+v, %v", nodes, err)
	}
	err := cl.Roll(t.Context(), Wait{Timeout: time.Minute}, []string{"web1", "web2"}, nil)
	if err == nil || !strings.Contains(err.Error(), "the provider of the machines does not answer") {
		t.Errorf("roll: %v", err)
	}
}

package operate

import (
	"fmt"
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
		if next, more := nextToRoll(nodes); next != c.next || more != (c.next != "") {
			t.Errorf("%s: next is %q, %t; want %q", name, next, more, c.next)
		}
		if got := settled(nodes, c.watched); got != c.settled {
			t.Errorf("%s: settled: %t", name, got)
		}
	}
}

// Package agent brings each component of a node to ready, and keeps it there, for ever.
//
// Every component is a small state machine. It observes its own world, learns what its peers report about theirs, and
// takes at most one step. What to do is decided by pure functions of what is known, so that it can be simulated; what
// is waited for is always visible. Nothing here renders configuration (package roles does, on the build host) and
// nothing waits for a fixed time and hopes.
package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"imagegen/cluster/facts"
)

// Component is one thing that the agent brings to ready. Its methods are called by one goroutine, never at once.
type Component interface {
	// Observe looks at this node's world and changes nothing. The report is published to the peers as JSON.
	Observe(ctx context.Context) (report any, err error)
	// Step decides from the last report and the peers' reports, takes at most one step, and says where things stand.
	// An error means that the step failed; the agent shows it and tries again.
	Step(ctx context.Context, w World) (facts.Status, error)
}

// waitf returns a waiting status.
func waitf(format string, args ...any) facts.Status {
	return facts.Status{State: facts.Waiting, Detail: fmt.Sprintf(format, args...)}
}

// workf returns a working status.
func workf(format string, args ...any) facts.Status {
	return facts.Status{State: facts.Working, Detail: fmt.Sprintf(format, args...)}
}

// stopf returns a stopped status: the component will not go on until an operator decides.
func stopf(format string, args ...any) facts.Status {
	return facts.Status{State: facts.Stopped, Detail: fmt.Sprintf(format, args...)}
}

// ready returns a ready status; detail may be empty.
func ready(detail string) facts.Status {
	return facts.Status{State: facts.Ready, Detail: detail}
}

// World is what a component may base a decision on, beside its own observation.
type World struct {
	Self  facts.Peer
	Peers []facts.Peer // that the node knows (facts.PeerRoles), self excluded
	// Reports has what each peer that answered lately published, by node name. A peer that is not in it was not heard
	// from, and nothing may be assumed about it.
	Reports map[string]PeerReport
	// Own is what this node publishes itself: components that run together decide with each other in view.
	Own facts.NodeReport
	// Without has the nodes that the component is to go on without, by an operator's decision, should they be silent.
	Without []string
}

// PeerReport is one peer's answer.
type PeerReport struct {
	facts.NodeReport
	Age time.Duration // since the question was sent; a few seconds at most
}

// reportsOf returns what the component called name observed on each peer that answered lately, by node name. A peer
// whose agent has not published that component yet is left out, as if it had not been heard.
func reportsOf[T any](w World, name string) map[string]T {
	m := map[string]T{}
	for node, r := range w.Reports {
		c, ok := r.Components[name]
		if !ok || len(c.Report) == 0 {
			continue
		}
		var v T
		if json.Unmarshal(c.Report, &v) == nil {
			m[node] = v
		}
	}
	return m
}

// reportOfKind returns what a node's component of a kind observed. A node that has no such component has said all there
// is to say: its report is the zero value, and known.
func reportOfKind[T any](r facts.NodeReport, kind string) (v T, known bool) {
	if r.Components == nil {
		return v, false
	}
	for _, c := range r.Components {
		if c.Kind == kind {
			return v, len(c.Report) > 0 && json.Unmarshal(c.Report, &v) == nil
		}
	}
	return v, true
}

// peersIn returns the peers of w that have the role, in the spec's order.
func peersIn(w World, role string) []facts.Peer {
	var ps []facts.Peer
	for _, p := range w.Peers {
		if p.Role == role {
			ps = append(ps, p)
		}
	}
	return ps
}

// Node is what a component gets when it is made.
type Node struct {
	Facts   facts.Facts
	Secrets map[string]string
	// Identity is for asking the node's own daemons.
	Identity identity
	// Dir is a folder of the component's own that survives reboots (on the root disk).
	Dir string
	Log func(format string, args ...any)
	// Working shows what a long step is busy with, while it is. It may be called from Step alone.
	Working func(detail string)
}

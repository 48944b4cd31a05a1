// Package agent brings each component of a node to ready and keeps it there.
//
// A component is a small state machine: it observes its node, reads its peers' reports, and takes at most one step. Pure
// functions choose the step, and clock, network and daemons are interfaces, so that the simulator can run the agent's own
// loops. What a component waits for is always visible. Nothing here renders configuration (package roles does, on the build
// host), and nothing sleeps for a fixed time and hopes.
package agent

import (
	"context"
	"fmt"
	"time"

	"imagegen/agent/ensemble"
	"imagegen/cluster/facts"
)

// Component is one thing that the agent brings to ready. Its methods are never called concurrently.
type Component interface {
	// Observe looks at the node and changes nothing. The report is published to the peers as JSON.
	Observe(ctx context.Context) (report any, err error)
	// Step decides from the last observation and the peers' reports, takes at most one step and returns the status. An error
	// means that the step failed; the agent shows it and tries again.
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

// World and PeerReport are what the decisions of package ensemble are made from.
type (
	World      = ensemble.World
	PeerReport = ensemble.PeerReport
)

// Node is what a component gets when it is made.
type Node struct {
	Facts   facts.Facts
	Secrets map[string]string
	// Identity is for asking the node's own daemons.
	Identity identity
	// Dir is a folder of the component's own that survives reboots (on the root disk).
	Dir string
	// Clock is the agent's; nil: the system's.
	Clock clock
	Log   func(format string, args ...any)
	// Working shows the progress of a long step. It may be called only from Step.
	Working func(detail string)
}

// now is the time by the agent's clock.
func (n Node) now() time.Time {
	if n.Clock == nil {
		return time.Now()
	}
	return n.Clock.Now()
}

// since is how long ago t was; zero for a t that is zero.
func (n Node) since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return n.now().Sub(t)
}

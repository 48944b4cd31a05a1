// Package assemble is the agent's brain: it brings each component of a node to ready, and keeps it there, for ever.
//
// Every component is a small state machine. It observes its own world, learns what its peers report about theirs, and
// takes at most one step. What to do is decided by pure functions of what is known, so that it can be simulated; what
// is waited for is always visible. Nothing here renders configuration (package roles does, on the build host) and
// nothing waits for a fixed time and hopes.
package assemble

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"imagegen/cluster"
)

// Component is one thing that the agent brings to ready. Its methods are called by one goroutine, never at once.
type Component interface {
	// Observe looks at this node's world and changes nothing. The report is published to the peers as JSON.
	Observe(ctx context.Context) (report any, err error)
	// Step decides from the last report and the peers' reports, takes at most one step, and says where things stand.
	// An error means that the step failed; the agent shows it and tries again.
	Step(ctx context.Context, w World) (Status, error)
}

// Status is where a component stands.
type Status struct {
	State State `json:"state"`
	// Detail says what is waited for, done, or wrong, in a few words a person understands.
	Detail string `json:"detail,omitempty"`
}

// State of a component.
type State string

// The states. A component that is Stopped will not go on by itself: Detail says what the operator must decide.
const (
	Ready   State = "ready"
	Waiting State = "waiting" // for a peer or another component
	Working State = "working" // busy with a step
	Failed  State = "failed"  // the last step failed; tried again
	Stopped State = "stopped" // refuses to go on
)

// Waitf returns a Waiting status.
func Waitf(format string, args ...any) Status {
	return Status{Waiting, fmt.Sprintf(format, args...)}
}

// World is what a component may base a decision on, beside its own observation.
type World struct {
	Self  cluster.Peer
	Peers []cluster.Peer // of the whole cluster, self excluded
	// Reports has what each peer that answered lately published, by node name. A peer that is not in it was not heard
	// from, and nothing may be assumed about it.
	Reports map[string]PeerReport
}

// PeerReport is one peer's answer.
type PeerReport struct {
	Components map[string]ComponentReport `json:"components"` // by component name
	Age        time.Duration              `json:"-"`          // since the answer arrived; a few seconds at most
}

// ComponentReport is what one component of a node publishes.
type ComponentReport struct {
	Kind   string          `json:"kind"`
	Status Status          `json:"status"`
	Since  time.Time       `json:"since"`            // when State last changed, by the node's clock; for people
	Report json.RawMessage `json:"report,omitempty"` // what Observe returned
}

// Node is what a component gets when it is made.
type Node struct {
	Facts   cluster.Facts
	Secrets map[string]string
	// Dir is a folder of the component's own that survives reboots (on the root disk).
	Dir string
	Log func(format string, args ...any)
}
